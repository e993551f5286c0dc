"""A pipeline in one file is the pipeline of the folder that it was made from."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from scripts.make_random_pipeline import write_pipeline, write_single_file

from accel_search.errors import ConfigurationError, ExitCode, LoadError
from accel_search.runtime.loading.pipeline_folder import check_name
from accel_search.runtime.loading.pipelines import describe_workload, load_pipeline
from accel_search.runtime.loading.published import PUBLISHED
from accel_search.runtime.loading.single_file.config import configs
from accel_search.runtime.loading.single_file.header import (
    Header,
    Prediction,
    Tensor,
    architecture,
    prediction,
    read_header,
)
from accel_search.runtime.loading.single_file.load import check_file, empty_model, places
from accel_search.runtime.loading.single_file.names import TEXT_ENCODERS
from accel_search.runtime.loading.single_file.vocabulary import PADS, clip_tokenizer
from tests.support.generation import generate
from tests.support.making import PROMPTS
from tests.support.pipelines import LOG, prompt_set

KINDS = {"SD1.5": "epsilon", "SD2.1": "v_prediction", "SDXL": "epsilon"}


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A folder and a file of each architecture."""
    folder = tmp_path_factory.mktemp("files")
    for name in KINDS:
        write_pipeline(folder / name, name, width="narrow")
        write_single_file(folder / f"{name}.safetensors", folder / name, name)
    return folder


@pytest.fixture
def load(settings_for):
    """Return what loads a file, with the prediction type of its architecture's folder."""

    def load(path, **options):
        kind = KINDS["SD2.1"] if "SD2.1" in Path(path).name else None
        return load_pipeline(settings_for(pipe=str(path), prediction_type=kind, **options), LOG)

    return load


def _align(pipe) -> None:
    """Copy the weights out of their files, where they begin at any byte: by that the kernels of a
    CPU round differently."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for parameter in part.parameters():
                parameter.data = parameter.data.clone()


@pytest.mark.parametrize("name", KINDS)
def test_a_file_has_the_weights_and_makes_the_images_of_its_folder(files, load, settings_for, name):
    mine, source = load(files / f"{name}.safetensors", steps=2)
    settings = settings_for(pipe=str(files / name), steps=2, height=64, width=64)
    theirs, folder = load_pipeline(settings, LOG)

    assert type(mine) is type(theirs)
    for part, expected in theirs.components.items():
        if isinstance(expected, torch.nn.Module):
            state = getattr(mine, part).state_dict()
            assert state.keys() == expected.state_dict().keys()
            for key, value in expected.state_dict().items():
                assert torch.equal(state[key], value), (part, key)
    _align(mine), _align(theirs)
    prompts = prompt_set(2).search
    first = generate(mine, describe_workload(mine, settings, source), prompts)
    second = generate(theirs, describe_workload(theirs, settings, folder), prompts)
    assert torch.equal(first, second)
    assert first.amin() < first.amax()
    assert mine.scheduler.config.prediction_type == KINDS[name]


@pytest.mark.parametrize("name", KINDS)
def test_the_published_configurations_are_derived_at_full_size(name, tmp_path):
    """And diffusers' own mapping finds every tensor where we say that it is, and no others."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import (
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
        convert_open_clip_checkpoint,
        infer_diffusers_model_type,
    )

    header = of_full_size(name, tmp_path)
    assert architecture("x", header) == name
    assert {f"{UNET}input_blocks.3.0.op.weight", f"{UNET}middle_block.2.out_layers.3.bias"} <= (
        header.tensors.keys()
    )
    assert KNOWN[name] <= header.tensors.keys()
    plan, guess = PUBLISHED[name], Prediction(KINDS[name], False)
    derived = configs("x", header, name, guess)
    named = {"SD1.5": "v1", "SD2.1": "v2", "SDXL": "xl_base"}[name]

    unet, vae = UNet2DConditionModel, AutoencoderKL
    for part, cls, published in (("unet", unet, plan.unet), ("vae", vae, plan.vae)):
        assert resolved(cls, derived[part]) == resolved(cls, published), part
    for config, published in zip(
        (derived[part] for part in TEXT_ENCODERS[name]), plan.text_encoders, strict=True
    ):
        expected = {"vocab_size": 49408, "hidden_act": "quick_gelu"} | dict(published)
        if name == "SD2.1":
            del expected["projection_dim"]  # Its encoder projects nothing.
        assert {key: config.get(key, "quick_gelu") for key in expected} == expected

    tensors = {
        key: torch.empty(tensor.shape, device="meta") for key, tensor in header.tensors.items()
    }
    assert infer_diffusers_model_type(tensors) == named
    for part, convert in (
        ("unet", convert_ldm_unet_checkpoint),
        ("vae", convert_ldm_vae_checkpoint),
    ):
        assert shapes(convert(dict(tensors), config=resolved_all(derived[part], part))) == shapes(
            empty_model(part, derived[part])
        )
    for part, (layout, prefix) in TEXT_ENCODERS[name].items():
        if layout == "open_clip":
            model = SimpleNamespace(
                config=SimpleNamespace(hidden_size=derived[part]["hidden_size"])
            )
            mine = convert_open_clip_checkpoint(model, tensors, prefix=prefix)
            mine = {key.removeprefix("text_model."): value for key, value in mine.items()}
            wanted = empty_model(part, derived[part])
            assert shapes(mine) == {
                key.removeprefix("text_model."): tuple(value.shape) for key, value in wanted.items()
            }


