"""The guided strategy on recorded tables: the grid's answer, at a fraction of its cost."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from accel_search.core.trial import Goal
from accel_search.search.loop import Budget, Search
from accel_search.search.replay import ReplayEvaluator, replay_space
from accel_search.search.space import JointSpace
from accel_search.search.strategies import get
from accel_search.search.strategies.base import History, Task
from accel_search.storage.trials_db import TrialStore
from accel_search.storage.trials_file import read_trials
from tests.support.fakes import WORKLOAD
from tests.support.strategies import Run

TABLES = Path(__file__).parents[2] / "data" / "tables"


@cache
def table(name):
    """Return a recorded table and its space; of a large one every fourth point."""
    recorded = read_trials(TABLES / f"{name}.json.gz")
    if len(recorded.trials) > 500:
        recorded = replace(recorded, trials=recorded.trials[::4])
    return recorded, replay_space(recorded, tuple(name.split("-")))


def timed(recorded, space, noise, seed, baseline_noise=None, besides=lambda params: 0.0):
    """Return the table with times that are known: what each step computes, and some noise.

    Args:
        recorded: The table.
        space: Its candidates.
        noise: Standard deviation of the logarithm of a timing.
        seed: Of the noise.
        baseline_noise: The same of the baseline.
        besides: Returns what no step type explains, in log time.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(recorded.baseline.scores))
    truth = {}

    def mixed(measured, seconds, spread):
        return replace(
            measured,
            seconds_per_image=tuple(seconds * np.exp(rng.normal(0, spread, 3))),
            baseline_seconds_per_image=tuple(np.exp(rng.normal(0, spread, 3))),
            scores=tuple(measured.scores[at] for at in order),
            seconds=seconds * len(order),
        )

    trials = []
    for trial in recorded.trials:
        params = trial.candidate.as_dict()
        seconds = 1.0
        if "deepcache" in params:
            each = params["deepcache"]
            share = 0.25 + 0.2 * each["cache_branch_id"]
            seconds *= share + (1 - share) / each["cache_interval"]
        if "tgate" in params:
            each = params["tgate"]
            seconds *= 0.55 + 0.45 * each["gate_step"] / 20
            seconds *= (
                1 - 0.1 * (1 - 1 / each["fi_interval"]) - 0.05 * (1 - 1 / each["sp_interval"])
            )
        if "tome" in params:
            seconds *= 1 - 0.2 * params["tome"]["ratio"] / params["tome"]["max_downsample"]
        seconds *= np.exp(besides(params))
        truth[trial.candidate] = seconds
        trials.append(replace(trial, measurement=mixed(trial.measurement, seconds, noise)))
    before = noise if baseline_noise is None else baseline_noise
    baseline = mixed(recorded.baseline, 1.0, before)
    return replace(recorded, baseline=baseline, trials=tuple(trials), held_out={}), truth


def search(recorded, space, goal, budget=None, name="guided"):
    class Charged(ReplayEvaluator):
        charged = 0.0

        def measure(self, *args, **kwargs):
            found = super().measure(*args, **kwargs)
            self.charged += found.seconds
            return found

    class Deaf:
        def __getattr__(self, name):
            return lambda *_: None

    evaluator = Charged(recorded, space)
    strategy = get(name)(Task(space, goal, evaluator.prompt_count, evaluator.chunk, 0))
    store = TrialStore(None, name, space.values())
    outcome = Search(evaluator, strategy, store, goal, budget or Budget(), Deaf()).run()
    return outcome, evaluator.charged / sum(t.measurement.seconds for t in recorded.trials)


def within(recorded, bound):
    before = np.mean(recorded.baseline.scores)
    return {
        trial.candidate
        for trial in recorded.trials
        if 1 - np.mean(trial.measurement.scores) / before <= bound
    }


@pytest.mark.parametrize(
    ("name", "bound", "most"),
    [
        ("deepcache", 0.02, 0.4),
        ("deepcache", 0.003, 0.5),
        ("deepcache-tome", 0.005, 0.1),
        ("tgate", 0.01, 0.15),  # A quarter of the table: of all of it, it takes a quarter of that.
        ("deepcache-tgate", 0.02, 0.1),
    ],
)
def test_it_finds_the_grids_answer_at_a_fraction_of_its_cost(name, bound, most):
    recorded, space = table(name)
    recorded, truth = timed(recorded, space, 0.005, seed=0)
    outcome, cost = search(recorded, space, Goal(bound))
    winner = outcome.winner.trial.candidate
    assert winner in within(recorded, bound)
    best, _ = search(recorded, space, Goal(bound), name="grid")
    assert truth[best.winner.trial.candidate] / truth[winner] > 0.98
    assert cost < most
    assert outcome.settled


@pytest.mark.parametrize("seed", range(4))
def test_one_value_that_is_slower_than_its_steps_misleads_nobody(seed):
    def slow(params):
        return 0.25 * (params["deepcache"]["cache_interval"] == 5)

    recorded, space = table("deepcache")
    recorded, truth = timed(recorded, space, 0.005, seed, besides=slow)
    outcome, _ = search(recorded, space, Goal(0.02))
    best = min(truth[candidate] for candidate in within(recorded, 0.02))
    assert best / truth[outcome.winner.trial.candidate] > 0.98 and outcome.settled


