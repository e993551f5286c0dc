"""The three published repositories, file by file, at a width of a few channels.

Names, layout, schedulers and old names of tensors are those of the hub; what must not be fetched
has content that nothing can read.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from scripts.make_random_pipeline import write_pipeline

from accel_search.errors import LoadError
from accel_search.runtime.loading.pipeline_folder import HUB_IDS
from accel_search.runtime.loading.pipelines import describe_workload, load_pipeline
from tests.support.generation import generate
from tests.support.hub import Repository
from tests.support.pipelines import LOG, prompt_set

WORDS = ["merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"]
SCHEDULE = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def both(name: str, suffix: str = "safetensors") -> list[str]:
    return [f"{name}.{suffix}", f"{name}.fp16.{suffix}"]


def everything(name: str, pickles: str | None = None) -> list[str]:
    return ["config.json", *both(name), *(both(pickles, "bin") if pickles else [])]


DIFFUSERS, PICKLES = "diffusion_pytorch_model", "pytorch_model"
OTHERS = ["model.onnx", "model.onnx_data", "openvino_model.bin", "openvino_model.xml"]
FILES: dict[str, dict[str, list[str]]] = {
    "SD1.5": {
        "": [
            ".gitattributes", "README.md", "v1-5-pruned-emaonly.ckpt",
            "v1-5-pruned-emaonly.safetensors", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors",
            "v1-inference.yaml", "model_index.json",
        ],
        "feature_extractor": ["preprocessor_config.json"],
        "safety_checker": everything("model", PICKLES),
        "scheduler": ["scheduler_config.json"],
        "text_encoder": everything("model", PICKLES),
        "tokenizer": WORDS,
        "unet": [
            *everything(DIFFUSERS, DIFFUSERS),
            f"{DIFFUSERS}.non_ema.bin", f"{DIFFUSERS}.non_ema.safetensors",
        ],
        "vae": everything(DIFFUSERS, DIFFUSERS),
    },
    "SD2.1": {
        "": [
            ".gitattributes", "README.md", "model_index.json", "v2-1_768-ema-pruned.ckpt",
            "v2-1_768-ema-pruned.safetensors", "v2-1_768-nonema-pruned.ckpt",
            "v2-1_768-nonema-pruned.safetensors",
        ],
        "feature_extractor": ["preprocessor_config.json"],
        "scheduler": ["scheduler_config.json"],
        "text_encoder": everything("model", PICKLES),
        "tokenizer": WORDS,
        "unet": everything(DIFFUSERS, DIFFUSERS),
        "vae": everything(DIFFUSERS, DIFFUSERS),
    },
    "SDXL": {
        "": [
            ".gitattributes", "01.png", "LICENSE.md", "README.md", "comparison.png",
            "model_index.json", "pipeline.png", "sd_xl_base_1.0.safetensors",
            "sd_xl_base_1.0_0.9vae.safetensors", "sd_xl_offset_example-lora_1.0.safetensors",
        ],
        "scheduler": ["scheduler_config.json"],
        "text_encoder": [*everything("model"), "flax_model.msgpack", *OTHERS],
        "text_encoder_2": [*everything("model"), "flax_model.msgpack", *OTHERS],
        "tokenizer": WORDS,
        "tokenizer_2": WORDS,
        "unet": [*everything(DIFFUSERS), "diffusion_flax_model.msgpack", *OTHERS],
        "vae": everything(DIFFUSERS),
        "vae_1_0": everything(DIFFUSERS),
        "vae_decoder": ["config.json", *OTHERS],
        "vae_encoder": ["config.json", *OTHERS],
    },
}  # fmt: skip
INDICES: dict[str, dict[str, object]] = {
    "SD1.5": {
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
    },
    "SD2.1": {
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
    },
    "SDXL": {
        "force_zeros_for_empty_prompt": True,
        "add_watermarker": None,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    },
}
"""What `model_index.json` says beside the parts that all three have."""
SCHEDULERS: dict[str, dict[str, object]] = {
    "SD1.5": {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0"},
    "SD2.1": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "SDXL": {
        "_class_name": "EulerDiscreteScheduler",
        "interpolation_type": "linear",
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
}
NO_SCALE = ("SD1.5", "SD2.1")
"""Their VAEs are older than the entries `scaling_factor` and `force_upcast`."""
OLD_NAMES = {
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "to_out.0": "proj_attn",
}
"""Of the attention in their VAEs, now -> then."""


def _old_text(weights: Path) -> None:
    """Name tensors as transformers 4 did, and add the buffer that it saved."""
    tensors = {
        name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": each
        for name, each in load_file(weights).items()
    }
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, weights, metadata={"format": "pt"})


def _old_vae(weights: Path) -> None:
    tensors = {}
    for name, tensor in load_file(weights).items():
        old = name
        for now, then in OLD_NAMES.items():
            old = old.replace(f".{now}.", f".{then}.")
        tensors[old] = tensor
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, weights, metadata={"format": "pt"})


def _old_words(folder: Path) -> None:
    """Write a tokenizer as its vocabulary and merges, as before there was `tokenizer.json`."""
    if not (folder / "tokenizer.json").exists():
        return  # transformers 4 wrote it so.
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    pairs = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    (folder / "tokenizer.json").unlink()
    _edit(folder / "tokenizer_config.json", tokenizer_class="CLIPTokenizer")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    marks = ("bos_token", "eos_token", "unk_token", "pad_token")
    _edit(folder / "special_tokens_map.json", **{mark: config[mark] for mark in marks})


def _edit(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def publish(folder: Path, name: str) -> Path:
    """Write a tiny pipeline as its repository on the hub is."""
    write_pipeline(folder, name, fp16=True)
    for tokenizer in folder.glob("tokenizer*"):
        _old_words(tokenizer)
    for encoder in folder.glob("text_encoder*"):
        for weights in encoder.glob("*.safetensors"):
            _old_text(weights)
        _edit(encoder / "config.json", torch_dtype="float16" if name == "SDXL" else "float32")
    if name in NO_SCALE:
        for weights in (folder / "vae").glob("*.safetensors"):
            _old_vae(weights)
        config = folder / "vae" / "config.json"
        kept = json.loads(config.read_text())
        config.write_text(
            json.dumps(
                {k: v for k, v in kept.items() if k not in ("scaling_factor", "force_upcast")}
            )
        )
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(SCHEDULE | SCHEDULERS[name])
    )
    unused = ("feature_extractor", "image_encoder", "safety_checker", "requires_safety_checker")
    index = json.loads((folder / "model_index.json").read_text())
    index = {key: value for key, value in index.items() if key not in unused}
    (folder / "model_index.json").write_text(json.dumps(index | INDICES[name]))
    for part, names in FILES[name].items():
        (folder / part).mkdir(exist_ok=True)
        for file in names:
            if not (folder / part / file).exists():
                (folder / part / file).write_bytes(b"never to be fetched")
        for file in (folder / part).iterdir():
            if file.is_file() and file.name not in names:
                file.unlink()
    return folder


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    for name in HUB_IDS:
        publish(folder / name, name)
        write_pipeline(folder / f"{name}-plain", name)
    return folder


def needed(name: str, half: bool) -> set[str]:
    """What is to be fetched of a repository, spelled out."""
    variant = ".fp16" * half
    texts, words = ["text_encoder"], ["tokenizer"]
    if name == "SDXL":
        texts, words = [*texts, "text_encoder_2"], [*words, "tokenizer_2"]
    return {
        "model_index.json",
        "scheduler/scheduler_config.json",
        *(f"{part}/config.json" for part in ("unet", "vae", *texts)),
        *(f"{part}/diffusion_pytorch_model{variant}.safetensors" for part in ("unet", "vae")),
        *(f"{part}/model{variant}.safetensors" for part in texts),
        *(f"{part}/{file}" for part in words for file in WORDS),
    }


def arrived(snapshot: Path) -> set[str]:
    return {file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", HUB_IDS)
def test_a_published_repository_is_fetched_and_loaded(served, published, settings_for, name, dtype):
    served.repositories[HUB_IDS[name]] = Repository(published / name)
    settings = settings_for(pipe=name, dtype=dtype, steps=2)

    pipe, folder = load_pipeline(settings, LOG)

    half = dtype == "float16"
    # SDXL's two tokenizers share files here, which are fetched once.
    assert set(served.fetched()) <= needed(name, half) == arrived(folder.path)
    assert len(served.fetched()) == len(set(served.fetched()))
    assert bool(folder.half_parts) is half
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(parts) == (4 if name == "SDXL" else 3)
    assert {each.dtype for part in parts for each in part.parameters()} == {getattr(torch, dtype)}
    assert getattr(pipe, "safety_checker", None) is None
    assert pipe.feature_extractor is None and pipe.image_encoder is None
    v_prediction = name == "SD2.1"
    kind = "v_prediction" if v_prediction else "epsilon"
    assert pipe.scheduler.config.prediction_type == kind
    assert pipe.scheduler.config.steps_offset == 1
    if name == "SDXL":
        assert pipe.vae.config.force_upcast and pipe.watermark is None
        assert pipe.config.force_zeros_for_empty_prompt
    assert pipe.vae.config.scaling_factor == (0.13025 if name == "SDXL" else 0.18215)
    image = generate(pipe, describe_workload(pipe, settings, folder), prompt_set(1).search)
    assert image.amin() < image.amax()


@pytest.mark.parametrize("name", HUB_IDS)
def test_old_names_of_tensors_and_words_are_the_same_pipeline(
    served, published, settings_for, name
):
    served.repositories[HUB_IDS[name]] = Repository(published / name)
    pipe, _ = load_pipeline(settings_for(pipe=name), LOG)
    plain, _ = load_pipeline(settings_for(pipe=str(published / f"{name}-plain")), LOG)

    for part, expected in plain.components.items():
        if isinstance(expected, torch.nn.Module):
            mine = getattr(pipe, part).state_dict()
            for key, value in expected.state_dict().items():
                assert torch.equal(mine[key], value), (part, key)
    texts = ["a large red ring", "Two small, blue stars!"]
    for tokenizer in [each for each in plain.components if each.startswith("tokenizer")]:
        mine = getattr(pipe, tokenizer)(texts, padding="max_length")
        assert mine.input_ids == getattr(plain, tokenizer)(texts, padding="max_length").input_ids


def test_a_mirror_without_half_precision_files_serves_too(
    served, published, settings_for, tmp_path
):
    mirror = shutil.copytree(published / "SD2.1", tmp_path / "mirror")
    for file in mirror.rglob("*.fp16.*"):
        file.unlink()
    served.repositories[HUB_IDS["SD2.1"]] = Repository(mirror)

    pipe, folder = load_pipeline(settings_for(pipe="SD2.1", dtype="float16"), LOG)

    assert not folder.half_parts and arrived(folder.path) == needed("SD2.1", half=False)
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float16


@pytest.mark.parametrize("name", HUB_IDS)
def test_a_repository_cloned_into_a_folder_is_loaded_from_it(published, settings_for, name):
    """With all that is beside what is needed, unreadable as it is."""
    pipe, folder = load_pipeline(settings_for(pipe=str(published / name)), LOG)
    assert not folder.half_parts and pipe.unet.dtype is torch.float32


def test_published_weights_that_lack_a_tensor_are_refused(
    served, published, settings_for, tmp_path
):
    copy = shutil.copytree(published / "SDXL", tmp_path / "copy")
    weights = copy / "text_encoder_2" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["text_projection.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    served.repositories[HUB_IDS["SDXL"]] = Repository(copy)
    with pytest.raises(LoadError, match=r"text_encoder_2 lacks 1 of the .* \(text_projection\.w"):
        load_pipeline(settings_for(pipe="SDXL"), LOG)
