"""Loading: what comes out, and one clear line for everything that cannot be loaded."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from accel_search.errors import ConfigurationError, ExitCode, LoadError, OutOfMemoryError
from accel_search.runtime import devices
from accel_search.runtime.loading import pipeline_folder
from accel_search.runtime.loading import weight_files as weights
from accel_search.runtime.loading.pipelines import (
    attention_downsamples,
    describe_workload,
    load_pipeline,
    timesteps,
)
from tests.support import making
from tests.support.pipelines import LOG


@pytest.mark.parametrize(
    "kind, class_name, downsamples, guidance",
    [
        ("sd", "StableDiffusionPipeline", (1, 2, 4), 7.5),
        ("sdxl", "StableDiffusionXLPipeline", (2,), 5.0),
    ],
)
def test_a_folder_is_loaded_and_described(loaded, kind, class_name, downsamples, guidance):
    pipe, workload = loaded(kind)

    assert type(pipe).__name__ == workload.pipeline_class == class_name
    assert workload.attention_downsamples == downsamples
    assert workload.guidance_scale == guidance
    assert (workload.height, workload.width) == (32, 32)
    assert (workload.latent_height, workload.latent_width) == (16, 16)
    assert (workload.device, workload.dtype) == ("cpu", "float32")
    assert workload.steps == workload.unet_calls == 3
    assert not pipe.unet.training
    assert not any(p.requires_grad for p in pipe.unet.parameters())
    assert pipe._progress_bar_config == {"disable": True}


@pytest.mark.parametrize("name", ["DDIM", "DPM-Solver++", "UniPC"])
def test_the_scheduler_asked_for_is_built_from_the_pipelines_own_config(settings_for, name):
    settings = settings_for(sched=name)

    pipe, folder = load_pipeline(settings, LOG)

    assert type(pipe.scheduler).__name__ == settings.scheduler_class
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"
    # DDIM's own default would clip latents, which the other classes' configurations never say.
    assert not pipe.scheduler.config.get("clip_sample", False)
    before = dict(vars(pipe.scheduler))
    assert describe_workload(pipe, settings, folder).unet_calls == 3
    assert vars(pipe.scheduler) == before


def test_a_second_order_scheduler_makes_more_unet_calls_than_steps():
    from diffusers import HeunDiscreteScheduler

    assert len(timesteps(SimpleNamespace(scheduler=HeunDiscreteScheduler()), 10)) == 19


def test_more_steps_than_the_model_was_trained_with_are_refused(settings_for):
    pipe, folder = load_pipeline(settings_for(), LOG)

    with pytest.raises(ConfigurationError, match=r"--steps 1001.*1000"):
        describe_workload(pipe, settings_for(steps=1001), folder)


def test_attention_only_in_the_mid_block_is_seen():
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
    )

    assert attention_downsamples(unet) == (2,)


def test_size_and_guidance_can_be_given(settings_for, loaded):
    pipe, _ = loaded("sd")
    settings = settings_for(height=64, width=48, guidance_scale=0.0)
    folder = pipeline_folder.find_pipeline(settings, half=False, log=LOG)

    workload = describe_workload(pipe, settings, folder)

    assert (workload.latent_height, workload.latent_width) == (32, 24)
    assert workload.guidance_scale == 0.0


def test_guidance_comes_from_a_demo_json_beside_the_folder(made, tmp_path, settings_for):
    shutil.copytree(made / "sd", tmp_path / "pipeline")
    (tmp_path / "demo.json").write_text('{"default_guidance_scale": 4.0}')
    settings = settings_for(pipe=str(tmp_path / "pipeline"))

    pipe, folder = load_pipeline(settings, LOG)

    assert describe_workload(pipe, settings, folder).guidance_scale == 4.0


def test_half_precision_files_are_loaded_in_the_dtype_asked_for(
    made, tmp_path, settings_for, caplog
):
    # transformers alone would take the text encoder's dtype from its weights.
    pipe, _ = load_pipeline(settings_for(dtype="float16"), LOG)
    pipe.save_pretrained(tmp_path, variant="fp16")

    pipe, folder = load_pipeline(settings_for(pipe=str(tmp_path)), LOG)

    assert folder.half_parts == ("vae", "text_encoder", "unet")
    assert "its vae, text_encoder, unet has only half-precision files" in caplog.text
    dtypes = {p.dtype for m in (pipe.unet, pipe.vae, pipe.text_encoder) for p in m.parameters()}
    assert dtypes == {torch.float32}


@pytest.mark.parametrize(
    "files, half, expected",
    [
        (["model.safetensors", "model.fp16.safetensors"], True, "fp16"),
        (["model.safetensors", "model.fp16.safetensors"], False, None),
        (["model.fp16.safetensors"], False, "fp16"),
        (["model.safetensors"], True, None),
        (["model.fp16-00001-of-00002.safetensors", "model.safetensors"], True, "fp16"),
        (["model.safetensors", "model.non_ema.fp16.safetensors"], True, None),
        (["model.safetensors", "model-00001-of-00001.fp16.safetensors"], True, "fp16"),
        (["model.safetensors", "model.fp16-00001-of-1.fp16.safetensors"], True, None),
    ],
)
def test_the_half_precision_variant_is_chosen_where_it_serves(files, half, expected):
    assert weights.choose_variant(files, half) == expected


def test_a_safety_checker_is_left_out_and_said_so(made, tmp_path, settings_for, caplog):
    shutil.copytree(made / "sd", tmp_path / "sd")
    index = tmp_path / "sd" / "model_index.json"
    entry = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | entry))

    with caplog.at_level(logging.INFO, LOG.name):
        pipe, _ = load_pipeline(settings_for(pipe=str(tmp_path / "sd")), LOG)

    assert pipe.safety_checker is None
    assert [r.message for r in caplog.records if "safety checker" in r.message] != []


@pytest.mark.parametrize("value", [None, [None, None], [], "x", {"a": 1}, ["transformers", "Any"]])
def test_parts_that_are_not_used_are_not_needed(made, tmp_path, settings_for, value):
    folder = shutil.copytree(made / "sd", tmp_path / "sd")
    unused = ("safety_checker", "feature_extractor", "image_encoder", "something_new")
    _edit(folder / "model_index.json", **dict.fromkeys(unused, value))

    pipe, _ = load_pipeline(settings_for(pipe=str(folder)), LOG)

    assert [pipe.safety_checker, pipe.feature_extractor, pipe.image_encoder] == [None] * 3
    index = json.loads((folder / "model_index.json").read_text())
    kept = {key: each for key, each in index.items() if key not in unused}
    (folder / "model_index.json").write_text(json.dumps(kept))
    load_pipeline(settings_for(pipe=str(folder)), LOG)


@pytest.mark.parametrize("value", [True, False, None, "yes"])
def test_what_sdxl_makes_of_an_empty_prompt_is_as_its_index_says(
    made, tmp_path, settings_for, value
):
    folder = shutil.copytree(made / "sdxl", tmp_path / "sdxl")
    _edit(folder / "model_index.json", force_zeros_for_empty_prompt=value)

    pipe, _ = load_pipeline(settings_for(pipe=str(folder)), LOG)

    assert pipe.config.force_zeros_for_empty_prompt is (value is not False)
    assert pipe.watermark is None


@pytest.mark.parametrize("half", [True, False])
def test_shards_are_read_whichever_way_their_variant_is_named(
    made, loaded, tmp_path, settings_for, half
):
    folder = shutil.copytree(made / "sd", tmp_path / "sd")
    for part in ("unet", "text_encoder"):
        _in_shards(folder, half, part)

    pipe, found = load_pipeline(settings_for(pipe=str(folder)), LOG)

    assert found.half_parts == (("text_encoder", "unet") if half else ())
    whole, _ = loaded("sd")
    for part in ("unet", "text_encoder"):
        expected = getattr(whole, part).state_dict()
        state = getattr(pipe, part).state_dict()
        assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_a_pipeline_made_here_is_diffusers_own(made, loaded, settings_for):
    import diffusers

    for kind in ("sd", "sdxl"):
        pipe, _ = loaded(kind)
        theirs = getattr(diffusers, type(pipe).__name__).from_pretrained(str(made / kind))
        assert set(pipe.components) == set(theirs.components)
        for name, part in theirs.components.items():
            assert type(getattr(pipe, name)) is type(part) or name == "scheduler"
            if isinstance(part, torch.nn.Module):
                mine = getattr(pipe, name).state_dict()
                assert all(
                    torch.equal(mine[key], value) for key, value in part.state_dict().items()
                )
        assert {**pipe.config, "scheduler": None} == {**theirs.config, "scheduler": None}


def test_a_failure_leaves_torchs_own_dtype(made, tmp_path, settings_for):
    folder = shutil.copytree(made / "sd", tmp_path / "sd")
    _edit(folder / "unet" / "config.json", block_out_channels=[8, 15, 16])
    with pytest.raises(LoadError, match="could not be loaded"):
        load_pipeline(settings_for(pipe=str(folder), dtype="float16"), LOG)
    assert torch.get_default_dtype() is torch.float32


def test_loading_leaves_logging_as_it_was(settings_for, capfd):
    root = logging.getLogger()
    before = root.level, list(root.handlers)

    load_pipeline(settings_for(), LOG)

    assert (root.level, list(root.handlers)) == before
    assert capfd.readouterr() == ("", "")


# Broken folders


def _edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _pickle_only(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_suffix(".bin").write_bytes(pickle.dumps({}))


def _in_shards(folder: Path, half: bool = False, part: str = "unet") -> Path:
    """Split a component's weights in two, and return the index."""
    from safetensors.torch import load_file, save_file

    name = "diffusion_pytorch_model" if part == "unet" else "model"
    whole = folder / part / f"{name}.safetensors"
    tensors = load_file(whole)
    shards = [f"{name}-0000{i}-of-00002{'.fp16' * half}.safetensors" for i in (1, 2)]
    weight_map = {key: shards[place % 2] for place, key in enumerate(sorted(tensors))}
    for shard in shards:
        kept = {key: tensors[key] for key in tensors if weight_map[key] == shard}
        save_file(kept, folder / part / shard, metadata={"format": "pt"})
    whole.unlink()
    index = folder / part / f"{name}.safetensors.index{'.fp16' * half}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def _rename_in_index(index: Path, change) -> None:
    content = json.loads(index.read_text())
    content["weight_map"] = change(content["weight_map"])
    index.write_text(json.dumps(content))


