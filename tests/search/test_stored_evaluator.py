"""Measured once, kept, and watched: what both loops and the verification measure through."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from accel_search.core import extras
from accel_search.core.trial import Failure, Goal
from accel_search.errors import ConfigurationError, TrialFailure
from accel_search.report.console.progress import Progress
from accel_search.search.loop import Budget, Search
from accel_search.search.space import JointSpace
from accel_search.search.speed_bound import SpeedBoundSearch
from accel_search.search.stored_evaluator import StoredEvaluator
from accel_search.search.strategies import get
from accel_search.search.strategies.base import Task
from accel_search.search.watchdog import Watchdog
from accel_search.storage.trials_db import TrialStore
from tests.support.fakes import FakeEvaluator
from tests.support.searches import point
from tests.support.timer import Timer

SLOW = 1000.0
"""Seconds of the baseline that is measured again; the first one's are few."""


class HalvedTimer(Timer):
    @property
    def baselines(self):
        return {"search": replace(self._timed(1.0, 4), seconds=SLOW)}


class Halved(FakeEvaluator):
    """Has room for half the batch, which shows as its first candidate is measured."""

    def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
        self.workload = replace(self.workload, batch_size=2)
        return replace(super().measure(candidate, split, prompts, pairs), batch_size=2)

    @property
    def baselines(self):
        return {
            split: replace(self.baseline(split), batch_size=2, seconds=SLOW)
            for split in ("search", "held_out")
        }


def bound(store, space, watchdog):
    observer = Progress(logging.getLogger("test"), len(space), Goal(0.02), show_bar=False)
    with observer:
        SpeedBoundSearch(HalvedTimer(halve_after=1), space, store, observer, 1, watchdog).run()


def search(store, space, watchdog):
    evaluator, goal = Halved(), Goal(0.02)
    task = Task(space, goal, evaluator.prompt_count, evaluator.chunk, 0)
    with Progress(logging.getLogger("test"), len(space), goal, show_bar=False) as observer:
        Search(evaluator, get("grid")(task), store, goal, Budget(), observer, watchdog).run()


@pytest.mark.parametrize("loop", [bound, search])
def test_a_baseline_of_a_halved_batch_gives_the_watchdog_its_pace(loop):
    space = JointSpace(("deepcache",), Timer().workload)
    store = TrialStore(None, "study", space.values())
    # The second time it is stored already.
    for watchdog in (Watchdog(None), Watchdog(None)):
        loop(store, space, watchdog)
        assert store.load_extra("baseline:search:2").seconds == SLOW
        assert watchdog.limit(1) > SLOW


@pytest.fixture
def store():
    return TrialStore(None, "study", JointSpace(("deepcache",), Timer().workload).values())


def test_an_extra_measurement_is_made_once_a_study(store):
    evaluator, name = FakeEvaluator(), extras.held_out(point(2, 3))
    measured = StoredEvaluator(evaluator, store).once(name, point(2, 3), "held_out")
    again = StoredEvaluator(evaluator, store)
    assert again.once(name, point(2, 3), "held_out") == measured == store.load_extra(name)
    assert len(evaluator.calls) == 1 and again.spent == 0


def test_what_another_process_measured_is_known_here_too(store):
    name = extras.held_out(point(2, 3))
    theirs = StoredEvaluator(FakeEvaluator(), store).once(name, point(2, 3), "held_out", range(4))
    # It begins before the other one stores, and measures the same candidate.
    ours = StoredEvaluator(FakeEvaluator(), store)
    ours.extras.clear()
    assert ours.once(name, point(2, 3), "held_out", range(4)) == theirs
    assert ours.extras[name] == theirs


def test_what_hung_beside_the_trials_is_not_measured_again(store):
    name = extras.held_out(point(2, 3))
    store.save_failure(name, Failure("timeout", "it did not end", 3.0))
    evaluator = FakeEvaluator()
    with pytest.raises(TrialFailure, match="it did not end"):
        StoredEvaluator(evaluator, store).once(name, point(2, 3))
    assert evaluator.calls == []


def test_a_trial_that_fails_on_its_way_counts_the_seconds_before(store):
    evaluator = FakeEvaluator(fails=frozenset({point(2, 3)}))
    before = replace(FakeEvaluator().measure(point(2, 3), prompts=range(4)), seconds=7.0)
    measuring = StoredEvaluator(evaluator, store)
    trial = measuring.trial(point(2, 3), range(4, 8), 1, before)
    assert trial.failure.seconds == 7.0 + measuring.spent
    assert store.trials() == []  # The caller stores it, with what follows from it.


def test_the_order_of_pairs_goes_on_over_the_stages_of_a_candidate(store):
    class Ordered(FakeEvaluator):
        turns = ()

        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            self.turns += (turn,)
            return super().measure(candidate, split, prompts, pairs)

    evaluator = Ordered()
    measuring = StoredEvaluator(evaluator, store)
    first = measuring.trial(point(4, 3), range(4), 1)
    second = measuring.trial(point(4, 3), range(4, 8), 2, first.measurement)
    measuring.trial(point(4, 3), range(8, 16), 1, second.measurement)
    assert evaluator.turns == (0, 1, 3)


def test_what_single_unet_calls_do_not_tell_is_measured_again_in_pairs(store):
    class Untold(FakeEvaluator):
        """Makes other UNet calls than its step plan describes."""

        def measure(self, *args, **kwargs):
            return replace(super().measure(*args, **kwargs), step_times=(), seconds=10.0)

    evaluator = Untold()
    trial = StoredEvaluator(evaluator, store).trial(point(4, 3), range(4), 0)
    assert evaluator.pairs_asked == [("search", 0), ("search", 1)]
    assert len(trial.measurement.baseline_seconds_per_image) == 1
    assert trial.measurement.seconds == 20.0  # What told nothing took its time too.


def test_without_a_store_the_baseline_is_kept_in_memory():
    evaluator = FakeEvaluator()
    measuring = StoredEvaluator(evaluator, None)
    assert measuring.baseline() is measuring.baseline()
    assert list(measuring.extras) == [extras.baseline("search", 4)]


def test_a_baseline_that_cannot_be_made_is_not_one_candidates_failure(store):
    class Black(FakeEvaluator):
        def baseline(self, split="search", prompts=None):
            raise TrialFailure("black images")

    with pytest.raises(ConfigurationError, match="black images"):
        StoredEvaluator(Black(), store).baseline()
