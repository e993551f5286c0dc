"""Speedups from single UNet calls."""

import math
from dataclasses import replace

import numpy as np
import pytest

from accel_search.core.intervals import Estimate
from accel_search.core.step_times import StepTimes, steps_to_probe
from accel_search.core.step_timing import Judged, StepNoise, compare, speed_within
from accel_search.core.timing_noise import Timed, TimingNoise, pairs_beside_steps, speedup
from accel_search.core.trial import Measurement
from tests.support.fakes import step_times

EVEN = tuple(at % 2 for at in range(20))
"""Step types of DeepCache with an interval of 2."""
GATED = (0, 0, 0) + (1,) * 17
"""Those of T-GATE, whose plain calls are the first ones."""


def called(kinds, relative, pace=lambda at: 1.0, overhead=2.0, probed=()):
    """Return the times of a call whose steps of type 1 take `relative` of a plain one's."""
    seconds = tuple(pace(at) * (1.0, relative)[kind] for at, kind in enumerate(kinds))
    probes = tuple((at, pace(at + 0.5)) for at in probed)
    return StepTimes(overhead + sum(seconds), seconds, kinds, len(kinds), probes)


@pytest.mark.parametrize(
    ("kinds", "probed", "expected"),
    [(EVEN, (), 22 / 14), (GATED, (7, 16), 22 / (2 + 3 + 17 * 0.2)), ((1,) * 20, (4, 13), 22 / 6)],
)
def test_a_call_is_compared_with_the_plain_ones_in_it(kinds, probed, expected):
    within = speed_within(called(kinds, 0.2, probed=probed))
    assert math.exp(within.log_speedup) == pytest.approx(expected)


def test_fewer_steps_are_compared_with_the_baselines_number_of_them():
    times = replace(called((0,) * 10, 1.0), baseline_calls=20)
    assert math.exp(speed_within(times).log_speedup) == pytest.approx(22 / 12)


def test_one_call_tells_what_fewer_steps_would_not_shorten():
    assert compare(called(EVEN, 0.2)).overhead == pytest.approx(2)
    # At half the pace too, and where the candidate's own calls are few.
    slow = replace(called((0,) * 10, 1.0, lambda at: 2.0, 4.0), baseline_calls=20)
    assert compare(slow).overhead == pytest.approx(2)
    assert compare(called(GATED, 0.2)) is None


@pytest.mark.parametrize(("kinds", "probed"), [(EVEN, ()), (GATED, (7, 16))])
def test_a_host_that_slows_down_during_the_call_changes_little(kinds, probed):
    steady = speed_within(called(kinds, 0.2, overhead=0.0, probed=probed))
    slowing = called(kinds, 0.2, lambda at: 1 + 0.05 * at, 0.0, probed)
    assert speed_within(slowing).log_speedup == pytest.approx(steady.log_speedup, abs=0.01)


@pytest.mark.parametrize("kinds", [GATED, (1,) * 20])
def test_calls_far_from_any_plain_one_tell_nothing(kinds):
    assert speed_within(called(kinds, 0.2)) is None


def test_plain_calls_are_made_where_there_are_none_near():
    assert steps_to_probe(EVEN) == []
    assert steps_to_probe((1,) * 20) == [4, 13, 19]
    probed = steps_to_probe(GATED)
    near = [0, 1, 2, *probed]
    assert all(min(abs(at - place) for place in near) <= 4 for at in range(20))
    assert len(probed) == 2


def test_calls_that_differ_by_more_than_their_scatter_widen_the_interval():
    alike = [step_times(2.0), step_times(2.0)]
    apart = [step_times(1.8), step_times(2.2)]
    assert StepNoise([tuple(alike)]).inflation == 1
    assert StepNoise([tuple(apart)]).inflation > 10