def _shard_missing(folder: Path) -> None:
    _in_shards(folder)
    (folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def _index_missing(folder: Path) -> None:
    _in_shards(folder).unlink()


def _shard_cut_off(folder: Path) -> None:
    _in_shards(folder, part="text_encoder")
    shard = folder / "text_encoder" / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def _shard_elsewhere(folder: Path) -> None:
    _rename_in_index(_in_shards(folder), lambda tensors: tensors | {"x": "../vae/x.safetensors"})


def _tensor_in_no_shard(folder: Path) -> None:
    index = _in_shards(folder)
    shard = json.loads(index.read_text())["weight_map"]["conv_in.bias"]
    making.without(index.parent / shard, "conv_in.bias")


def _truncate(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def _lacks_tensors(folder: Path, part: str, *tensors: str) -> None:
    (weights,) = (folder / part).glob("*.safetensors")
    making.without(weights, *tensors)


NESTED = "text_model." if hasattr(making.make_text_encoder(), "text_model") else ""
"""Begins the names of a text encoder's tensors in transformers 4."""
QUERIES = [
    f"{NESTED}encoder.layers.{i}.self_attn.q_proj.{kind}"
    for i in (0, 1)
    for kind in ("bias", "weight")
]

BROKEN = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "no diffusers pipeline"),
    "broken index": (lambda f: (f / "model_index.json").write_text("{"), "cannot be read"),
    "index is a list": (
        lambda f: (f / "model_index.json").write_text("[]"),
        "expected an object, not '[]'",
    ),
    "other class": (
        lambda f: _edit(f / "model_index.json", _class_name="FluxPipeline"),
        "'FluxPipeline'; only StableDiffusionPipeline and StableDiffusionXLPipeline",
    ),
    "class of a custom pipeline": (
        lambda f: _edit(f / "model_index.json", _class_name=["mine", "MyPipeline"]),
        "only StableDiffusionPipeline",
    ),
    "component of another library": (
        lambda f: _edit(f / "model_index.json", unet=["os", "system"]),
        "never a repository's own code",
    ),
    "component of no class": (
        lambda f: _edit(f / "model_index.json", unet=["diffusers", "UNet9DModel"]),
        "its unet is diffusers.UNet9DModel, which is no UNet2DConditionModel of diffusers 0.",
    ),
    "component of another kind": (
        lambda f: _edit(f / "model_index.json", scheduler=["diffusers", "AutoencoderKL"]),
        "its scheduler is AutoencoderKL, which is no scheduler of diffusers",
    ),
    "null component": (
        lambda f: _edit(f / "model_index.json", text_encoder=[None, None]),
        "model_index.json names no text_encoder, which a StableDiffusionPipeline is made with",
    ),
    "component is a text": (
        lambda f: _edit(f / "model_index.json", vae="AutoencoderKL"),
        "model_index.json says 'AutoencoderKL' of its vae, not a library and a class",
    ),
    "component of one word": (
        lambda f: _edit(f / "model_index.json", vae=["diffusers"]),
        "of its vae, not a library and a class",
    ),
    "config is a list": (
        lambda f: (f / "unet" / "config.json").write_text('["me/other"]'),
        "config.json: expected an object",
    ),
    "text encoder without tensors": (
        lambda f: _lacks_tensors(f, "text_encoder", *QUERIES),
        f"text_encoder lacks 4 of the tensors that its config.json asks for ({QUERIES[0]}, ",
    ),
    "UNet without a tensor": (
        lambda f: _lacks_tensors(f, "unet", "conv_in.bias"),
        "unet lacks 1 of the tensors that its config.json asks for (conv_in.bias): fetch",
    ),
    "VAE without a tensor": (
        lambda f: _lacks_tensors(f, "vae", "decoder.conv_in.bias"),
        "vae lacks 1 of the tensors that its config.json asks for (decoder.conv_in.bias): fetch",
    ),
    "component with code": (
        lambda f: (f / "unet" / "diffusers.py").write_text("raise SystemExit"),
        "Python code, which is never run",
    ),
    "no component": (lambda f: shutil.rmtree(f / "vae"), "incomplete"),
    "no config": (lambda f: (f / "unet" / "config.json").unlink(), "lacks its config.json"),
    "no scheduler": (
        lambda f: (f / "scheduler" / "scheduler_config.json").unlink(),
        "lacks its scheduler_config.json",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "lacks its tokenizer_config.json"),
    "broken vocabulary": (
        lambda f: making.vocabulary_of(f).write_text('{"model": '),
        ".json cannot be read",
    ),
    "no weights": (
        lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
        "no .safetensors weights",
    ),
    "pickled weights": (_pickle_only, "only pickled weights (diffusion_pytorch_model.bin)"),
    "missing shard": (_shard_missing, "lacks diffusion_pytorch_model-00002-of-00002"),
    "missing index of shards": (_index_missing, "lacks its index of shards"),
    "tensor in no shard": (_tensor_in_no_shard, "unet lacks 1 of the tensors"),
    "shard in another folder": (
        _shard_elsewhere,
        "index.json names the file '../vae/x.safetensors', which is no .safetensors shard",
    ),
    "index that names nothing": (
        lambda f: _in_shards(f).write_text("{}"),
        "index.json lacks weight_map or metadata",
    ),
    "cut-off shard": (
        _shard_cut_off,
        "model-00002-of-00002.safetensors is truncated or corrupt",
    ),
    "cut-off weights": (_truncate, "diffusion_pytorch_model.safetensors is truncated or corrupt"),
    "vocabulary": (
        lambda f: making.vocabulary_of(f).unlink(),
        "tokenizer lacks its vocabulary (tokenizer.json, or vocab.json and merges.txt)",
    ),
    "half a vocabulary": (
        lambda f: making.vocabulary_of(f).rename(f / "tokenizer" / "merges.txt"),
        "tokenizer lacks its vocabulary",
    ),
    "no longest prompt": (
        lambda f: _edit(f / "tokenizer" / "tokenizer_config.json", model_max_length=10**30),
        "gives no model_max_length of up to 24, the tokens that its text encoder takes",
    ),
    "noise of another kind": (
        lambda f: _edit(
            f / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]
        ),
        "its scheduler is FlowMatchEulerDiscreteScheduler, so the model was trained with noise",
    ),
    "flow": (
        lambda f: _edit(
            f / "scheduler" / "scheduler_config.json", prediction_type="flow_prediction"
        ),
        "with prediction_type 'flow_prediction', so the model was trained with noise",
    ),
    "scheduler of words": (
        lambda f: _edit(f / "scheduler" / "scheduler_config.json", beta_start="low"),
        "its scheduler configuration makes no DDIMScheduler (",
    ),
    "weights of another shape": (
        lambda f: _edit(f / "unet" / "config.json", block_out_channels=[8, 16, 32]),
        "could not be loaded",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_clear_line(made, tmp_path, settings_for, name):
    break_it, expected = BROKEN[name]
    shutil.copytree(made / "sd", tmp_path / "sd")
    break_it(tmp_path / "sd")

    with pytest.raises(LoadError) as caught:
        load_pipeline(settings_for(pipe=str(tmp_path / "sd")), LOG)

    message = str(caught.value)
    if making.IS_OLD and "lacks 1 of the tensors" in expected:
        expected = "could not be loaded ("  # diffusers itself raises, and names it or does not.
    assert expected in message
    assert message.startswith(f"--pipe {tmp_path / 'sd'}: ")
    assert "\n" not in message
    assert caught.value.exit_code == ExitCode.NOT_LOADED


def test_each_part_is_read_in_full_precision_where_it_can_be(
    made, loaded, tmp_path, settings_for, caplog
):
    folder = shutil.copytree(made / "sd", tmp_path / "sd")
    for part in ("unet", "vae"):
        whole = getattr(loaded("sd")[0], part)
        copy.deepcopy(whole).half().save_pretrained(folder / part, variant="fp16")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()

    pipe, found = load_pipeline(settings_for(pipe=str(folder)), LOG)

    assert found.half_parts == ("vae",)
    assert "its vae has only half-precision files" in caplog.text
    expected = loaded("sd")[0]
    assert torch.equal(pipe.unet.conv_in.weight, expected.unet.conv_in.weight)
    assert not torch.equal(pipe.vae.quant_conv.weight, expected.vae.quant_conv.weight)


@pytest.mark.skipif(making.IS_OLD, reason="diffusers 0.31 makes no pipeline of it")
def test_a_unet_that_does_not_say_its_size_is_given_one(made, tmp_path, settings_for):
    folder = shutil.copytree(made / "sd", tmp_path / "sd")
    _edit(folder / "unet" / "config.json", sample_size=None)
    settings = settings_for(pipe=str(folder), height=16, width=32)
    pipe, found = load_pipeline(settings, LOG)
    workload = describe_workload(pipe, settings, found)
    assert (workload.height, workload.width) == (16, 32)
    with pytest.raises(ConfigurationError, match=r"has no sample_size: give --height and --width"):
        describe_workload(pipe, replace(settings, width=None), found)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "a/b/c", "/no/where", "~no-one/x"])
