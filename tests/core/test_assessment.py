"""Intervals and verdicts: right on known truths, and honest where nothing is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from accel_search.core.assessment import assess, retimed
from accel_search.core.intervals import Estimate, Verdict, judge, prompts_needed, score_loss
from accel_search.core.timing_noise import (
    TimingNoise,
    is_gain,
    noise_floor,
    speedup,
    timing_noises,
    timing_spread,
)
from accel_search.core.trial import Goal, Measurement
from accel_search.errors import ConfigurationError


def timing(ratios, seconds=1.0):
    """Return a measurement whose pairs have the given baseline / candidate ratios."""
    return Measurement(
        tuple(seconds / ratio for ratio in ratios), (seconds,) * len(ratios), (30.0, 31.0), 4
    )


def test_score_loss_is_relative_to_the_baselines_mean():
    estimate = score_loss([30.0, 34.0], [29.0, 33.0])
    assert estimate.value == pytest.approx(2 / 64)
    assert score_loss([30.0, 34.0], [31.0, 35.0]).value < 0


def test_equal_scores_lose_nothing_for_certain():
    assert score_loss([30.0, 31.0], [30.0, 31.0]) == Estimate(0.0, 0.0, 0.0)


@pytest.mark.parametrize("after", [31.0, 30.0])
def test_one_prompt_says_nothing_of_how_far_off_its_loss_may_be(after):
    found = score_loss([30.0], [after])
    assert found.value == pytest.approx(1 - after / 30)
    assert (found.low, found.high) == (-np.inf, np.inf) and not found.is_bounded
    assert judge(found, 0.02) is Verdict.INCONCLUSIVE
    assert prompts_needed([30.0], [after], 0.02) is None


def test_two_prompts_that_lose_the_same_share_lose_it_as_far_as_they_tell():
    found = score_loss([30.0, 34.0], [29.1, 32.98])
    assert found.as_list() == pytest.approx([0.03, 0.03])


def test_score_loss_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        before = rng.normal(30, 3, 32)
        after = before * 0.98 + rng.normal(0, 1.0, 32)
        found = score_loss(before, after)
        inside += found.low <= 0.02 <= found.high
    assert 0.91 <= inside / 300 <= 0.98


def test_speedup_interval_covers_the_truth_and_pools_the_noise():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(1000):
        noise = timing(np.exp(rng.normal(0, 0.02, 5)))
        found = speedup(timing(2.0 * np.exp(rng.normal(0, 0.02, 3))), noise)
        inside += found.low <= 2.0 <= found.high
    assert 0.93 <= inside / 1000 <= 0.97


def test_speedup_of_one_pair_has_an_interval_from_the_noise_alone():
    found = speedup(timing([2.0]), timing([1.01, 0.99, 1.0]))
    assert found.value == pytest.approx(2.0)
    assert 1.9 < found.low < 2.0 < found.high < 2.1


def test_two_copies_of_one_pipeline_are_rarely_called_a_gain():
    rng = np.random.default_rng(2)
    gains = 0
    for _ in range(1000):
        baseline = timing(np.exp(rng.normal(0, 0.03, 3)))
        same = timing(np.exp(rng.normal(0, 0.03, 3)))
        gains += assess(same, baseline, 0.02).is_gain
    assert gains / 1000 <= 0.025


def test_noise_floor_shrinks_with_the_pairs():
    noise = timing([1.02, 0.98, 1.01, 0.99])
    assert noise_floor(noise, 16) < noise_floor(noise, 4) < noise_floor(noise, 1)


def test_one_disturbed_call_of_the_baseline_sets_the_noise_floor_until_trials_contradict_it():
    rng = np.random.default_rng(5)
    quiet = np.exp(rng.normal(0, 0.002, 4))
    disturbed = timing([*quiet[:3], 1.4])
    trials = [timing(1.3 * np.exp(rng.normal(0, 0.002, 3))) for _ in range(4)]
    assert noise_floor(disturbed, 3) > 0.3
    assert not assess(trials[0], disturbed, 0.02).is_gain
    noise = TimingNoise([disturbed], trials)
    assert noise.floor(3) < 0.01
    # An assessment made before is mended by what is known now.
    assert retimed(assess(trials[0], disturbed, 0.02), trials[0], noise).is_gain
    # One that all pairs agree with stays.
    assert TimingNoise([timing(quiet)], trials).floor(3) < noise_floor(timing([0.9, 1.1]), 3)
    assert TimingNoise([]).floor(3) == np.inf


def test_pairs_that_agree_exactly_show_no_gain_that_no_clock_could():
    """A clock that repeats itself has no spread: 0.01 % was a gain for certain."""
    baseline = timing([1.0] * 4)
    assert not assess(timing([1.0001] * 3), baseline, 0.02).is_gain
    assert assess(timing([1.01] * 3), baseline, 0.02).is_gain
    found = speedup(timing([1.0] * 3), baseline)
    assert 0.999 < found.low < 1 < found.high < 1.001
    assert 0 < noise_floor(baseline, 3) < 0.001


@pytest.mark.parametrize(
    ("figures", "floor", "gain"),
    [
        ((1.05, 1.01, 1.09), 0.04, True),
        ((1.05, 1.01, 1.09), 0.06, False),  # Two copies may differ by as much.
        ((1.05, 0.99, 1.11), 0.04, False),  # It may as well be none.
        ((1.05, 1.01, 1.09), np.inf, False),
    ],
)
def test_a_gain_is_one_beyond_its_interval_and_beyond_the_noise(figures, floor, gain):
    assert is_gain(Estimate(*figures), floor) is gain


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.0, 0.02, Verdict.PASS),
        (0.021, 0.03, Verdict.FAIL),
        (0.01, 0.03, Verdict.INCONCLUSIVE),
        (0.02, 0.03, Verdict.INCONCLUSIVE),
    ],
)
def test_verdict_follows_the_interval(low, high, verdict):
    assert judge(Estimate((low + high) / 2, low, high), 0.02) is verdict


def test_prompts_needed_grow_as_the_loss_nears_the_bound():
    rng = np.random.default_rng(3)
    before = rng.normal(30, 3, 64)
    after = before * 0.99 + rng.normal(0, 1, 64)
    loss = score_loss(before, after).value
    near, far = loss + 0.001, loss + 0.02
    assert prompts_needed(before, after, near) > 50 * prompts_needed(before, after, far) > 0


def test_a_baseline_without_a_positive_score_is_refused():
    with pytest.raises(ConfigurationError, match="--clip_model"):
        score_loss([-1.0, 0.5], [1.0, 1.0])


def test_scores_of_different_prompts_are_refused():
    with pytest.raises(ConfigurationError, match="paired by prompt"):
        score_loss([30.0, 31.0], [30.0])


def pairs(own, beside):
    return Measurement(tuple(own), tuple(beside), (30.0, 31.0), 4)


def test_the_timing_spread_is_that_of_pairs():
    rng = np.random.default_rng(0)
    noise = pairs(np.exp(rng.normal(0, 0.05, 400)), np.ones(400))
    assert timing_spread(noise) == pytest.approx(0.05, rel=0.15)
    assert timing_spread(pairs([], [])) == 0.0


def test_a_baseline_that_agrees_by_chance_is_contradicted_by_the_trials_own_pairs():
    rng = np.random.default_rng(0)
    lucky = pairs([1.0, 1.001, 1.0], [1.0, 1.0, 1.0])
    trials = [pairs(0.5 * np.exp(rng.normal(0, 0.05, 3)), np.ones(3)) for _ in range(60)]
    assert timing_spread(lucky) < 0.002
    assert timing_spread(lucky, trials) == pytest.approx(0.05, rel=0.2)
    # A single pair says nothing of how far pairs differ, a disturbed one next to nothing.
    assert timing_spread(lucky, [pairs([0.5], [1.0])]) == timing_spread(lucky)
    disturbed = [pairs([5.0, 0.5, 0.5], [1.0] * 3)]
    assert timing_spread(lucky, trials + disturbed) == pytest.approx(0.05, rel=0.25)


def simulated(pairs_each, trials, *, scale=1.0, odd=1.0, repeats=400, seed=0):
    """Return coverage and width of the first trial's interval, by the pool and by itself alone.

    Args:
        pairs_each: Pairs of each trial.
        trials: How many trials there are.
        scale: Their spread, in units of that of the baseline against itself.
        odd: That of the first one, in units of the others'.
    """
    rng = np.random.default_rng(seed)
    inside = {"pooled": 0, "alone": 0}
    widths = {"pooled": [], "alone": []}
    for _ in range(repeats):
        baseline = timing(np.exp(rng.normal(0, 0.02, 4)))
        spreads = [0.02 * scale * odd, *[0.02 * scale] * (trials - 1)]
        measured = [timing(2 * np.exp(rng.normal(0, each, pairs_each))) for each in spreads]
        for name, noise in (
            ("pooled", TimingNoise([baseline], measured)),
            ("alone", baseline),
        ):
            found = speedup(measured[0], noise)
            inside[name] += found.low <= 2.0 <= found.high
            widths[name].append(np.log(found.high / found.low))
    return {name: (inside[name] / repeats, widths[name]) for name in inside}


@pytest.mark.parametrize("pairs_each", [2, 3])
@pytest.mark.parametrize("trials", [1, 6, 16])
def test_where_pairs_differ_alike_the_pooled_interval_covers_the_truth_and_is_steadier(
    pairs_each, trials
):
    found = simulated(pairs_each, trials, repeats=800)
    assert 0.93 <= found["pooled"][0] <= 0.97
    if trials > 1:
        pooled, alone = (np.asarray(found[name][1]) for name in ("pooled", "alone"))
        assert np.median(pooled) < np.median(alone)
        # From one search to the next it is not now narrow, now wide.
        low, high = (np.quantile(pooled, end) / np.quantile(alone, end) for end in (0.1, 0.9))
        assert low > 1 > high


@pytest.mark.parametrize("pairs_each", [2, 3])
def test_a_baseline_timed_in_a_quiet_minute_makes_no_interval_too_narrow(pairs_each):
    found = simulated(pairs_each, 16, scale=2.0)
    assert found["alone"][0] < 0.9 < 0.92 <= found["pooled"][0] <= 0.975


@pytest.mark.parametrize("odd", [2.0, 3.0])
def test_a_candidate_that_is_noisier_than_the_others_is_taken_at_its_word(odd):
    found = simulated(3, 16, odd=odd)
    # Three pairs show that they differ from the rest in most cases, not in all.
    assert found["pooled"][0] >= 0.78
    blind = 2 * stats.t.ppf(0.975, 36) * 0.02 / np.sqrt(3)
    assert found["pooled"][0] > 2 * stats.norm.cdf(blind / 2 / (odd * 0.02 / np.sqrt(3))) - 1 + 0.05
    # One far off shows in its own pairs: its interval is its own, of two degrees of freedom.
    wild = timing([2.0, 2.6, 1.5])
    steady = [timing(2 * np.exp(np.random.default_rng(i).normal(0, 0.02, 3))) for i in range(16)]
    alone = speedup(wild, TimingNoise([], [wild]))
    among = speedup(wild, TimingNoise([timing([1.01, 0.99, 1.0, 1.02])], [wild, *steady]))
    assert among.high - among.low == pytest.approx(alone.high - alone.low, rel=0.05)


def test_one_disturbed_call_does_not_widen_the_others_intervals():
    rng = np.random.default_rng(4)
    baseline = timing(np.exp(rng.normal(0, 0.02, 4)))
    steady = [timing(2 * np.exp(rng.normal(0, 0.02, 3))) for _ in range(12)]
    disturbed = timing([2.0, 2.02, 0.9])
    without = speedup(steady[0], TimingNoise([baseline], steady))
    beside = speedup(steady[0], TimingNoise([baseline], [*steady, disturbed]))
    assert beside == without
    # One that differs as they do tells more of the noise.
    assert speedup(steady[0], TimingNoise([baseline], steady[:4])) != without


def test_noise_is_pooled_by_batch_size_and_counts_nothing_twice():
    one, two = timing([1.01, 0.98, 1.0]), timing([2.02, 1.97])
    other = Measurement((0.4, 0.5, 0.3), (1.0, 1.0, 1.0), (30.0, 31.0), 2)
    found = timing_noises({"baseline:search:4": one, "steps:9": two}, [two, other, None])
    assert set(found) == {2, 4}
    assert speedup(two, found[4]) == speedup(two, TimingNoise([one], [two]))
    assert speedup(two, found[4]) == speedup(two, one)
    assert speedup(other, found[2]) == speedup(other, TimingNoise([], [other]))
    # Neither a baseline nor a second pair: nothing is known, and the interval says so.
    assert speedup(timing([2.0]), TimingNoise([])).high == np.inf


@pytest.mark.parametrize("unknown", ["psnr", "ssim"])
def test_a_likeness_that_is_unknown_keeps_no_bound(unknown):
    known = replace(assess(timing([1.5]), timing([1.0]), 0.02), psnr=30.0, ssim=0.9)
    goal = Goal(0.02, min_psnr=-1.0, min_ssim=-1.0)
    assert known.is_within(goal)
    assert not replace(known, **{unknown: None}).is_within(goal)
    assert replace(known, **{unknown: None}).is_within(Goal(0.02))
