"""The watchdog: what is in time is let be, what is not is recorded and told of."""

from __future__ import annotations

import math
import threading
from functools import partial

import pytest

from accel_search.cli import restart
from accel_search.cli.restart import Carried
from accel_search.core.candidate import Candidate
from accel_search.core.trial import Measurement
from accel_search.search import watchdog
from accel_search.search.watchdog import Hang, Watchdog, restarting_watchdog
from accel_search.settings import Settings

CANDIDATE = Candidate({"tome": {"ratio": 0.5}})
BASELINE = Measurement((1.0,) * 8, (1.0,) * 4, (30.0,) * 32, batch_size=4, seconds=64.0)


class Hung:
    """What hears of a hang."""

    def __init__(self):
        self.hangs, self.failures = [], []
        self.told = threading.Event()

    def record(self, failure):
        self.failures.append(failure)
        return len(self.failures)

    def __call__(self, hang):
        self.hangs.append(hang)
        self.told.set()


@pytest.fixture
def hung():
    return Hung()


def test_what_does_not_end_is_recorded_and_told_of_with_all_stacks(hung, tmp_path):
    with (tmp_path / "log").open("a") as log:
        dog = Watchdog(0.05, hung, log, spent=7.0)
        with dog.over(CANDIDATE, 4, hung.record):
            assert hung.told.wait(60)
    (failure,), (hang,) = hung.failures, hung.hangs
    assert failure.kind == "timeout" and failure.seconds >= 0.05
    assert (hang.candidate, hang.recorded, hang.error) == (CANDIDATE, 1, None)
    assert hang.spent >= 7.05
    written = (tmp_path / "log").read_text()
    assert written.startswith("tome(ratio=0.5) did not end within 0.05 s (--trial_timeout)")
    assert __file__.rpartition("/")[2] in written and "Thread 0x" in written


def test_the_bare_pipeline_has_no_failure_to_be_recorded(hung):
    with Watchdog(0.05, hung).over(None, 4):
        assert hung.told.wait(60)
    assert hung.hangs[0].message.startswith("the baseline pipeline did not end")
    assert hung.hangs[0].recorded is None


def test_a_failure_that_cannot_be_stored_is_told_of_all_the_same(hung):
    with Watchdog(0.05, hung).over(CANDIDATE, 4, lambda failure: 1 // 0):
        assert hung.told.wait(60)
    assert hung.hangs[0].recorded is None
    assert isinstance(hung.hangs[0].error, ZeroDivisionError)


def test_each_measuring_has_a_time_of_its_own(hung):
    dog = Watchdog(2.0, hung)
    pause = threading.Event()
    for _ in range(8):
        with dog.over(CANDIDATE, 4, hung.record):
            pause.wait(0.4)
    assert not hung.hangs and dog.spent >= 3.2
    with pytest.raises(KeyError), dog.over(CANDIDATE, 4, hung.record):
        raise KeyError
    pause.wait(2.5)
    assert not hung.hangs


def test_a_measuring_that_ends_too_late_waits_for_what_is_done_about_it():
    """Else it would go on, and store what is on record as failed by then."""
    told, done = threading.Event(), threading.Event()

    def react(hang):
        told.set()
        threading.Event().wait(0.5)
        done.set()

    with Watchdog(0.05, react).over(CANDIDATE, 4, lambda failure: 1):
        assert told.wait(60)
    assert done.is_set()


@pytest.mark.parametrize(
    ("candidate", "recorded", "error", "ending"),
    [
        (CANDIDATE, 3, None, None),
        (CANDIDATE, 2, None, "the log shows where it hung"),
        (CANDIDATE, None, OSError("full"), "cannot be recorded (OSError: full): the log shows"),
        (None, None, None, "the log shows where it hung"),
    ],
    ids=["a further one", "none further", "not recorded", "baseline"],
)
def test_a_process_restarts_only_for_a_further_hang_on_record(candidate, recorded, error, ending):
    calls = []

    def leave(*values):
        calls.append(values)
        raise SystemExit

    settings, inherited = Settings(trial_timeout=0.05), Carried(2, 60.0)
    dog = restarting_watchdog(
        settings, inherited, None, "the log", partial(leave, "restart"), partial(leave, "give up")
    )
    assert (dog.limit(32), dog.hangs, dog.spent) == (0.05, 2, 60.0)
    with pytest.raises(SystemExit):
        dog._on_hang(Hang(candidate, 0.05, recorded, 61.5, error))
    ((what, message, *carried),) = calls
    happened = f"{candidate or 'the baseline pipeline'} did not end within 0.05 s (--trial_timeout)"
    if ending is None:
        assert (what, message) == ("restart", f"{happened} and is recorded as failed")
        assert carried == [Carried(3, 61.5)]
    else:
        assert what == "give up" and message.startswith(f"{happened}: {ending}")


def test_time_in_which_the_process_was_stopped_does_not_count(hung, monkeypatch):
    """As by Ctrl-Z, or on a machine that sleeps: the clock jumps by an hour at each look."""
    jumps = iter(range(0, 10**9, 3600))
    monkeypatch.setattr(watchdog, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: float(next(jumps)))
    dog = Watchdog(10.0, hung)
    with dog.over(CANDIDATE, 4, hung.record):
        assert not hung.told.wait(0.5)


def test_the_limit_follows_the_baseline():
    assert Watchdog(None).limit(32) == math.inf  # Nothing is known yet.
    assert Watchdog(0.0).limit(32) == math.inf
    assert Watchdog(90.0).limit(32) == 90.0
    dog = Watchdog(None)
    dog.learn(BASELINE)  # 2 s a picture.
    assert dog.limit(4) == 600 + 4 * 64
    assert dog.limit(32) == 30 * 64 + 4 * 64
    compiled = Watchdog(None, compiled=True)
    compiled.learn(BASELINE)
    assert compiled.limit(32) == 3600 + 4 * 64


def test_what_one_process_leaves_to_the_next_is_taken_once(monkeypatch):
    monkeypatch.setenv("ACCEL_SEARCH_RESTARTED", "3 61.5")
    assert restart.carried() == (3, 61.5)
    assert restart.carried() == (0, 0.0)
    monkeypatch.setenv("ACCEL_SEARCH_RESTARTED", "nonsense")
    assert restart.carried() == (0, 0.0)