def test_a_name_that_is_neither_folder_nor_hub_id(settings_for, name):
    with pytest.raises(LoadError, match=r"no such folder; give demo, SD1.5, SD2.1, SDXL"):
        load_pipeline(settings_for(pipe=name), LOG)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there(settings_for, name):
    with pytest.raises(LoadError, match=rf"--device {name}: .*no CUDA device"):
        load_pipeline(settings_for(device=name), LOG)


def test_weights_that_do_not_fit_the_device(settings_for, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    monkeypatch.setattr("diffusers.StableDiffusionPipeline.to", fail)

    with pytest.raises(OutOfMemoryError, match=r"2,097,152 bytes asked, an unknown number free"):
        load_pipeline(settings_for(), LOG)


def test_threads_default_to_the_cores_this_process_may_use(monkeypatch):
    before = torch.get_num_threads()
    try:
        assert devices.set_threads(1, torch.device("cpu")) == 1
        monkeypatch.setattr(devices, "available_cores", lambda: 3)
        assert devices.set_threads(None, torch.device("cpu")) == 2
    finally:
        torch.set_num_threads(before)


def test_a_containers_share_limits_the_cores(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("250000 100000\n")

    assert devices._cgroup_quota(tmp_path / "cpu.max") == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert devices._cgroup_quota(tmp_path / "cpu.max") is None
    assert devices._cgroup_quota(tmp_path / "absent") is None
    monkeypatch.setattr(devices, "_cgroup_quota", lambda: 1)
    assert devices.available_cores() == 1
