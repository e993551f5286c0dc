"""Early stopping: what it costs, what it gives up, and how seldom it is wrong."""

from pathlib import Path

import numpy as np
import pytest

from accel_search.core.early_stopping import (
    EARLY_STAGES,
    FALSE_REJECTION,
    hides_gains,
    is_lost,
    next_stage,
    stages,
)
from accel_search.storage.trials_file import read_trials

TABLES = Path(__file__).parents[1] / "data" / "tables"


def given_up_at(baseline, candidate, bound, chunk=4):
    """Return the number of prompts after which a candidate is given up; None if it never is."""
    for stage in stages(len(baseline), chunk)[:-1]:
        if is_lost(baseline[:stage], candidate[:stage], bound, len(baseline)):
            return stage
    return None


@pytest.mark.parametrize(
    ("prompts", "chunk", "expected"),
    [
        (32, 4, (4, 8, 16, 32)),
        (64, 4, (4, 8, 16, 32, 64)),
        (64, 64, (64,)),
        (10, 4, (4, 10)),
        (3, 4, (3,)),
        (1, 1, (1,)),
        (5, 2, (2, 5)),
    ],
)
def test_each_stage_takes_about_twice_the_prompts_of_the_last(prompts, chunk, expected):
    assert stages(prompts, chunk) == expected


@pytest.mark.parametrize("prompts", [1, 2, 3, 7, 32, 100, 1000, 12345])
@pytest.mark.parametrize("chunk", [1, 2, 4, 7, 64])
def test_stages_ascend_in_whole_chunks_to_all_prompts(prompts, chunk):
    ends = stages(prompts, chunk)
    assert ends[-1] == prompts and len(ends) <= EARLY_STAGES + 1
    assert list(ends) == sorted(set(ends))
    assert all(end % chunk == 0 for end in ends[:-1])


def test_scoring_goes_on_with_the_next_stage():
    assert [next_stage(32, 4, scored) for scored in (0, 4, 5, 8, 16, 31)] == [4, 8, 8, 16, 32, 32]


def test_a_clear_loss_is_seen_in_the_first_stage():
    rng = np.random.default_rng(0)
    before = rng.normal(30, 2, 32)
    assert given_up_at(before, before * 0.9 + rng.normal(0, 0.1, 32), 0.02) == 4


def test_no_loss_is_never_given_up_and_all_prompts_are_no_early_stage():
    before = np.full(32, 30.0)
    assert given_up_at(before, before, 0.0) is None
    assert not is_lost(before, before * 0.5, 0.02, 32)
    assert not is_lost(before[:2], before[:2] * 0.5, 0.02, 32)


def losses(rng, prompts, kind):
    """Losses of each prompt; like real ones, skewed to the right in two of four kinds."""
    if kind == "normal":
        return rng.normal(0, 1, prompts)
    if kind == "skewed to the left":
        return -rng.exponential(1, prompts)
    if kind == "skewed":
        return rng.exponential(1, prompts)
    return np.where(rng.random(prompts) < 0.15, rng.normal(6, 1, prompts), 0)


@pytest.mark.parametrize(
    "kind", ["normal", "skewed", "skewed to the left", "a few prompts lose all of it"]
)
@pytest.mark.parametrize("prompts", [32, 64])
def test_a_candidate_at_the_bound_is_seldom_given_up(kind, prompts):
    """The worst case: over all its prompts it loses exactly what it may lose."""
    rng = np.random.default_rng(0)
    runs, wrong = 600, 0
    for _ in range(runs):
        before = rng.normal(30, 2, prompts)
        lost = losses(rng, prompts, kind)
        after = before - lost + lost.mean() - 0.02 * before.mean()
        wrong += given_up_at(before, after, 0.02) is not None
    # Three standard errors above what is promised.
    assert wrong / runs <= FALSE_REJECTION + 3 * (FALSE_REJECTION / runs) ** 0.5