UNET = "model.diffusion_model."
VAE = "first_stage_model."
KNOWN = {
    "SD1.5": {
        f"{UNET}output_blocks.2.1.conv.weight",
        f"{UNET}output_blocks.8.2.conv.weight",
        f"{VAE}decoder.up.3.upsample.conv.weight",
        f"{VAE}encoder.mid.attn_1.proj_out.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.k_proj.bias",
    },
    "SD2.1": {
        f"{UNET}output_blocks.5.2.conv.bias",
        f"{VAE}decoder.up.1.block.0.nin_shortcut.weight",
        "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight",
        "cond_stage_model.model.ln_final.bias",
    },
    "SDXL": {
        f"{UNET}label_emb.0.2.weight",
        f"{UNET}output_blocks.2.2.conv.weight",
        f"{UNET}output_blocks.8.0.skip_connection.weight",
        f"{UNET}middle_block.1.transformer_blocks.9.ff.net.0.proj.weight",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.1.model.transformer.resblocks.31.mlp.c_proj.bias",
    },
}
"""Some names of the published checkpoints."""


def shapes(tensors):
    return {key: tuple(value.shape) for key, value in tensors.items()}


def resolved(cls, config):
    """A configuration with the library's defaults, sequences alike, and without what is not used
    by this pipeline."""
    with torch.device("meta"):
        whole = dict(cls.from_config(dict(config)).config)
    unused = {"_use_default_values", "_class_name", "_diffusers_version"}
    unused |= {"sample_size"} if cls.__name__ == "AutoencoderKL" else set()
    heads = whole.get("attention_head_dim")
    count = len(whole["block_out_channels"])
    if cls.__name__ == "UNet2DConditionModel":
        whole["attention_head_dim"] = [heads] * count if isinstance(heads, int) else list(heads)
        depths = whole["transformer_layers_per_block"]
        whole["transformer_layers_per_block"] = (
            [depths] * count if isinstance(depths, int) else list(depths)
        )
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in whole.items()
        if key not in unused
    }


