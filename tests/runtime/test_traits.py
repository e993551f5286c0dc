"""What each published architecture needs of loading, on tiny pipelines of its own layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scripts.make_random_pipeline import main as make_random_pipeline
from scripts.make_random_pipeline import write_pipeline

from accel_search.accelerators.compose import apply_candidate
from accel_search.core.candidate import Candidate
from accel_search.core.schedulers import SCHEDULERS
from accel_search.errors import ConfigurationError
from accel_search.runtime.devices import execution_device
from accel_search.runtime.loading.pipelines import describe_workload, load_pipeline
from accel_search.runtime.loading.schedulers import build_scheduler
from accel_search.runtime.workbench import Workbench
from tests.support.generation import generate
from tests.support.pipelines import LOG, prompt_set


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("SD1.5", "SD2.1", "SDXL"):
        write_pipeline(folder / name, name)
    return folder


@pytest.mark.parametrize(
    "name, downsamples", [("SD1.5", (1, 2, 4, 8)), ("SD2.1", (1, 2, 4, 8)), ("SDXL", (2, 4))]
)
def test_a_tiny_pipeline_has_the_published_blocks_and_makes_a_picture(
    tiny, settings_for, name, downsamples
):
    settings = settings_for(pipe=str(tiny / name), steps=2)
    pipe, folder = load_pipeline(settings, LOG)
    workload = describe_workload(pipe, settings, folder)

    assert workload.attention_downsamples == downsamples
    assert (workload.height, workload.latent_height) == (64, 8)
    assert pipe.unet.config.use_linear_projection is (name != "SD1.5")
    assert hasattr(pipe, "text_encoder_2") is (name == "SDXL")
    image = generate(pipe, workload, prompt_set(1).search)
    assert image.shape == (1, 3, 64, 64) and image.amin() < image.amax()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_v_prediction_is_kept_under_every_scheduler(tiny, settings_for, name):
    settings = settings_for(pipe=str(tiny / "SD2.1"), sched=name, steps=2)
    pipe, folder = load_pipeline(settings, LOG)
    workload = describe_workload(pipe, settings, folder)
    assert pipe.scheduler.config.prediction_type == "v_prediction"

    # And it is acted on: taken for noise, the same outputs make another picture.
    picture = generate(pipe, workload, prompt_set(1).search)
    pipe.scheduler = build_scheduler(SCHEDULERS[name], folder.scheduler, type(pipe).__name__)
    assert torch.equal(generate(pipe, workload, prompt_set(1).search), picture)
    pipe.scheduler.register_to_config(prediction_type="epsilon")
    assert not torch.allclose(generate(pipe, workload, prompt_set(1).search), picture, atol=1e-2)


@pytest.mark.parametrize("force_upcast", [True, False])
def test_sdxls_vae_is_decoded_in_float32_if_its_config_asks_for_it(
    tiny, settings_for, monkeypatch, tmp_path, force_upcast
):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(tiny / "SDXL" / "vae")
    vae.register_to_config(force_upcast=force_upcast)
    vae.save_pretrained(tmp_path)
    settings = settings_for(pipe=str(tiny / "SDXL"), vae=str(tmp_path), dtype="float16", steps=1)
    pipe, folder = load_pipeline(settings, LOG)
    seen = []
    decode = pipe.vae.decode
    monkeypatch.setattr(
        pipe.vae, "decode", lambda z, **k: seen.append((z.dtype, pipe.vae.dtype)) or decode(z, **k)
    )

    from accel_search.runtime.quiet import quiet_libraries

    with quiet_libraries():
        generate(pipe, describe_workload(pipe, settings, folder), prompt_set(1).search)

    dtype = torch.float32 if force_upcast else torch.float16
    # diffusers 0.31 upcasts the VAE and leaves its first layers in half precision.
    assert seen in ([(dtype, dtype)], [(torch.float16, dtype)])
    assert pipe.vae.dtype == torch.float16


def test_a_replaced_vae_is_part_of_the_provenance(tiny, settings_for):
    settings = settings_for(
        pipe=str(tiny / "SD1.5"), vae=str(tiny / "SD2.1" / "vae"), num_samples=2,
        held_out_samples=0, batch_size=1,
    )  # fmt: skip
    replaced = Workbench(settings, LOG).evaluator(settings).provenance
    plain = replace(replaced, vae=None)
    assert replaced.vae.startswith("vae@")
    assert plain.differences(replaced.as_dict()) == ["vae"]
    # A result from before there was the choice is of the pipeline's own.
    old = {key: value for key, value in plain.as_dict().items() if key not in ("vae", "offload")}
    assert plain.differences(old) == []


# Offloading: accelerate's hooks, with the CPU in the GPU's place (tests/gpu has the real one)


def test_offloading_is_refused_without_a_gpu_before_anything_is_loaded(settings_for):
    with pytest.raises(ConfigurationError, match=r"--offload: .*--device is cpu; leave it out"):
        settings_for(offload=True)
    if not torch.cuda.is_available():
        settings = settings_for(offload=True, device="auto", prompts="nowhere.txt")
        with pytest.raises(ConfigurationError, match=r"--offload: .*but cpu is used"):
            Workbench(settings, LOG)


CANDIDATES = [
    Candidate({"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}),
    Candidate(
        {
            "deepcache": {"cache_interval": 2, "cache_branch_id": 0},
            "tgate": {"gate_step": 5, "sp_interval": 3, "fi_interval": 2, "warmup": 1},
        }
    ),
]


def test_accelerators_work_and_come_off_under_offloading_hooks(tiny, settings_for):
    settings = settings_for(pipe=str(tiny / "SD1.5"), steps=7)
    pipe, folder = load_pipeline(settings, LOG)
    workload, prompts = describe_workload(pipe, settings, folder), prompt_set(1).search
    expected = []
    for candidate in CANDIDATES:
        with apply_candidate(pipe, candidate):
            expected.append(generate(pipe, workload, prompts))
    bare = generate(pipe, workload, prompts)

    pipe.enable_model_cpu_offload(device="cpu")

    assert execution_device(pipe).type == "cpu"
    for candidate, images in zip(CANDIDATES, expected, strict=True):
        with apply_candidate(pipe, candidate):
            # The second time too: diffusers puts its hooks on anew after every call.
            assert torch.equal(generate(pipe, workload, prompts), images), candidate
            assert torch.equal(generate(pipe, workload, prompts), images), candidate
        assert not torch.equal(images, bare)
        assert torch.equal(generate(pipe, workload, prompts), bare), candidate


def test_the_script_writes_what_it_says(tmp_path, capsys):
    out = tmp_path / "sdxl"
    arguments = ["--like", "SDXL", "--out", str(out), "--fp16", "--max_shard_size", "500KB"]
    assert make_random_pipeline([*arguments, "--dtype", "float16"]) == 0

    assert "SDXL, tiny, " in capsys.readouterr().out
    assert len(list((out / "unet").glob("*-of-*.safetensors"))) > 2
    assert (out / "text_encoder_2" / "model.fp16.safetensors").is_file()
    assert sum(file.stat().st_size for file in out.rglob("*.*")) < 10e6
