"""What is loaded once, and the evaluators made of it."""

from __future__ import annotations

import logging

import pytest
import torch

from accel_search.core.candidate import Candidate
from accel_search.errors import ConfigurationError, OutOfMemoryError
from accel_search.runtime.loading import random_weights
from accel_search.runtime.workbench import Workbench, limit_memory
from accel_search.settings import Settings

LOG = logging.getLogger("tests.workbench")
TOME = Candidate({"tome": {"ratio": 0.5, "max_downsample": 1}})


@pytest.fixture
def small(monkeypatch):
    """Make SD1.5's architecture a few channels wide."""
    tiny = random_weights._tiny(random_weights._PUBLISHED["SD1.5"])
    monkeypatch.setitem(random_weights._PUBLISHED, "SD1.5", tiny)
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