def resolved_all(config, part):
    from diffusers import AutoencoderKL, UNet2DConditionModel

    return resolved({"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part], config)


def of_full_size(name, folder) -> Header:
    """The header of a published checkpoint, without its gigabytes."""
    plan = PUBLISHED[name]
    parts = {"unet": {"_class_name": "UNet2DConditionModel", **plan.unet}}
    parts["vae"] = {"_class_name": "AutoencoderKL", **plan.vae}
    for part, config in zip(TEXT_ENCODERS[name], plan.text_encoders, strict=True):
        cls = "CLIPTextModel" if part == "text_encoder" else "CLIPTextModelWithProjection"
        parts[part] = {"architectures": [cls], "vocab_size": 49408, **config}
    tensors = {}
    for part, config in parts.items():
        own = empty_model(part, config)
        for key, place in places(name, part, own).items():
            shape = tuple(own[key].shape)
            shape = shape[::-1] if place.is_transposed else shape
            shape = (3 * shape[0], *shape[1:]) if place.third is not None else shape
            tensors[place.name] = Tensor(shape, "F16")
    return Header(folder / "x.safetensors", tensors, {})


def header_of(tensors, folder, metadata=None) -> Header:
    """A header of tensors given by name -> shape."""
    return Header(
        folder / "x.safetensors",
        {name: Tensor(tuple(shape), "F16") for name, shape in tensors.items()},
        metadata or {},
    )


def write(path, tensors, metadata=None) -> Path:
    """A file of zeros: name -> shape."""
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path, metadata)
    return path


def sd(taken=4, made=4, **others):
    text = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
    ends = {
        f"{UNET}input_blocks.0.0.weight": (8, taken, 3, 3),
        f"{UNET}out.2.weight": (made, 8, 3, 3),
    }
    return {**ends, text: (77, 8), **others}


REFINER = "conditioner.embedders.0.model.positional_embedding"
OTHERS = {
    "inpainting": (sd(taken=9), "is an inpainting model, whose UNet takes 9 channels and makes 4"),
    "editing": (sd(taken=8), "is an editing model"),
    "depth": (sd(taken=5), "is a depth model"),
    "upscaler": (sd(taken=7), "is an upscaling model or the like, whose UNet takes 7"),
    "refiner": (sd(**{REFINER: (77, 8)}), "is SDXL's refiner"),
    "EDM": (sd(edm_mean=(4,)), "another noise than Stable Diffusion's (EDM)"),
    "classes": (sd(**{f"{UNET}label_emb.weight": (10, 8)}), "draws classes"),
    "SD3": ({f"{UNET}joint_blocks.0.context_block.adaLN_modulation.1.bias": (8,)}, "transformer"),
    "Flux": ({"double_blocks.0.img_attn.norm.key_norm.scale": (8,)}, "is a diffusion transformer"),
    "LoRA": ({"lora_unet_down_blocks_0_attentions_0.lora_up.weight": (8, 4)}, "is a LoRA"),
    "PEFT": ({"unet.down_blocks.0.attentions.0.to_k.lora_A.weight": (8, 4)}, "is a LoRA"),
    "VAE": ({"first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3)}, "is a VAE alone"),
    "bare VAE": ({"encoder.down.0.block.0.conv1.weight": (8, 8, 3, 3)}, "is a VAE alone"),
    "UNet": ({"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)}, "is a UNet alone"),
    "bare UNet": ({"input_blocks.0.0.weight": (8, 4, 3, 3)}, "is a UNet alone"),
    "UNet's part": (
        {f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3), f"{UNET}out.2.weight": (4, 8, 3, 3)},
        "holds a UNet but not the text encoders",
    ),
    "ControlNet": ({"control_model.time_embed.0.weight": (8, 8)}, "is a ControlNet"),
    "embedding": ({"emb_params": (8, 8)}, "is a textual inversion"),
    "text encoder": ({"text_model.final_layer_norm.bias": (8,)}, "is a text encoder alone"),
    "another": ({f"{UNET}patchify_proj.weight": (8, 8)}, "is of an architecture other than"),
    "anything": ({"roberta.bias": (8,)}, "is no checkpoint of Stable Diffusion (it holds roberta"),
    "nothing": ({}, "(it holds nothing)"),
    "half": ({f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3)}, f"lacks {UNET}out.2.weight"),
    "SD1.5's ends": (sd(), "lacks tensors that an SD1.5 has"),
    "scaled": (sd(**{f"{UNET}out.2.scale_weight": (1,)}), "its weights are quantised"),
    "no VAE": (None, "holds no VAE: give one with --vae"),
}


def refusal(settings) -> str:
    """The line of a file that is refused before torch is imported."""
    with pytest.raises(LoadError) as caught:
        check_file(settings)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"--pipe {settings.pipe}: ")
    assert caught.value.exit_code == ExitCode.NOT_LOADED
    assert "give" in message or "fetch" in message or "cannot be searched" in message
    return message


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_anything_else_is_named(kind, files, tmp_path, settings_for):
    tensors, expected = OTHERS[kind]
    path = tmp_path / "x.safetensors"
    if tensors is None:
        whole = load_file(files / "SD1.5.safetensors")
        save_file({k: v for k, v in whole.items() if not k.startswith("first_stage_model.")}, path)
    else:
        write(path, tensors)
    assert expected in refusal(settings_for(pipe=str(path)))


def test_whole_numbers_for_weights_are_refused(tmp_path, settings_for):
    tensors = {name: torch.zeros(shape) for name, shape in sd().items()}
    tensors[f"{UNET}out.2.weight"] = torch.zeros(4, 8, 3, 3, dtype=torch.int8)
    save_file(tensors, tmp_path / "x.safetensors")
    assert "quantised" in refusal(settings_for(pipe=str(tmp_path / "x.safetensors")))


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "is truncated or corrupt"),
        (b"\xff" * 100, "is truncated or corrupt"),
        (b"\x08\0\0\0\0\0\0\0nonsense", "is truncated or corrupt"),
        (b"PK\x03\x04" + bytes(100), "is a pickle under the name of a .safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (None, "is truncated or corrupt"),
    ],
)
def test_a_broken_file_is_named(files, tmp_path, settings_for, content, expected):
    path = tmp_path / "x.safetensors"
    whole = (files / "SD1.5.safetensors").read_bytes()
    path.write_bytes(whole[:-1000] if content is None else content)
    assert expected in refusal(settings_for(pipe=str(path)))


