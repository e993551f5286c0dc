"""The interval of a loss: true of recorded losses, and one with the confidence beside it."""

import math

import numpy as np
import pytest
from scipy import stats
from scripts.benchmarks.bench_intervals import RECORDED, loss_coverage, recorded_scores, settled

from accel_search.core.intervals import (
    FEWEST_TO_PASS,
    MOST_NEEDED,
    Estimate,
    Verdict,
    chance_within,
    judge,
    prompts_needed,
    score_loss,
)
from accel_search.errors import ConfigurationError


@pytest.mark.parametrize("table", RECORDED)
@pytest.mark.parametrize("prompts", [8, 16, 32])
def test_the_interval_holds_the_truth_of_recorded_losses(table, prompts):
    """By bootstrap (BCa) 83, 87 and 90 %, and the truth was above it in up to 16 %."""
    above, below, _ = loss_coverage(table, prompts, candidates=50, draws=40)
    # Three standard errors; the long form, in tests/reliability/test_coverage.py, allows for none.
    assert 1 - above - below >= 0.93 - 0.02
    assert above < 0.035


def scores(rng, count):
    before = rng.normal(30, 3, count)
    return before, before * (1 - rng.normal(0.02, 0.02)) - rng.exponential(1.0, count)


def recorded(rng, count):
    before, after = RECORDED_SCORES[int(rng.integers(len(RECORDED_SCORES)))]
    drawn = rng.integers(0, len(before), count)
    return before[drawn], after[rng.integers(len(after))][drawn]


RECORDED_SCORES = [recorded_scores(table, 50) for table in RECORDED]


@pytest.mark.parametrize("draw", [scores, recorded])
def test_the_confidence_is_that_of_the_interval(draw):
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(1000):
        count = int(rng.integers(2, 65))
        baseline, candidate = draw(rng, count)
        loss = score_loss(baseline, candidate)
        bound = loss.value + rng.normal(0, 1) * (loss.high - loss.low)
        chance = chance_within(baseline, candidate, bound)
        assert (loss.high <= bound) == (chance >= 0.975)
        assert (loss.low > bound) == (chance <= 0.025)
        verdicts.add(judge(loss, bound))
        assert chance_within(baseline, candidate, loss.high) == pytest.approx(0.975)
        assert chance_within(baseline, candidate, loss.low) == pytest.approx(0.025)
        assert chance_within(baseline, candidate, loss.value) == pytest.approx(0.5)
    assert verdicts == set(Verdict)


@pytest.mark.parametrize("count", [2, 3, 8, 33])
def test_the_confidence_rises_with_the_bound(count):
    baseline, candidate = scores(np.random.default_rng(count), count)
    chances = [chance_within(baseline, candidate, bound) for bound in np.linspace(0.0, 0.08, 200)]
    assert all(np.diff(chances) > 0)


def test_one_prompt_says_nothing_of_a_bound():
    assert chance_within([30.0], [30.0], 0.5) == chance_within([30.0], [10.0], 0.0) == 0.5


@pytest.mark.parametrize("count", [2, 3, 16])
def test_where_all_prompts_lose_alike_the_loss_is_certain(count):
    baseline = [30.0] * count
    assert score_loss(baseline, baseline) == Estimate(0.0, 0.0, 0.0)
    assert chance_within(baseline, baseline, 0.0) == 1.0
    assert chance_within(baseline, baseline, -1e-9) == 0.0
    half = [15.0] * count
    assert score_loss(baseline, half) == Estimate(0.5, 0.5, 0.5)
    assert (chance_within(baseline, half, 0.5), chance_within(baseline, half, 0.49)) == (1.0, 0.0)


def test_a_loss_without_a_spread_of_resamples_has_an_interval():
    """Means of the baseline about 0: by bootstrap no end could be computed, and the width was 0."""
    loss = score_loss(
        [-5.0, 6.0, -4.0, 5.0, -3.0, 4.0, -1.0, 1.0], [-5.0, 6.0, -4.0, 5.0, -3.0, 4.0, -1.0, 0.0]
    )
    assert loss.value == pytest.approx(1 / 3)
    assert loss.low < 0 and loss.high > 1


def test_an_unknown_score_makes_no_interval():
    loss = score_loss([30.0] * 8, [29.0] * 7 + [math.nan])
    assert not loss.is_bounded and judge(loss, 0.5) is Verdict.INCONCLUSIVE


def test_the_ends_are_further_out_for_a_tail_that_is_seen_or_missing():
    before = np.full(32, 30.0)
    rng = np.random.default_rng(0)

    def ends(lost):
        """Return how far both ends are from the value, in half-widths of Student's t."""
        loss = score_loss(before, before - lost)
        half = stats.t.ppf(0.975, 31) * lost.std(ddof=1) / math.sqrt(32) / 30
        return (loss.value - loss.low) / half, (loss.high - loss.value) / half

    none = ends(rng.normal(0.6, 0.3, 32))
    usual = ends(rng.gamma(1.0, 0.6, 32))
    one_loses = ends(np.where(np.arange(32) == 5, 9.0, rng.normal(0.3, 0.1, 32)))
    one_gains = ends(np.where(np.arange(32) == 5, -9.0, rng.normal(0.3, 0.1, 32)))
    assert 1.1 < none[0] < 1.25 and 1.6 < none[1] < 2
    assert 1 < usual[0] < none[0] and 1.1 < usual[1] < none[1]
    assert one_loses[0] == pytest.approx(1) and 1.6 < one_loses[1] < 2
    assert 1.6 < one_gains[0] < 2


def test_the_confidence_refuses_what_the_loss_refuses():
    with pytest.raises(ConfigurationError, match="--clip_model"):
        chance_within([-1.0, 0.5], [1.0, 1.0], 0.02)
    with pytest.raises(ConfigurationError, match="paired by prompt"):
        chance_within([30.0, 31.0], [30.0], 0.02)


@pytest.mark.parametrize("table", ["tgate", "deepcache-tgate", "deepcache-tome"])
def test_the_prompts_said_to_be_needed_settle_most_verdicts(table):
    """About four in five; by their distance from the bound alone half were settled."""
    assert 0.65 < settled(table, 32, candidates=50, draws=4) < 0.97


def test_as_many_prompts_are_needed_as_a_loss_may_pass_on():
    """All lose alike, so that nothing but their number is missing."""
    assert prompts_needed([30.0] * 3, [29.7] * 3, 0.02) == FEWEST_TO_PASS
    assert prompts_needed([30.0], [29.7], 0.02) is None


def test_prompts_needed_grow_as_the_loss_nears_the_bound():
    rng = np.random.default_rng(3)
    before = rng.normal(30, 3, 64)
    after = before * 0.99 + rng.normal(0, 1, 64)
    loss = score_loss(before, after).value
    needed = [prompts_needed(before, after, loss + distance) for distance in (0.0, 0.005, 0.01)]
    assert MOST_NEEDED > needed[0] > needed[1] > 64 and needed[2] < needed[1] / 2
    assert prompts_needed(before, after, loss + 0.1) == FEWEST_TO_PASS


def test_two_timings_agree_if_they_differ_by_no_more_than_chance_allows():
    low, high = Estimate(2.80, 2.70, 2.90), Estimate(3.01, 2.90, 3.12)
    # They touch, yet each would have to be off by as much as it may be, both at once.
    assert not low.agrees_with(high) and not high.agrees_with(low)
    assert low.agrees_with(Estimate(2.90, 2.80, 3.01)) and low.agrees_with(low)
    assert low.agrees_with(Estimate(9.0, -math.inf, math.inf))
