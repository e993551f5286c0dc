"""Two candidates beside each other: intervals that hold the truth of losses and timings."""

import math

import numpy as np
import pytest
from scripts.benchmarks.bench_intervals import RECORDED, recorded_scores

from accel_search.core.assessment import AssessedTrial, assess
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate, Verdict, score_difference, score_loss
from accel_search.core.named import Named, compare, speed_ratio
from accel_search.core.timing_noise import TimingNoise
from accel_search.core.trial import Failure, Goal, Measurement, Trial
from accel_search.core.verdicts import judge_speedup, overall

PAIRS = 4


@pytest.mark.parametrize("table", RECORDED)
@pytest.mark.parametrize("prompts", [8, 32])
def test_the_interval_of_a_difference_holds_the_truth_of_recorded_losses(table, prompts):
    before, after = recorded_scores(table, 30)
    rng = np.random.default_rng(prompts)
    draws, above, below = 1000, 0, 0
    for _ in range(draws):
        own, other = after[rng.choice(len(after), 2, replace=False)]
        truth = (other.mean() - own.mean()) / before.mean()
        drawn = rng.integers(0, len(before), prompts)
        loss = score_difference(before[drawn], own[drawn], other[drawn])
        above += truth > loss.high
        below += truth < loss.low
    assert 1 - (above + below) / draws >= 0.95 - 0.02
    assert max(above, below) / draws < 0.035


def test_a_difference_is_of_the_losses_paired_and_the_same_from_either_side():
    rng = np.random.default_rng(0)
    before, shared = rng.normal(30, 3, 32), rng.normal(0, 2, 32)
    own, other = before + shared - 1.0, before + shared + rng.normal(0, 0.01, 32)
    loss, back = score_difference(before, own, other), score_difference(before, other, own)
    separate = score_loss(before, own).value - score_loss(before, other).value
    assert loss.value == pytest.approx(separate)
    assert (loss.low, loss.high) == pytest.approx((-back.high, -back.low))
    # What both lose on a prompt cancels.
    alone = score_loss(before, own)
    assert loss.high - loss.low < 0.1 * (alone.high - alone.low)


def test_the_interval_of_a_ratio_of_speedups_holds_the_truth():
    rng = np.random.default_rng(0)

    def timed(speedup):
        noise = np.exp(rng.normal(0, 0.03, (2, PAIRS)))
        return Measurement(tuple(0.5 / speedup * noise[0]), tuple(0.5 * noise[1]), (1.0,), 4)

    draws, held = 400, 0
    for _ in range(draws):
        baseline, own, other = timed(1.0), timed(2.0), timed(1.6)
        noise = TimingNoise([baseline], [own, other])
        ratio = speed_ratio(noise.timed(own).speedup, noise.timed(other).speedup)
        held += ratio.low <= 1.25 <= ratio.high
    assert 0.93 <= held / draws <= 0.99


def test_an_unknown_interval_stays_unknown():
    ratio = speed_ratio(Estimate(2.0, 0.0, math.inf), Estimate(1.0, 0.9, 1.1))
    assert ratio.value == 2.0 and ratio.low == 0 and not ratio.is_bounded


def named(interval, seconds=0.25, batch_size=4, scores=(29.5,) * 16, failure=None):
    candidate = Candidate({"deepcache": {"cache_interval": interval, "cache_branch_id": 0}})
    if failure is not None:
        return Named(AssessedTrial(Trial(candidate, None, failure), None), Goal(0.02))
    measured = Measurement((seconds,) * PAIRS, (0.5,) * PAIRS, scores, batch_size)
    baseline = Measurement((0.5,) * PAIRS, (0.5,) * PAIRS, (30.0,) * 16, batch_size)
    assessment = assess(measured, baseline, 0.02)
    return Named(AssessedTrial(Trial(candidate, measured), assessment), Goal(0.02))


BASELINE = Measurement((0.5,) * PAIRS, (0.5,) * PAIRS, (30.0,) * 16, 4)


def test_only_what_was_measured_alike_is_compared():
    first = named(3)
    compared = compare(named(5, 0.2), first, BASELINE)
    assert compared.speed.value == pytest.approx(1.25) and compared.loss.value == 0
    assert compare(named(5, batch_size=2), first, BASELINE) is None
    assert compare(named(5, failure=Failure("cuda_oom", "", 1.0)), first, BASELINE) is None
    assert compare(first, named(5, failure=Failure("cuda_oom", "", 1.0)), BASELINE) is None


@pytest.mark.parametrize(
    ("candidate", "speed", "score", "verdict"),
    [
        (named(3), "pass", "pass", "pass"),
        (named(3, 0.6), "fail", "pass", "fail"),
        (named(3, 0.5), "inconclusive", "pass", "inconclusive"),
        (named(3, scores=(28.0,) * 16), "pass", "fail", "fail"),
        (named(3, scores=(29.5, 29.3) * 8), "pass", "inconclusive", "inconclusive"),
        (named(3, failure=Failure("cuda_oom", "", 1.0)), "fail", "fail", "fail"),
    ],
)
def test_a_candidate_passes_where_it_is_a_gain_within_the_bound(candidate, speed, score, verdict):
    assert (candidate.speedup_verdict, candidate.score_verdict) == (speed, score)
    assert candidate.verdict == verdict


def test_several_pass_together_and_one_fails_all():
    ok, bad, open_ = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
    assert overall([ok, ok]) is ok and overall([ok, open_]) is open_
    assert overall([ok, open_, bad]) is bad


def test_a_required_speedup_has_to_be_reached_by_the_whole_interval():
    found = Estimate(1.8, 1.7, 1.9)
    assert [judge_speedup(found, 0.01, least) for least in (1.6, 1.8, 2.0)] == [
        Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL,
    ]  # fmt: skip