def test_other_files_and_missing_ones_are_named(tmp_path, settings_for):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    assert "is no .safetensors file" in refusal(settings_for(pipe=str(tmp_path / "model.gguf")))
    for name in ("models/none.safetensors", "models/none.ckpt"):
        with pytest.raises(LoadError, match="no such file"):
            check_name(name)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_file_that_lacks_a_tensor_is_refused(files, tmp_path, load, part):
    tensors = load_file(files / "SDXL.safetensors")
    own = {"unet": UNET, "vae": "first_stage_model."}
    own |= {name: prefix for name, (_, prefix) in TEXT_ENCODERS["SDXL"].items()}
    # One that no configuration is derived from: the last of a layer.
    lost = [name for name in tensors if name.startswith(own[part]) and name.endswith("bias")][-1]
    kept = tensors.pop(lost)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(LoadError, match=rf"lacks 1 of the tensors that its {part} needs \({lost}"):
        load(tmp_path / "x.safetensors")

    tensors[lost] = torch.cat([kept, kept])
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(LoadError, match=rf"has 1 tensors of other shapes than its {part} needs"):
        load(tmp_path / "x.safetensors")


def test_what_a_model_predicts_is_read_from_the_file_or_asked_for(tmp_path):
    def told(name="SDXL", option=None, metadata=None, **markers):
        return prediction("--pipe x", header_of(markers, tmp_path, metadata), name, option)

    assert told() == told("SD1.5") == ("epsilon", False)
    assert told(v_pred=()) == ("v_prediction", False)
    assert told(v_pred=(), ztsnr=()) == ("v_prediction", True)
    assert told(option="epsilon", v_pred=(), ztsnr=()) == ("epsilon", False)
    assert told(option="v_prediction", ztsnr=()) == ("v_prediction", True)
    for stated, expected in (("v", "v_prediction"), ("epsilon", "epsilon")):
        assert told("SD2.1", metadata={"modelspec.prediction_type": stated}).type == expected
    for stated, expected in (("768-v", "v_prediction"), ("512", "epsilon")):
        metadata = {"modelspec.architecture": f"stable-diffusion-v2-{stated}"}
        assert told("SD2.1", metadata=metadata).type == expected
    for metadata in ({}, {"modelspec.prediction_type": "nonsense"}):
        with pytest.raises(ConfigurationError, match="give --prediction_type v_prediction"):
            told("SD2.1", metadata=metadata)


