"""The loop's logic on an evaluator whose truth is known."""

import logging

import pytest

from accel_search.errors import ContaminationError
from accel_search.records import Candidate
from accel_search.report.progress import Progress
from accel_search.search import Budget, Goal, Search
from accel_search.space import JointSpace
from accel_search.store import TrialStore
from accel_search.strategies import get
from tests.fakes import FakeEvaluator, deepcache_truth


def point(interval, branch):
    return Candidate({"deepcache": {"cache_interval": interval, "cache_branch_id": branch}})


def run(evaluator, *, bound=0.02, speedup=None, budget=None, url=None, strategy="grid"):
    space = JointSpace(("deepcache",), evaluator.workload)
    store = TrialStore(url, "study", space)
    logger = logging.getLogger("test")
    with Progress(logger, len(space), bound, show_bar=False) as observer:
        search = Search(
            evaluator,
            get(strategy)(space, 0),
            store,
            Goal(bound, speedup),
            budget or Budget(),
            observer,
        )
        return search.run()


@pytest.mark.parametrize("strategy", ["grid", "random"])
def test_the_upper_bound_is_the_fastest_candidate_within_the_loss(strategy):
    outcome = run(FakeEvaluator(), strategy=strategy)
    # 1.9x at a loss of 1.6 %; all that are faster lose over 2 %.
    assert outcome.winner.trial.candidate == point(4, 3)
    assert outcome.exhausted and len(outcome.trials) == 16
    assert outcome.winner.assessment.speedup.value == pytest.approx(1.9, rel=0.01)
    assert outcome.held_out.score_loss.value == pytest.approx(0.016, abs=0.001)


def test_a_requirement_stops_at_the_first_candidate_that_meets_it():
    evaluator = FakeEvaluator()
    outcome = run(evaluator, speedup=1.5)
    assert outcome.winner.assessment.speedup.value >= 1.5
    assert outcome.winner.assessment.score_loss.value <= 0.02
    assert len(outcome.trials) < 16
    assert outcome.trials[-1] == outcome.winner
    assert outcome.stopped == "the requirement was met"


def test_a_requirement_that_nothing_meets_ends_without_a_winner():
    outcome = run(FakeEvaluator(), speedup=3.0)
    assert outcome.winner is None and outcome.exhausted and outcome.rivals == ()


def test_a_bound_that_nothing_meets_ends_without_a_winner():
    outcome = run(FakeEvaluator(), bound=0.001)
    assert outcome.winner is None and len(outcome.trials) == 16


def test_nothing_is_a_gain_when_every_candidate_is_the_baseline_in_disguise():
    outcome = run(FakeEvaluator(lambda candidate: (1.0, 0.0), noise=0.02))
    assert outcome.winner is None


def test_a_winner_that_fails_on_held_out_prompts_is_replaced_by_the_next():
    def truth(candidate):
        return deepcache_truth(candidate)

    lucky = point(4, 3)

    class Lucky(FakeEvaluator):
        def measure(self, candidate, split="search", steps=None):
            if candidate == lucky and split == "held_out":
                self._held_out_shift = 0.03
            measured = super().measure(candidate, split, steps)
            self._held_out_shift = 0.0
            return measured

    outcome = run(Lucky(truth))
    assert outcome.refuted == (lucky,)
    assert outcome.winner.trial.candidate == point(3, 1)


def test_a_failed_candidate_is_a_record_and_the_search_goes_on():
    broken = point(4, 3)
    outcome = run(FakeEvaluator(fails=frozenset({broken})))
    failed = [each for each in outcome.trials if each.assessment is None]
    assert [each.trial.candidate for each in failed] == [broken]
    assert failed[0].trial.failure.message == "the pipeline said no"
    assert outcome.winner.trial.candidate == point(3, 1)


def test_max_trials_bounds_the_trials_also_over_several_runs(tmp_path):
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    assert len(run(FakeEvaluator(), budget=Budget(max_trials=5), url=url).trials) == 5
    again = FakeEvaluator()
    outcome = run(again, budget=Budget(max_trials=5), url=url)
    assert len(outcome.trials) == 5 and outcome.resumed == 5
    assert again.calls == []


def test_a_time_budget_stops_before_the_space_is_exhausted():
    outcome = run(FakeEvaluator(), budget=Budget(seconds=45.0))
    # The baseline and each trial are charged 10 s.
    assert len(outcome.trials) == 4 and not outcome.exhausted
    assert "45 s" in outcome.stopped


def test_a_killed_search_goes_on_with_nothing_measured_twice(tmp_path):
    url = f"sqlite:///{tmp_path / 'trials.db'}"

    class Killed(FakeEvaluator):
        def measure(self, candidate, split="search", steps=None):
            if len(self.calls) == 6:
                raise KeyboardInterrupt
            return super().measure(candidate, split, steps)

    first = Killed()
    with pytest.raises(KeyboardInterrupt):
        run(first, url=url)
    second = FakeEvaluator()
    outcome = run(second, url=url)
    searched = [
        [c for c, split, steps in each.calls if split == "search" and steps is None]
        for each in (first, second)
    ]
    assert len(searched[0]) == 6 and len(searched[1]) == 10
    assert set(searched[0]).isdisjoint(searched[1])
    assert outcome.resumed == 6 and outcome.winner.trial.candidate == point(4, 3)


def test_contamination_ends_the_search_with_what_was_stored(tmp_path):
    url = f"sqlite:///{tmp_path / 'trials.db'}"

    class Leaky(FakeEvaluator):
        def measure(self, candidate, split="search", steps=None):
            if len(self.calls) == 3:
                raise ContaminationError("deepcache left the pipeline changed")
            return super().measure(candidate, split, steps)

    with pytest.raises(ContaminationError):
        run(Leaky(), url=url)
    assert (
        len(TrialStore(url, "study", JointSpace(("deepcache",), FakeEvaluator().workload)).trials())
        == 3
    )


def test_fewer_steps_are_measured_at_the_winners_speed():
    outcome = run(FakeEvaluator())
    target = outcome.winner.assessment.speedup.value
    at_speed = [
        rival for rival in outcome.rivals if rival.assessment.speedup.value >= target * 0.99
    ]
    assert at_speed, "no rival is as fast as the winner"
    assert max(rival.steps for rival in at_speed) == 9
    assert not any(rival.rivals(outcome.winner) for rival in outcome.rivals)


def test_a_rival_that_is_as_fast_and_better_is_said_to_beat_the_winner():
    outcome = run(FakeEvaluator(lambda candidate: (1.2, 0.019)))
    assert any(rival.rivals(outcome.winner) for rival in outcome.rivals)
