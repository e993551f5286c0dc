"""The fastest candidate of a space, found in a handful of runs: no torch."""

from __future__ import annotations

import threading

import pytest

from accel_search.core.candidate import Candidate
from accel_search.core.trial import Measurement, Trial
from accel_search.errors import NothingMeasured
from accel_search.search.events import Observer
from accel_search.search.space import JointSpace
from accel_search.search.speed_bound import MAX_RUNS, SpeedBoundSearch
from accel_search.search.watchdog import Watchdog
from accel_search.storage.trials_db import TrialStore
from tests.support.fakes import WORKLOAD, FakeEvaluator
from tests.support.timer import Timer, true_time


class Listener(Observer):
    def __init__(self):
        self.timed = []

    def on_baseline(self, baseline):
        self.baseline = baseline

    def on_timed(self, trial, speedup):
        self.timed.append((trial, speedup))


def search(evaluator, targets=("deepcache",), store=None, pairs=1, max_trials=None):
    space = JointSpace(targets, WORKLOAD)
    store = store or TrialStore(None, "test", space.values())
    listener = Listener()
    bound = SpeedBoundSearch(evaluator, space, store, listener, pairs, max_trials=max_trials).run()
    return bound, listener, space


@pytest.mark.parametrize(
    "targets", [("deepcache",), ("tome",), ("tgate",), ("deepcache", "tgate")], ids=str
)
def test_the_fastest_is_found_in_a_handful_of_runs(targets):
    evaluator = Timer()
    bound, listener, space = search(evaluator, targets)
    fastest = min(true_time(space.candidate_at(at)) for at in range(len(space)))
    assert true_time(bound.candidate) <= fastest * 1.02
    assert bound.speedup.low <= 1 / true_time(bound.candidate) * 1.005
    assert bound.settled and bound.is_gain and evaluator.checked
    assert (
        bound.timed <= MAX_RUNS
        and len({str(trial.candidate) for trial, _ in listener.timed}) == bound.timed
    )
    # The fastest is timed beside as many baseline calls as a search would.
    assert len(bound.measurement.baseline_seconds_per_image) == evaluator.pairs


def test_what_is_stored_is_not_timed_again():
    space = JointSpace(("deepcache",), WORKLOAD)
    store = TrialStore(None, "test", space.values())
    first, _, _ = search(Timer(), store=store)
    evaluator = Timer()
    again, listener, _ = search(evaluator, store=store)
    assert evaluator.calls == [] and listener.timed == []
    assert again.candidate == first.candidate and again.speedup == first.speedup


def test_no_more_candidates_are_timed_than_asked_for_those_stored_included():
    store = TrialStore(None, "test", JointSpace(("deepcache",), WORKLOAD).values())
    two, _, _ = search(Timer(), store=store, max_trials=2)
    assert two.timed == len(store.trials()) == 2 and not two.settled
    # The faster one is still timed as often as it should be.
    assert len(two.measurement.baseline_seconds_per_image) == Timer().pairs
    three, listener, _ = search(Timer(), store=store, max_trials=3)
    assert three.timed == len(store.trials()) == 3
    evaluator = Timer()
    assert search(evaluator, store=store, max_trials=3)[0].timed == 3 and evaluator.calls == []
    assert search(Timer(), store=store)[0].settled


def test_a_candidate_timed_before_the_batch_was_halved_is_not_another_one():
    store = TrialStore(None, "test", JointSpace(("deepcache",), WORKLOAD).values())
    bound, _, _ = search(Timer(halve_after=1), store=store, max_trials=2)
    assert len(store.trials()) == 2 and bound.timed == 2
    assert {trial.measurement.batch_size for trial in store.trials()} == {2}


def test_what_is_stored_of_another_batch_size_does_not_count():
    space = JointSpace(("deepcache",), WORKLOAD)
    store = TrialStore(None, "test", space.values())
    slow = Candidate({"deepcache": {"cache_interval": 2, "cache_branch_id": 3}})
    store.add(Trial(slow, Measurement((0.001,) * 3, (0.5,) * 3, (), batch_size=2)), None)
    bound, _, _ = search(Timer(), store=store)
    assert bound.candidate != slow and bound.measurement.batch_size == 4