@pytest.mark.parametrize("sched", ["DDIM", "DPM-Solver++", "UniPC"])
def test_zero_terminal_snr_reaches_every_scheduler(files, tmp_path, load, sched):
    tensors = load_file(files / "SDXL.safetensors") | {
        marker: torch.zeros(0) for marker in ("v_pred", "ztsnr")
    }
    save_file(tensors, tmp_path / "x.safetensors")

    pipe, _ = load(tmp_path / "x.safetensors", sched=sched)

    config = pipe.scheduler.config
    assert config.prediction_type == "v_prediction"
    assert config.rescale_betas_zero_snr and config.timestep_spacing == "trailing"


def test_sd2_of_512_pixels_is_another_model(files, settings_for):
    path = str(files / "SD2.1.safetensors")
    settings = settings_for(pipe=path, prediction_type="epsilon")
    pipe, source = load_pipeline(settings, LOG)
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert describe_workload(pipe, settings, source).height == 512
    with pytest.raises(ConfigurationError, match="is of SD2.x, of which there are two kinds"):
        check_file(settings_for(pipe=path))


def test_what_an_original_file_holds_besides_is_ignored(files, tmp_path, settings_for):
    """The last layer that SD2.x skips, weights of the training, numbers of the noise schedule."""
    layer = "cond_stage_model.model.transformer.resblocks."
    tensors = load_file(files / "SD2.1.safetensors")
    for name, tensor in list(tensors.items()):
        if name.startswith(f"{layer}1."):
            tensors[name.replace(f"{layer}1.", f"{layer}23.")] = tensor.clone()
    tensors |= {"model_ema.decay": torch.zeros(()), "betas": torch.zeros(1000)}
    tensors |= {"cond_stage_model.model.text_projection": torch.zeros(64, 64)}
    save_file(tensors, tmp_path / "x.safetensors")
    settings = settings_for(pipe=str(tmp_path / "x.safetensors"), prediction_type="v_prediction")

    pipe, _ = load_pipeline(settings, LOG)

    assert pipe.text_encoder.config.num_hidden_layers == 2