@pytest.mark.parametrize("seed", [1, 3])
def test_a_baseline_whose_few_calls_agree_by_chance_does_not_make_it_believe_all_others(seed):
    recorded, space = table("tgate")
    recorded, truth = timed(recorded, space, 0.06, seed, baseline_noise=0.002)
    outcome, _ = search(recorded, space, Goal(0.02))
    recorded, _ = timed(recorded, space, 0.005, seed)
    best, _ = search(recorded, space, Goal(0.02), name="grid")
    # Else it takes the luckiest reading for the fastest, after looking at twice as many.
    assert truth[best.winner.trial.candidate] / truth[outcome.winner.trial.candidate] > 0.97
    assert len(outcome.trials) < 40


def test_a_requirement_ends_it_at_the_first_that_meets_it():
    recorded, space = table("deepcache-tgate")
    recorded, truth = timed(recorded, space, 0.005, seed=0)
    outcome, cost = search(recorded, space, Goal(0.02, min_speedup=1.6))
    assert outcome.stopped == "the requirement was met"
    assert outcome.winner.trial.candidate in within(recorded, 0.02)
    assert cost < 0.03


def test_a_requirement_out_of_reach_is_given_up_with_little_measured():
    recorded, space = table("deepcache-tgate")
    recorded, _ = timed(recorded, space, 0.005, seed=0)
    outcome, cost = search(recorded, space, Goal(0.02, min_speedup=9.0))
    assert outcome.winner is None and outcome.settled
    assert cost < 0.05


def test_a_budget_that_ends_it_says_what_could_still_win():
    recorded, space = table("tgate")
    recorded, _ = timed(recorded, space, 0.005, seed=0)
    outcome, _ = search(recorded, space, Goal(0.01), Budget(max_trials=3))
    assert outcome.stopped == "--max_trials 3 was reached"
    assert 0 < outcome.could_win < len(space) and not outcome.settled


def test_what_is_begun_is_finished_where_nothing_else_may_begin():
    recorded, space = table("deepcache-tgate")
    recorded, _ = timed(recorded, space, 0.005, seed=0)
    outcome, _ = search(recorded, space, Goal(0.5), Budget(max_trials=3))
    assert len(outcome.trials) == 3 and outcome.stopped == "--max_trials 3 was reached"
    # All three are within so wide a bound, so the fastest of them is the answer.
    fastest = max(outcome.trials, key=lambda each: each.assessment.speedup.value)
    assert outcome.winner == fastest and fastest.assessment.is_complete


@cache
def finished():
    run = Run(get("guided"), JointSpace(("deepcache", "tome"), WORKLOAD))
    for _ in range(200):
        proposal = run.strategy.ask(run.history())
        if proposal is None:
            return run
        run.look(proposal)
    raise AssertionError("it goes on and on")


def test_it_says_of_those_left_why_they_cannot_win():
    run = finished()
    history = run.history()
    why = run.strategy.why_done(history)
    left = len(run.space) - len(history.trials)
    assert why.startswith(f"of the {left:,} candidates not measured, ")
    counts = [int(part.split()[0].replace(",", "")) for part in why.split(", ")[1:]]
    assert sum(counts) == left
    assert run.strategy.could_win(history) == 0


def test_intervals_that_are_recomputed_are_judged_again():
    run = finished()
    history = run.history()
    best = max(
        (each for each in history.trials if each.is_feasible(run.goal)),
        key=lambda each: run.strategy.speedup_of(each, history),
    )
    assert run.strategy.could_win(history) == 0
    # By further pairs, no trial is a gain: what was too slow to beat the best may win now.
    noisy = [
        replace(each, assessment=replace(each.assessment, noise_floor=10.0))
        for each in history.trials
    ]
    again = replace(history, trials=tuple(noisy), log_chances={})
    assert not any(each.is_feasible(run.goal) for each in noisy) and best in history.trials
    assert run.strategy.could_win(again) > 0
    assert run.strategy.could_win(history) == 0


def test_what_is_too_slow_even_at_the_optimistic_end_is_never_run():
    run = finished()
    speeds = [each.assessment.speedup.value for each in run.trials.values()]
    best = max(
        each.assessment.speedup.value for each in run.trials.values() if each.is_feasible(run.goal)
    )
    # Calibration may look at slow ones, for a quarter of their prompts at most.
    slow = [each for each in run.trials.values() if each.assessment.speedup.value < 0.8 * best]
    assert len(run.trials) < len(run.space) / 3
    assert len(slow) <= 12 and max(speeds) >= best
    assert all(each.assessment.prompts <= 8 for each in slow)


def test_one_call_is_the_first_look_at_every_candidate():
    looks = finished().looks
    first = {}
    for candidate, prompts in looks:
        first.setdefault(candidate, prompts)
    assert set(first.values()) == {4} and max(prompts for _, prompts in looks) == 32


def test_a_refuted_winner_makes_slower_ones_worth_a_trial_again():
    run = finished()
    feasible = [each for each in run.trials.values() if each.is_feasible(run.goal)]
    refuted = frozenset(each.trial.candidate for each in feasible)
    history = History(run.baseline, tuple(run.trials.values()), refuted)
    assert run.strategy.ask(history) is not None