def test_candidates_that_fail_are_records_and_the_others_go_on():
    space = JointSpace(("deepcache",), WORKLOAD)
    store = TrialStore(None, "test", space.values())
    winner, _, _ = search(Timer())
    bound, listener, _ = search(Timer(fails=frozenset({winner.candidate})), store=store)
    assert bound.failed == 1 and bound.candidate != winner.candidate
    assert [found for trial, found in listener.timed if trial.failure] == [None]
    assert sum(trial.failure is not None for trial in store.trials()) == 1


def test_where_every_candidate_fails_its_reason_is_raised():
    said = r"no candidate could be measured: \d+ failed: unknown_error: the pipeline said no"
    with pytest.raises(NothingMeasured, match=said) as caught:
        search(Timer(fails=frozenset({"all"})))
    assert caught.value.exit_code == 3 and caught.value.kind == "unknown_error"


def test_a_space_in_which_every_point_is_the_bare_pipeline_has_no_fastest():
    evaluator = Timer()
    nothing = JointSpace(("deepcache",), WORKLOAD, {"deepcache": {"cache_interval": (1,)}})
    store = TrialStore(None, "test", nothing.values())
    with pytest.raises(NothingMeasured, match="every point is the baseline pipeline") as caught:
        SpeedBoundSearch(evaluator, nothing, store, Listener(), 1).run()
    assert caught.value.exit_code == 3 and evaluator.calls == []


def test_after_a_halved_batch_nothing_of_the_other_size_counts():
    bound, _, space = search(Timer(halve_after=2))
    assert bound.measurement.batch_size == bound.baseline.batch_size == 2
    fastest = min(true_time(space.candidate_at(at)) for at in range(len(space)))
    assert true_time(bound.candidate) <= fastest * 1.02


def test_a_space_in_which_nothing_pays_says_so():
    bound, _, _ = search(Timer(slower=4.0))
    assert bound.speedup.value < 1 and not bound.is_gain


def test_noise_ends_the_search_and_is_told_from_a_gain():
    bound, _, _ = search(Timer(noise=0.4, slower=2.0), ("tgate",))
    assert bound.timed <= MAX_RUNS and bound.noise_floor > 0.3
    assert not bound.is_gain


def test_candidates_that_a_search_has_scored_are_not_scored_again():
    evaluator = FakeEvaluator()
    space = JointSpace(("deepcache",), evaluator.workload)
    store = TrialStore(None, "test", space.values())
    fastest = Candidate({"deepcache": {"cache_interval": 5, "cache_branch_id": 0}})
    store.add(Trial(fastest, evaluator.measure(fastest)), None)
    evaluator.calls.clear()
    bound = SpeedBoundSearch(evaluator, space, store, Listener(), evaluator.pairs).run()
    assert bound.candidate == fastest
    assert fastest not in [candidate for candidate, _, _ in evaluator.calls]


def test_a_candidate_that_hangs_is_on_record_before_anyone_is_told():
    heard, told = [], threading.Event()

    def react(hang):
        heard.append((hang, store.trials()))
        told.set()

    class Hung(Timer):
        """Its first candidate ends when the watchdog has spoken."""

        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            if not self.calls:
                assert told.wait(60)
            return super().measure(candidate, split, prompts, pairs)

    evaluator = Hung()
    space = JointSpace(("deepcache",), evaluator.workload)
    store = TrialStore(None, "study", space.values())
    SpeedBoundSearch(evaluator, space, store, Listener(), 1, Watchdog(0.2, react)).run()
    ((hang, (trial,)),) = heard
    assert hang.candidate == trial.candidate == evaluator.calls[0][0] and hang.recorded == 1
    assert trial.failure.kind == "timeout"