@pytest.mark.parametrize("off", [0.0, 0.02, -0.03])
def test_pairs_of_whole_calls_tell_by_how_much_all_single_calls_mislead(off):
    judged = [Judged((step_times(2.0),), math.log(2.0) - off, 0.002**2) for _ in range(8)]
    noise = StepNoise(judged=judged)
    assert noise.bias == pytest.approx(off, abs=0.005)
    assert noise.estimate((step_times(1.5),)).log_speedup == pytest.approx(
        math.log(1.5) - off, abs=0.005
    )
    assert noise.misfit < 0.012


def test_pairs_of_whole_calls_tell_how_far_single_calls_mislead_each_by_itself():
    judged = [
        Judged((step_times(2.0),), math.log(2.0) + off, 0.002**2) for off in (0.06, -0.06) * 4
    ]
    noise = StepNoise(judged=judged)
    assert abs(noise.bias) < 0.005 and 0.04 < noise.misfit < 0.09


def test_noisy_pairs_tell_little_of_the_misfit():
    rng = np.random.default_rng(0)
    judged = [
        Judged((step_times(2.0),), math.log(2.0) + rng.normal(0, 0.3), 0.3**2) for _ in range(8)
    ]
    assert StepNoise(judged=judged).misfit < 0.02


def estimate(value, share):
    return Estimate(value, value / (1 + share), value * (1 + share))


def test_both_ways_of_timing_make_one_estimate():
    whole, within = estimate(2.0, 0.3), estimate(2.1, 0.02)
    both = Timed(whole, within)
    assert both.speedup.value == pytest.approx(2.1, rel=0.005)
    assert both.speedup.high / both.speedup.value < 1.02
    assert both.discrepancy < 1
    assert Timed(None, within).speedup == within and Timed(whole, None).speedup == whole
    unknown = Estimate(2.0, 0.0, math.inf)
    assert Timed(unknown, within).speedup == within


def test_where_they_disagree_the_interval_spans_both():
    whole, within = estimate(2.0, 0.01), estimate(2.3, 0.01)
    both = Timed(whole, within)
    assert both.discrepancy > 1
    assert 2.1 < both.speedup.value < 2.2
    assert (both.speedup.low, both.speedup.high) == (whole.low, within.high)
    assert Timed(whole, estimate(2.01, 0.01)).discrepancy < 1


def measured(rng, truth, pairs, calls, noise=0.15, scatter=0.01, misfit=0.01):
    """Return a candidate timed on a busy host: its pace changes from call to call."""
    off = rng.normal(0, misfit)
    own = np.exp(rng.normal(0, noise, pairs)) / truth
    times = tuple(step_times(truth * math.exp(off + rng.normal(0, scatter))) for _ in range(calls))
    baseline = tuple(np.exp(rng.normal(0, noise, pairs)).tolist())
    return Measurement(tuple(own.tolist()) or (1.0,), baseline, (30.0,) * 4, 4, step_times=times)


def test_intervals_hold_the_truth_and_are_a_quarter_as_wide_on_a_busy_host():
    rng = np.random.default_rng(3)
    held, ratio = [], []
    for _ in range(20):
        truths = rng.uniform(1.2, 3.0, 24)
        # Eight that are timed both ways; the others by their UNet calls alone.
        trials = [measured(rng, truth, int(at < 8), 1) for at, truth in enumerate(truths)]
        winner = measured(rng, 2.0, 3, 3)
        baseline = measured(rng, 1.0, 4, 0)
        noise = TimingNoise([baseline], [*trials, winner])
        for truth, trial in zip([*truths, 2.0], [*trials, winner], strict=True):
            known = speedup(trial, noise)
            held.append(known.low <= truth <= known.high)
            if trial is winner:
                whole = noise.timed(trial).whole
                ratio.append(math.log(known.high / known.low) / math.log(whole.high / whole.low))
    assert np.mean(held) >= 0.93
    assert np.median(ratio) <= 0.25


def test_a_noise_floor_is_that_of_what_was_timed():
    rng = np.random.default_rng(0)
    baseline = measured(rng, 1.0, 4, 0, noise=0.3)
    trial = measured(rng, 1.2, 0, 2)
    noise = TimingNoise([baseline], [trial])
    assert noise.floor(1) > 0.3 > 0.1 > noise.floor_of(trial)
    assert noise.floor_of(baseline) == noise.floor(4)


