"""Timing and memory: what a clock and an allocator can be asked without a GPU."""

from __future__ import annotations

import gc
import logging
import time

import pytest
import torch

from accel_search.runtime.measuring import timing
from accel_search.runtime.measuring.timing import timed, warm_up_steps
from accel_search.runtime.memory import (
    GrowthWatch,
    PeakMeter,
    is_out_of_memory,
    parse_shortage,
)
from tests.support.pipelines import CPU, LOG

MIB = 2**20


def test_a_call_is_timed_and_its_result_returned():
    result, seconds = timed(lambda: time.sleep(0.05) or "done", CPU)

    assert result == "done"
    assert 0.05 <= seconds < 0.5


def test_the_device_is_waited_for_on_both_sides(monkeypatch):
    events = []
    monkeypatch.setattr(timing, "synchronize", lambda device: events.append("wait"))
    monkeypatch.setattr(
        timing.time, "perf_counter", lambda: events.append("clock") or float(len(events))
    )

    timed(lambda: events.append("call"), CPU)

    assert events == ["wait", "clock", "call", "wait", "clock"]


def test_garbage_is_not_collected_meanwhile():
    assert gc.isenabled()
    assert timed(gc.isenabled, CPU)[0] is False
    assert gc.isenabled()
    with pytest.raises(KeyboardInterrupt):
        timed(lambda: (_ for _ in ()).throw(KeyboardInterrupt), CPU)
    assert gc.isenabled()
    gc.disable()
    try:
        timed(lambda: None, CPU)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_warm_up_is_a_whole_call_on_a_gpu_and_a_short_one_on_the_cpu():
    assert warm_up_steps(torch.device("cuda", 0), 50) == 50
    assert warm_up_steps(CPU, 50) == 2
    assert warm_up_steps(CPU, 1) == 1


def test_bytes_are_read_out_of_an_allocators_message():
    shortage = parse_shortage(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB "
        "of which 1.50 MiB is free. Process 1 has 10.00 GiB memory in use."
    )

    assert (shortage.bytes_asked, shortage.bytes_free) == (2 * 2**30, 3 * 2**19)
    assert str(shortage) == "2,147,483,648 bytes asked, 1,572,864 free"
    assert parse_shortage("out of memory").bytes_asked is None
    # A process that may use a part of the device has left what is left of that part.
    limited = (
        "Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.80 GiB of which 136.92 GiB "
        "is free. Including non-PyTorch memory, this process has 2.88 GiB memory in use. 2.25 GiB "
        "allowed; Of the allocated memory 2.00 GiB is allocated by PyTorch, and 128.00 MiB is "
        "reserved by PyTorch but unallocated."
    )
    assert parse_shortage(limited).bytes_free == 2**30 // 8
    assert parse_shortage("you tried to allocate 400 bytes.").bytes_asked == 400


def test_out_of_memory_is_recognised_in_each_form():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)


def test_the_peak_is_unknown_on_the_cpu():
    meter = PeakMeter(CPU)
    with meter.watch():
        torch.ones(1000)
    assert meter.peak_bytes is None


def _watch(monkeypatch, levels):
    watch = GrowthWatch(CPU, LOG, allowance=100 * MIB)
    current = iter(levels)
    for trial, level in enumerate(current, 1):
        monkeypatch.setattr(watch, "bytes_in_use", lambda level=level: level * MIB)
        watch.after_trial(f"candidate {trial}")


def test_growth_is_warned_of_once_with_the_trial_that_began_it(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, LOG.name):
        _watch(monkeypatch, [500, 900, 1000, 1005, 1050, 1000, 1030, 1090, 1130, 1300, 1500])

    assert len(caplog.records) == 1
    assert "grown by 130 MiB since trial 3" in caplog.text
    assert "beginning with trial 7 (candidate 7)" in caplog.text


def test_no_growth_within_the_allowance_is_warned_of(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, LOG.name):
        _watch(monkeypatch, [500, 900, 1000, 1099, 1000, 1099])

    assert caplog.records == []


def test_garbage_is_not_growth(monkeypatch, caplog):
    watch = GrowthWatch(CPU, LOG, allowance=100 * MIB)
    level = [1000]
    monkeypatch.setattr(watch, "bytes_in_use", lambda: level[0] * MIB)
    monkeypatch.setattr(
        "accel_search.runtime.memory.release", lambda device: level.__setitem__(0, 1000)
    )
    with caplog.at_level(logging.WARNING, LOG.name):
        for trial in range(10):
            level[0] = 1000 + 200 * (trial > 4)
            watch.after_trial(str(trial))

    assert caplog.records == []
