"""Timed calls and loading take turns between real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from accel_search.runtime.measuring import timing_lock
from accel_search.runtime.measuring.timing_lock import TimingLock

CODE = """
import sys, time
from pathlib import Path
from accel_search.runtime.measuring.timing_lock import TimingLock

own, kind, seconds, times = TimingLock(Path(sys.argv[1])), *sys.argv[2:]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(times)):
    with getattr(own, kind)():
        begin = time.time()
        print("in", flush=True)
        time.sleep(float(seconds))
        print(kind, begin, time.time(), flush=True)
"""


def start(folder, kind, seconds, times=1):
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(folder), kind, str(seconds), str(times)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(*processes):
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()


def spans(process):
    output, _ = process.communicate(timeout=60)
    lines = [line.split() for line in output.splitlines() if line != "in"]
    return [(float(begin), float(end)) for _, begin, end in lines]


def meet(one, other):
    return any(a < d and c < b for a, b in one for c, d in other)


def test_nobody_times_while_somebody_loads(tmp_path):
    timers = [start(tmp_path, "timing", 0.02, 40) for _ in range(3)]
    loaders = [start(tmp_path, "loading", 0.5) for _ in range(2)]
    go(*timers)
    time.sleep(0.2)
    go(*loaders)
    timed, loaded = [spans(each) for each in timers], [spans(each) for each in loaders]
    assert [len(each) for each in timed] == [40] * 3 and [len(each) for each in loaded] == [1] * 2
    for own in timed:
        for other in loaded:
            assert not meet(own, other)
    # Several may load at once, and several time at once.
    assert meet(*loaded)
    assert meet(timed[0], timed[1]) or meet(timed[1], timed[2])


def test_a_process_that_dies_keeps_nobody_waiting(tmp_path):
    loader, timer = start(tmp_path, "loading", 600), start(tmp_path, "timing", 0.01)
    go(loader)
    assert loader.stdout.readline() == "in\n"
    go(timer)
    time.sleep(0.3)
    assert timer.poll() is None
    loader.send_signal(signal.SIGKILL)
    loader.wait()
    assert len(spans(timer)) == 1
    loader.communicate()


def has_a_turn(own, within=30):
    """Tell whether a call is timed within some seconds."""
    done = threading.Event()

    def call():
        with own.timing():
            done.set()

    threading.Thread(target=call, daemon=True).start()
    return done.wait(within)


def test_who_loads_for_long_keeps_nobody_waiting_for_ever(tmp_path, monkeypatch):
    with TimingLock(tmp_path).loading():
        assert not has_a_turn(TimingLock(tmp_path), within=0.3)
    monkeypatch.setattr(timing_lock, "LONGEST_SECONDS", 0.2)
    with TimingLock(tmp_path).loading():
        assert has_a_turn(TimingLock(tmp_path))


@pytest.mark.parametrize("kind", ["timing", "loading"])
def test_a_turn_is_given_back_after_an_error(tmp_path, kind):
    with pytest.raises(ZeroDivisionError), getattr(TimingLock(tmp_path), kind)():
        raise ZeroDivisionError
    assert has_a_turn(TimingLock(tmp_path))
    with TimingLock(tmp_path).loading():
        assert not has_a_turn(TimingLock(tmp_path), within=0.1)


def test_a_process_by_itself_never_waits():
    alone = TimingLock()
    with alone.loading():
        assert has_a_turn(alone)
