"""What every strategy must do; a new file in strategies/ is picked up by itself."""

from dataclasses import replace

import numpy as np
import pytest

from accel_search.core.assessment import AssessedTrial
from accel_search.core.candidate import Candidate
from accel_search.core.trial import Failure, Goal, Trial
from accel_search.search.space import JointSpace
from accel_search.search.strategies import all_strategies, get
from accel_search.search.strategies.base import Proposal, Task
from tests.support.fakes import WORKLOAD, FakeEvaluator
from tests.support.strategies import (
    CHUNK,
    PROMPTS,
    RULES,
    SPACES,
    Run,
    every_look_is_at_something_worth_a_look,
    it_ends_and_says_why,
    truth,
)


@pytest.fixture(params=sorted(all_strategies()))
def strategy(request):
    return get(request.param)


def failing(candidate):
    return candidate["deepcache"]["cache_branch_id"] % 2 == 1


def test_strategies_of_the_mission_are_there():
    assert {"grid", "random", "bayes", "guided"} <= set(all_strategies())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_strategy_keeps(rule, strategy):
    rule(strategy)


@pytest.mark.parametrize("name", SPACES)
def test_every_look_is_at_something_worth_a_look(strategy, name):
    every_look_is_at_something_worth_a_look(strategy, name)


@pytest.mark.parametrize("goal", [Goal(0.02), Goal(0.0), Goal(0.02, min_speedup=1.3)], ids=str)
def test_it_ends_and_says_why(strategy, goal):
    it_ends_and_says_why(strategy, goal)


def test_what_failed_is_not_asked_for_again_and_the_rest_goes_on(strategy):
    run = Run(strategy, SPACES["deepcache"], fails=failing).go()
    assert any(each.assessment is None for each in run.trials.values())
    assert fastest_feasible(run)["deepcache"] == {"cache_interval": 4, "cache_branch_id": 0}


@pytest.mark.parametrize("goal", [Goal(0.02), Goal(0.02, min_speedup=1.3, min_psnr=20.0)], ids=str)
def test_a_space_in_which_every_point_is_the_bare_pipeline_ends_at_once(strategy, goal):
    nothing = JointSpace(("deepcache",), WORKLOAD, {"deepcache": {"cache_interval": (1,)}})
    assert nothing.point_count and not len(nothing)
    run = Run(strategy, nothing, goal=goal).go()
    assert run.looks == []
    assert run.strategy.finish(run.history()) is None
    assert run.strategy.why_done(run.history()) == "every point is the baseline pipeline"
    assert run.strategy.could_win(run.history()) == 0


def test_what_is_begun_is_finished_and_nothing_else_begun(strategy):
    run = Run(strategy, SPACES["deepcache,tome"]).go(5)
    begun = set(run.trials)
    for _ in range(60):
        proposal = run.strategy.finish(run.history())
        if proposal is None:
            break
        run.look(proposal)
    assert run.strategy.finish(run.history()) is None
    assert set(run.trials) == begun


def fastest_feasible(run):
    """Return the candidate of the greatest speedup that meets the goal."""
    feasible = (trial for trial in run.trials.values() if trial.is_feasible(run.goal))
    return max(feasible, key=lambda trial: trial.assessment.speedup.value).trial.candidate


def test_bounds_on_likeness_are_heeded(strategy):
    class Measured(FakeEvaluator):
        def measure(self, candidate, *args, **kwargs):
            found = super().measure(candidate, *args, **kwargs)
            likeness = 40 - 5 * candidate["deepcache"]["cache_interval"]
            count = len(found.scores)
            return replace(found, psnr=(float(likeness),) * count, ssim=(0.9,) * count)

    run = Run(strategy, SPACES["deepcache"], goal=Goal(0.5, min_psnr=24.0, min_ssim=0.8))
    run.evaluator = Measured(truth)
    run.go()
    assert fastest_feasible(run)["deepcache"] == {"cache_interval": 3, "cache_branch_id": 0}


def test_a_bound_on_the_worst_prompts_is_heeded(strategy):
    class Uneven(FakeEvaluator):
        """Loses on one prompt of eight alone, by more with a longer interval."""

        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            found = super().measure(candidate, split, prompts, pairs)
            wanted = range(self.prompt_count) if prompts is None else prompts
            lost = 1.5 * candidate["deepcache"]["cache_interval"]
            scores = (
                score - lost * (place % 8 == 0)
                for place, score in zip(wanted, found.scores, strict=True)
            )
            return replace(found, scores=tuple(scores))

    run = Run(strategy, SPACES["deepcache"], goal=Goal(0.5, max_tail_loss=0.17))
    run.evaluator = Uneven(truth)
    run.go()
    assert fastest_feasible(run)["deepcache"] == {"cache_interval": 3, "cache_branch_id": 0}


def test_a_point_that_coincides_with_a_measured_one_counts_as_measured(strategy):
    space = SPACES["tome"]
    twin = Candidate({"tome": {"ratio": 0.5, "max_downsample": 3}})
    run = Run(strategy, space)
    failed = Trial(twin, None, Failure("timeout", "", 1.0))
    run.trials[twin] = AssessedTrial(failed, None)
    run.go(40)  # `look` refuses a candidate that coincides.
    assert len(run.trials) > 1


@pytest.mark.parametrize("name", ["random", "bayes"])
def test_orders_differ_by_seed(name):
    space = SPACES["deepcache,tome"]
    assert Run(get(name), space, seed=0).go(9).looks != Run(get(name), space, seed=1).go(9).looks


def test_every_sampler_of_a_strategy_learns(strategy):
    for sampler in strategy.samplers:
        run = Run(strategy, SPACES["deepcache,tome"], goal=Goal(0.5))
        # Samplers draw their first ten at random.
        for position in range(0, len(run.space), len(run.space) // 10):
            run.look(Proposal(run.space.candidate_at(position), PROMPTS))
        run.strategy = strategy(replace(run.strategy.task, sampler=sampler))
        proposal = run.strategy.ask(run.history())
        run.look(proposal)
        assert truth(proposal.candidate)[0] > np.mean([truth(each)[0] for each in run.trials])


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_bayes_measures_what_lies_nearest_to_a_suggestion_that_a_file_lacks(sampler, monkeypatch):
    strategy, part = get("bayes"), SPACES["a part"]
    run = Run(strategy, part)
    run.strategy = strategy(Task(part, run.goal, PROMPTS, CHUNK, 0, sampler))
    asked = []
    candidate_of = strategy._candidate

    def heard(self, places):
        asked.append(candidate_of(self, places))
        return asked[-1]

    monkeypatch.setattr(strategy, "_candidate", heard)
    for _ in range(8):
        while run.strategy.race(run.history()):
            run.look(run.strategy.ask(run.history()))
        known = {part.position(each) for each in run.trials}
        asked.clear()
        proposal = run.strategy.ask(run.history())
        fresh = [at for at in part.by_distance(asked[-1]) if at not in known]
        if part.position(asked[-1]) is None:
            assert proposal.candidate == part.candidate_at(fresh[0])
        run.look(proposal)
    nearest = part.candidate_at(5)
    assert part.by_distance(nearest)[0] == 5
