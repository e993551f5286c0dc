"""What is loaded once, and the evaluators made of it."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline

from accel_search.api import load_best
from accel_search.core.candidate import Candidate
from accel_search.errors import ConfigurationError, OutOfMemoryError
from accel_search.runtime.loading import random_weights
from accel_search.runtime.workbench import Workbench, limit_memory
from accel_search.settings import Settings
from accel_search.storage import digests
from tests.support.making import vocabulary_of
from tests.support.results import GRID, searched

LOG = logging.getLogger("tests.workbench")
TOME = Candidate({"tome": {"ratio": 0.5, "max_downsample": 1}})


@pytest.fixture
def small(monkeypatch):
    """Make SD1.5's architecture a few channels wide."""
    tiny = random_weights._tiny(random_weights.PUBLISHED["SD1.5"])
    monkeypatch.setitem(random_weights.PUBLISHED, "SD1.5", tiny)
    return {
        "pipe": "SD1.5", "device": "cpu", "threads": 1, "steps": 4, "batch_size": 2,
        "latency_only": True, "timing_pairs": 1,
    }  # fmt: skip


def test_without_scoring_nothing_is_fetched_and_what_is_measured_says_so(small):
    evaluator = Workbench(Settings(**small), LOG).evaluator(Settings(**small))
    assert evaluator.provenance.model_id.endswith("stable-diffusion-v1-5 (random weights)")
    assert evaluator.provenance.clip_model is None and evaluator.provenance.revision is None
    baseline, measured = evaluator.baseline(), evaluator.measure(TOME, pairs=1)
    assert baseline.scores == measured.scores == measured.psnr == ()
    assert len(measured.baseline_seconds_per_image) == 1
    evaluator.check()


def test_one_load_serves_other_schedulers_steps_and_sizes(small):
    bench = Workbench(Settings(**small), LOG)
    other = Settings(**small | {"sched": "UniPC", "steps": 6, "height": 128, "width": 128})
    first, second = bench.evaluator(Settings(**small)), bench.evaluator(other)
    assert first.workload.scheduler_class == "DDIMScheduler"
    assert second.workload.scheduler_class == "UniPCMultistepScheduler"
    assert (second.workload.unet_calls, second.workload.height) == (6, 128)
    # Back again, from the pipeline's own configuration.
    assert bench.evaluator(Settings(**small)).workload == first.workload


def test_what_was_loaded_is_told_by_its_content(settings_for, made, tmp_path):
    """Weights and configurations replaced in place, under the same names and of the same size."""
    folder = shutil.copytree(made / "sd", tmp_path / "sd")

    def provenance(**changes):
        settings = settings_for(pipe=str(folder), num_samples=4, held_out_samples=2, **changes)
        return Workbench(settings, LOG).evaluator(settings).provenance

    first = provenance()
    assert first.weights and provenance().identity() == first.identity()
    assert first.scheduler["beta_schedule"] == "scaled_linear"
    assert provenance(sched="UniPC").weights == first.weights
    for part, change in (
        ("unet/diffusion_pytorch_model.safetensors", _nudged),
        (f"tokenizer/{vocabulary_of(folder).name}", lambda content: content + b"\n"),
        ("text_encoder/config.json", lambda content: content.replace(b"quick_gelu", b"gelu")),
    ):
        before = (folder / part).read_bytes()
        (folder / part).write_bytes(change(before))
        assert (folder / part).read_bytes() != before
        assert provenance().differences(first.as_dict()) == ["weights"]
        (folder / part).write_bytes(before)
    config = folder / "scheduler" / "scheduler_config.json"
    options = json.loads(config.read_text())
    config.write_text(json.dumps(options | {"timestep_spacing": "trailing"}))
    changed = provenance()
    assert changed.differences(first.as_dict()) == ["scheduler"]
    assert changed.scheduler["timestep_spacing"] == "trailing"


def test_a_pipeline_gets_the_result_of_its_weights_and_options(
    settings_for, made, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(digests, "SETTLED_NS", -1)
    folder, path = shutil.copytree(made / "sd", tmp_path / "sd"), tmp_path / "f.json"
    settings = settings_for(pipe=str(folder), num_samples=4, held_out_samples=2)
    here = Workbench(settings, LOG).evaluator(settings).provenance
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    own = searched(path, GRID(), here)
    assert load_best(path, pipe, scheduler="DDIM") == own.settings
    assert not caplog.records
    # Measured later, with all else equal: of other weights, or another noise schedule.
    for others in ({"weights": "0" * 16}, {"scheduler": {"timestep_spacing": "trailing"}}):
        late = replace(here, date="2100-01-01T00:00:00+00:00", **others)
        slow = searched(path, GRID(), late, truth=lambda _: (1.2, 0.0))
        assert slow.settings != own.settings == load_best(path, pipe, scheduler="DDIM")
    assert not caplog.records
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(_nudged(weights.read_bytes()))
    load_best(path, pipe, scheduler="DDIM")
    assert "other weights than the pipeline's folder holds now" in caplog.text


def _nudged(content):
    """Return weights with another last number."""
    return content[:-1] + bytes([content[-1] ^ 1])


def test_weights_that_do_not_fit_are_told_with_the_bytes(small, monkeypatch):
    def starved(*arguments):
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB. … of which 1.00 GiB is free.")

    monkeypatch.setattr(random_weights, "_part", starved)
    with pytest.raises(OutOfMemoryError, match="SD1.5: its weights do not fit cpu") as error:
        Workbench(Settings(**small), LOG)
    assert (error.value.bytes_asked, error.value.bytes_free) == (2**31, 2**30)


def test_memory_is_limited_on_a_gpu_only(small):
    limit_memory(None, torch.device("cpu"))
    with pytest.raises(ConfigurationError, match="--memory_limit 2: limits a CUDA device"):
        Workbench(Settings(**small | {"memory_limit": 2.0}), LOG)