PAIR = Measurement((1.0,), (1.0,), (30.0,), 4)
SINGLE = replace(PAIR, baseline_seconds_per_image=(), step_times=(step_times(2.0),))
BOTH = replace(SINGLE, baseline_seconds_per_image=(1.0,))


def test_the_first_candidates_are_timed_both_ways_and_later_ones_by_single_calls():
    assert pairs_beside_steps([], None, 3) == 1
    assert pairs_beside_steps([BOTH] * 7 + [SINGLE] * 30, None, 3) == 1
    assert pairs_beside_steps([BOTH] * 7, None, 0) == 0
    assert pairs_beside_steps([BOTH] * 8, None, 3) == 0
    assert pairs_beside_steps([BOTH], BOTH, 3) == pairs_beside_steps([BOTH] * 8, SINGLE, 3) == 0


@pytest.mark.parametrize(
    ("by_pairs", "within", "pairs"), [(0.003, 0.05, 1), (0.003, 0.01, 0), (0.3, 0.05, 0)]
)
def test_later_candidates_are_timed_by_what_tells_more_a_second(by_pairs, within, pairs):
    rng = np.random.default_rng(0)
    quiet = {"noise": by_pairs, "scatter": 0.01, "misfit": within}
    baseline = measured(rng, 1.0, 8, 0, **quiet)
    judges = [measured(rng, 1.1 + 0.05 * at, 1, 1, **quiet) for at in range(8)]
    noise = TimingNoise([baseline], judges)
    assert pairs_beside_steps(judges, None, 3, noise) == pairs
    assert pairs_beside_steps(judges, SINGLE, 3, noise) == 0


def test_a_gain_that_both_ways_of_timing_show_is_a_gain_though_they_disagree():
    rng = np.random.default_rng(0)
    quiet = {"noise": 0.004, "scatter": 0.003, "misfit": 0.003}
    trials = [measured(rng, 1.1 + 0.05 * at, 4, 1, **quiet) for at in range(8)]
    slow, fast = measured(rng, 1.06, 4, 0, **quiet), measured(rng, 1.3, 0, 1, **quiet)
    torn = replace(slow, step_times=fast.step_times)
    noise = TimingNoise([measured(rng, 1.0, 8, 0, **quiet)], [*trials, torn])
    found = noise.timed(torn)
    assert found.discrepancy > 1 and found.speedup.high > 1.2 and found.speedup.low > 1.03
    assert noise.floor_of(torn) < found.speedup.value - 1


def test_trials_without_step_times_judge_nothing_and_are_timed_in_all_their_pairs():
    assert pairs_beside_steps([PAIR] * 20, None, 3) == 3
    assert pairs_beside_steps([BOTH], PAIR, 2) == 2
    assert pairs_beside_steps([PAIR] * 20 + [BOTH], None, 3) == 1


@pytest.mark.parametrize("slower", [0.05, 0.1, 0.3, 0.6])
def test_one_disturbed_judge_misleads_nobody(slower):
    rng = np.random.default_rng(1)
    quiet = {"noise": 0.004, "scatter": 0.003, "misfit": 0.003}
    baseline = measured(rng, 1.0, 4, 0, **quiet)
    truths = [1.1 + 0.03 * at for at in range(8)]
    judges = [measured(rng, truth, 1, 1, **quiet) for truth in truths]
    hit = judges[3]
    judges[3] = replace(hit, baseline_seconds_per_image=(
        hit.baseline_seconds_per_image[0] * (1 + slower),))  # fmt: skip
    candidate = measured(rng, 1.1, 0, 1, **quiet)
    noise = TimingNoise([baseline], [*judges, candidate])
    found = speedup(candidate, noise)
    assert found.low <= 1.1 <= found.high and noise.floor_of(candidate) < 0.045
    # The judge itself claims no more than its UNet calls allow.
    found = speedup(judges[3], noise)
    assert found.low <= truths[3]
