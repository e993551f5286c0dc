"""Which GPUs and cores workers get."""

from __future__ import annotations

import os

import pytest

from accel_search.errors import ConfigurationError
from accel_search.sweep import machine
from accel_search.sweep.local_workers import local_workers
from accel_search.sweep.lock import only_one
from accel_search.sweep.machine import choose_gpus, shares, visible_gpus
from accel_search.sweep.settings import SweepSettings
from tests.support.driver import HAS_DRIVER


@pytest.fixture
def three_gpus(monkeypatch):
    """Stand in for a driver that knows three GPUs."""
    monkeypatch.setattr(machine, "gpu_names", lambda: ["NVIDIA H100"] * 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_are_those_of_the_driver_or_those_made_visible(three_gpus, monkeypatch):
    assert visible_gpus() == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-1234")
    assert visible_gpus() == ["2", "GPU-1234"]
    # Numbers are places among those that are visible.
    assert choose_gpus((1,), visible_gpus()) == ["GPU-1234"]
    with pytest.raises(ConfigurationError, match="GPUs 0 to 1"):
        choose_gpus((0, 2), visible_gpus())


@pytest.mark.skipif(HAS_DRIVER, reason="this machine has an NVIDIA driver")
def test_without_a_driver_there_is_no_gpu(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == []


def test_cores_are_shared_out_and_none_twice(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 6, 7, 8}, raising=False)
    assert shares(2) == [[0, 1, 2], [3, 6, 7]]
    assert shares(8) == [[]] * 8
    monkeypatch.delattr(os, "sched_getaffinity")
    assert shares(2) == [[], []]


def test_each_worker_sees_its_gpu_and_keeps_to_its_cores(three_gpus, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    sweep = SweepSettings(gpus="all", isolation="config", timeout=7.0, common={"run_dir": "/runs"})
    workers = local_workers(sweep)
    assert [each.environment for each in workers] == [
        {"CUDA_VISIBLE_DEVICES": name} for name in "012"
    ]
    assert [each.arguments for each in workers] == [
        ["--cores", cores, "--turns", "/runs/turns"] for cores in ("0,1", "2,3", "4,5")
    ]
    assert {(each.isolation, each.timeout) for each in workers} == {("config", 7.0)}
    # One worker is not pinned, waits for nobody, and sees what this process sees.
    (alone,) = local_workers(SweepSettings())
    assert alone.environment == {} and alone.arguments == []


def test_one_sweep_at_a_time_has_a_run_folder(tmp_path):
    with only_one(tmp_path / "runs"):
        with pytest.raises(ConfigurationError, match="another accel-explore is at work there"):
            with only_one(tmp_path / "runs"):
                raise AssertionError
        with only_one(tmp_path / "others"):
            pass
    with only_one(tmp_path / "runs"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="--run_dir"):
        with only_one(tmp_path / "file" / "runs"):
            raise AssertionError