@pytest.mark.parametrize("name", ["tgate", "deepcache-tgate", "deepcache-tome"])
@pytest.mark.parametrize("prompts", [16, 32, 64])
def test_no_recorded_candidate_that_loses_is_often_given_up_at_the_bound(name, prompts):
    """Of those that lose 0.2 to 8 %, each moved to lose exactly what it may lose."""
    recorded = read_trials(TABLES / f"{name}.json.gz")
    before = np.array(recorded.baseline.scores)
    candidates = np.array([trial.measurement.scores for trial in recorded.trials])
    losses = 1 - candidates.mean(axis=1) / before.mean()
    losers = candidates[(losses > 0.002) & (losses < 0.08)]
    rng = np.random.default_rng(0)
    wrong = np.zeros(20)
    for candidate in losers[:: max(1, len(losers) // len(wrong))][: len(wrong)]:
        for draw in range(len(wrong)):
            drawn = rng.permutation(len(before))[:prompts]
            baseline, after = before[drawn], candidate[drawn]
            after = after * (0.98 * baseline.mean() / after.mean())
            wrong[draw] += given_up_at(baseline, after, 0.02) is not None
    assert wrong.sum() / wrong.size**2 <= FALSE_REJECTION


def test_gains_of_few_prompts_that_no_stage_has_seen_are_given_up():
    """The limit of what is promised: nine in ten lose nearly alike, and a stage has none else."""
    rng = np.random.default_rng(0)
    given_up = 0
    for _ in range(300):
        before = np.full(32, 30.0)
        gained = np.where(rng.random(32) < 0.1, rng.normal(4, 1, 32), rng.normal(0, 0.1, 32))
        given_up += given_up_at(before, before * 0.98 + gained - gained.mean(), 0.02) is not None
    assert 0.3 < given_up / 300 < 0.6


@pytest.mark.parametrize(
    ("name", "bound"),
    [("tgate", 0.005), ("tgate", 0.02), ("deepcache-tgate", 0.05), ("deepcache-tome", 0.005)],
)
def test_on_recorded_scores_few_within_the_bound_are_given_up_and_most_beyond_it(name, bound):
    recorded = read_trials(TABLES / f"{name}.json.gz")
    before = np.array(recorded.baseline.scores)
    kept, wrong, seen, prompts, beyond = 0, 0, 0, 0, 0
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(before))
        for trial in recorded.trials[:: 1 + len(recorded.trials) // 150]:
            after = np.array(trial.measurement.scores)
            loss = 1 - after.mean() / before.mean()
            given_up = given_up_at(before[order], after[order], bound)
            if loss <= bound:
                kept += 1
                wrong += given_up is not None
            elif loss > bound + 0.05:
                beyond += 1
                seen += given_up is not None
                prompts += given_up or len(before)
    assert wrong <= FALSE_REJECTION * kept + 3 * (FALSE_REJECTION * kept) ** 0.5
    if beyond:  # All of DeepCache's points and ToMe's lose less.
        assert seen > 0.6 * beyond and prompts < 0.6 * len(before) * beyond


def test_losses_on_which_it_errs_are_recognised():
    rng = np.random.default_rng(0)

    def share_of_alarms(deviations):
        before = rng.normal(30, 2, (len(deviations), deviations.shape[1]))
        pairs = zip(before, before - deviations, strict=True)
        return np.mean([hides_gains(baseline, [scores]) for baseline, scores in pairs])

    gains = rng.random((400, 32)) < 0.1
    few_gain = np.where(gains, -rng.normal(4, 1, gains.shape), rng.normal(0, 0.1, gains.shape))
    assert share_of_alarms(few_gain) > 0.8
    assert share_of_alarms(rng.normal(0, 1, gains.shape)) < 0.01
    assert share_of_alarms(rng.exponential(1, gains.shape)) < 0.01
    # Most candidates decide: one such among others is chance.
    before = rng.normal(30, 2, 32)
    assert not hides_gains(before, [before - few_gain[0], *(before - rng.normal(0, 1, (2, 32)))])
    assert not hides_gains(before, [])


@pytest.mark.parametrize(
    ("table", "most"),
    [("tgate", 0.01), ("deepcache-tgate", 0.01), ("deepcache-tome", 0.1), ("deepcache", 0.16)],
)
def test_recorded_losses_seldom_look_like_that(table, most):
    recorded = read_trials(TABLES / f"{table}.json.gz")
    before = np.array(recorded.baseline.scores)
    after = np.array([trial.measurement.scores for trial in recorded.trials])
    loss = 1 - after.mean(axis=1) / before.mean()
    after = after[(loss > 0.002) & (loss < 0.08)]
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(200):
        prompts = rng.choice(64, 32, replace=False)
        few = rng.choice(len(after), min(6, len(after)), replace=False)
        alarms.append(hides_gains(before[prompts], after[few][:, prompts]))
    assert np.mean(alarms) <= most
