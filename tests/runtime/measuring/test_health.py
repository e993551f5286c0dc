"""Samples of the machine around calls."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from accel_search.core.candidate import Candidate
from accel_search.core.machine_health import Health
from accel_search.runtime import nvml
from accel_search.runtime.measuring.health import HealthSampler, busy_seconds, other_use
from tests.support.driver import HAS_DRIVER
from tests.support.pipelines import CPU

TOME = Candidate({"tome": {"ratio": 0.5, "max_downsample": 2}})


def sampled(seconds, work):
    """Return the sample of a call that does `work` again and again for so many seconds."""
    sampler = HealthSampler(CPU)
    samples = sampler.begin()
    end = time.monotonic() + seconds
    with sampler.watch():
        while time.monotonic() < end:
            work()
    sampler.keep()
    (sample,) = samples
    return sample


def test_own_work_is_told_from_that_of_others():
    own = sampled(0.5, lambda: sum(range(1000)))
    assert own.own_cores > 0.1 and own.busy_cores > 0.1
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        others = sampled(0.5, lambda: time.sleep(0.05))
    finally:
        burner.kill()
        burner.wait()
    assert others.own_cores < 0.1 < own.own_cores
    assert others.busy_cores - others.own_cores > 0.1
    assert others.cores == psutil.cpu_count()
    # On the CPU no GPU is asked.
    assert (others.sm_mhz, others.watts, others.throttle_reasons) == (None, None, None)


def test_the_machines_load_is_what_psutil_counts():
    psutil.cpu_percent()
    sample = sampled(0.5, lambda: time.sleep(0.05))
    share = psutil.cpu_percent() / 100
    assert sample.busy_cores / sample.cores == pytest.approx(share, abs=0.25)
    # Since the machine started; where it is fully busy, the share above is 1 however it is counted.
    idle = psutil.cpu_times().idle
    assert busy_seconds() <= sum(psutil.cpu_times()) - idle


def test_only_calls_that_count_are_kept_and_one_that_raises_is_none():
    sampler = HealthSampler(CPU)
    first = sampler.begin()
    with sampler.watch():
        pass
    with sampler.watch():
        pass
    sampler.keep()
    with pytest.raises(ValueError, match="wrong"), sampler.watch():
        raise ValueError("wrong")
    second = sampler.begin()
    sampler.keep()
    assert len(first) == len(second) == 1 and isinstance(first[0], Health)


def test_each_call_of_a_measurement_is_sampled_the_baselines_too(evaluator_for):
    evaluator = evaluator_for(search=3, timing_pairs=1)
    baseline = evaluator.baseline()
    # Two batches and their repetitions, each call of four pairs; the warm-up counts for nothing.
    timed = len(baseline.seconds_per_image) + len(baseline.baseline_seconds_per_image)
    assert len(baseline.health) == timed + 1 == 9
    measured = evaluator.measure(TOME)
    assert len(measured.health) == 4  # A pair, one for its UNet calls, and what is left over.
    for sample in (*baseline.health, *measured.health):
        assert sample.own_cores > 0 and sample.cores == psutil.cpu_count()


@pytest.mark.skipif(HAS_DRIVER, reason="this machine has an NVIDIA driver")
def test_without_a_driver_all_of_a_gpu_is_unknown():
    assert nvml.driver_version() is None
    assert nvml.gpu_names() == []
    assert nvml.ask(lambda lib: lib.nvmlDeviceGetHandleByUUID("GPU-0")) is None


def test_other_processes_are_told_from_this_one():
    own = os.getpid()
    assert other_use([(own, 0.55), (own + 1, 0.3), (own + 2, 0.1)], own) == 0.4
    assert other_use([(own, 0.55)], own) == 0.0
    assert other_use([(own, 0.0), (own + 1, 1.0), (own + 2, 0.5)], own) == 1.0
    # In a container: the host's numbers, the busiest of which counts as this process.
    assert other_use([(own + 1, 0.7)], own) == 0.0
    assert other_use([(own + 1, 0.7), (own + 2, 0.25)], own) == 0.25
    assert other_use([], own) is None