@pytest.mark.parametrize("layers, middle", [(1, True), (1, False), (2, None)])
def test_distilled_models_are_told_by_their_shapes(files, tmp_path, load, layers, middle):
    """BK-SDM has one layer a block and maybe no middle, SSD-1B unlike depths up and down."""
    from diffusers import UNet2DConditionModel

    base = json.loads((files / "SDXL" / "unet" / "config.json").read_text())
    base |= {"layers_per_block": layers}
    if middle is False:
        base |= {"mid_block_type": None}
    if middle is None:
        base |= {
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [1, [2, 2], [4, 4]],
            "reverse_transformer_layers_per_block": [[4, 4, 6], [2, 1, 1], 1],
        }
    folder = tmp_path / "SDXL"
    shutil.copytree(files / "SDXL", folder)
    unet = UNet2DConditionModel.from_config(base)
    unet.save_pretrained(folder / "unet")
    path = write_single_file(tmp_path / "SDXL.safetensors", folder, "SDXL")

    pipe, _ = load(path)

    state = pipe.unet.state_dict()
    assert state.keys() == unet.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in unet.state_dict().items())
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 192)
    added = {"text_embeds": torch.randn(1, 128), "time_ids": torch.zeros(1, 6)}
    with torch.no_grad():
        mine, theirs = (
            one(x, 5, text, added_cond_kwargs=added).sample for one in (pipe.unet, unet.eval())
        )
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_half_precision_and_another_vae(files, load, caplog):
    path = files / "SD1.5.safetensors"
    half, source = load(path, dtype="float16")
    assert {half.unet.dtype, half.vae.dtype, half.text_encoder.dtype} == {torch.float16}
    assert source.half_parts == () and not caplog.records
    other, source = load(path, vae=str(files / "SD2.1" / "vae"))
    expected = load_file(files / "SD2.1" / "vae" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(
        other.vae.state_dict()["decoder.conv_in.bias"], expected["decoder.conv_in.bias"]
    )
    assert source.vae.name.startswith("vae@")
    with pytest.raises(LoadError, match="latents are scaled by 0.13025, those of"):
        load(path, vae=str(files / "SDXL" / "vae"))


def test_a_file_of_half_precision_is_rounded_with_a_warning(files, tmp_path, load, caplog):
    tensors = {k: v.half() for k, v in load_file(files / "SD1.5.safetensors").items()}
    save_file(tensors, tmp_path / "x.safetensors")
    pipe, source = load(tmp_path / "x.safetensors", dtype="float32")
    assert pipe.unet.dtype is torch.float32
    assert set(source.half_parts) == {"unet", "vae", "text_encoder"}
    assert "so --dtype float32 computes with rounded weights" in caplog.text


TEXTS = [
    *PROMPTS, "a photo of a cat", "Ein Bär mit Öl, 3.5€ – naïve café!", "", "!", "hello!!",
    "it's  don't\tx\n", "日本語のテキスト", "😀 emoji", "UPPER lower MiXeD", "a" * 300,
    "word " * 200, "<|endoftext|>", "1,234.56", "under_score @user #tag http://a.b/c?d=e&f=%20",
    "don’t “quote”",
]  # fmt: skip


def test_the_tokenizers_are_clips(files):
    from open_clip.tokenizer import SimpleTokenizer, basic_clean

    theirs, compared = SimpleTokenizer(), 0
    for name, pads in PADS.items():
        for part, pad in pads.items():
            made = clip_tokenizer(pad)
            assert len(made) == 49408 and made.model_max_length == 77
            assert (made.bos_token_id, made.eos_token_id) == (49406, 49407)
            assert made.pad_token_id == {"!": 0}.get(pad, 49407)
            assert (name, pad) in {
                ("SD1.5", made.eos_token), ("SDXL", made.eos_token), ("SD2.1", "!"), ("SDXL", "!"),
            }  # fmt: skip
            again = type(made).from_pretrained(files / name / part)
            assert made(TEXTS).input_ids == again(TEXTS).input_ids
            for text in TEXTS:
                # transformers repairs no Unicode; marks are words of their own to it, and so is
                # the token that fills up.
                if basic_clean(text) != text.strip() or pad in text or "<|" in text:
                    continue
                compared += 1
                ids = made(text, truncation=True, padding="max_length").input_ids
                expected = theirs(text)[0].tolist()
                count = expected.index(49407) + 1
                assert ids[:count] == expected[:count], text
                assert set(ids[count:]) <= {made.pad_token_id}
    assert compared > 40


def test_any_header_is_described_or_refused(files, tmp_path):
    """Tensors of the wrong shapes, with others missing or beside them."""
    chance = random.Random(0)  # noqa: S311
    whole = read_header("x", files / "SDXL.safetensors").tensors
    # Those that configurations are derived from, and some others.
    telling = [name for name in whole if re.search(r"embedd|0\.0\.|out\.2|conv1|to_k|fc1", name)]
    refused = 0
    for _ in range(200):
        tensors = dict(whole)
        for name in chance.sample(telling, chance.choice([1, 1, 5])):
            shape = tuple(chance.choice([0, 1, 8, 2**40]) for _ in range(chance.randrange(5)))
            tensors[name] = Tensor(shape, chance.choice(["F16", "F8_E4M3"]))
        for beginning in chance.sample(telling, chance.choice([0, 1])):
            start = beginning[: chance.randrange(1, len(beginning))]
            tensors = {name: each for name, each in tensors.items() if not name.startswith(start)}
        tensors[f"{UNET}input_blocks.{'9' * chance.choice([1, 30, 5000])}.0.x"] = Tensor((), "F16")
        header = Header(tmp_path / "x.safetensors", tensors, {})
        try:
            configs("x", header, architecture("x", header), Prediction("epsilon", False))
        except LoadError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 20 < refused < 200
