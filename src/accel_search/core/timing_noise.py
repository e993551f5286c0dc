"""Speedups by pairs of whole calls and by single UNet calls, and how far they are off by chance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from accel_search.core.extras import is_baseline
from accel_search.core.intervals import CONFIDENCE, Estimate, half_width, squares_of
from accel_search.core.step_timing import Judged, StepNoise, speed_within
from accel_search.core.trial import Measurement


def is_gain(speedup: Estimate, noise_floor: float) -> bool:
    """Return whether a speedup is one beyond its interval and beyond the noise floor.

    Args:
        speedup: Of a candidate over the baseline.
        noise_floor: Relative difference that two copies of one pipeline may show.
    """
    return speedup.low > 1.0 and speedup.value > 1.0 + noise_floor


def paired_log_ratios(measurement: Measurement) -> NDArray[np.float64]:
    """Return log(baseline seconds / candidate seconds) of the calls timed in pairs, `[M]`."""
    baseline = np.asarray(measurement.baseline_seconds_per_image, float)
    own = np.asarray(measurement.seconds_per_image[: len(baseline)], float)
    ratios: NDArray[np.float64] = np.log(baseline / own)
    return ratios


LEAST_SPREAD = 0.0005
"""Least credible standard deviation of the log ratio of a pair: that of a quiet H200's calls. Pairs
that agree better agree by chance, or by a clock that repeats itself."""
DOUBT = 0.2
"""Probability of a trial's own spread under the pooled one, below which its own counts more."""
ENOUGH = 0.04
"""Half-width of an interval of speed, in logarithms, that is narrow enough to choose by."""
JUDGES = 8
"""Trials whose pairs of whole calls tell how far single UNet calls mislead."""
Z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
"""Standard deviations from the mean to the end of an interval."""
MOST_LOG = 700.0
"""Logarithm beyond which a number counts as infinite."""
OUTLIER = 0.01
"""The same over all trials together, below which a trial is left out of the pool."""


@dataclass(frozen=True)
class Timed:
    """A speedup, as whole calls and as single UNet calls tell it; one of them may be missing."""

    whole: Estimate | None
    """By pairs of whole calls: the geometric mean of their ratios."""
    within: Estimate | None
    """By UNet calls, each compared with plain ones of its own pipeline call."""

    @property
    def speedup(self) -> Estimate:
        """Return one estimate from both, each weighted by what it tells.

        Where they disagree beyond their intervals, the interval spans both: a few disturbed pairs
        agree with each other as well as good ones do.
        """
        known = [estimate for estimate in (self.whole, self.within) if estimate is not None]
        if len(known) < 2 or not known[0].is_bounded:
            return known[-1]
        weights = [math.log(estimate.high / estimate.value) ** -2 for estimate in known]
        share = weights[0] / sum(weights)
        mean = share * math.log(known[0].value) + (1 - share) * math.log(known[1].value)
        joint = _estimate(mean, 1 / math.sqrt(sum(weights)))
        if self.discrepancy <= 1:
            return joint
        lows, highs = zip(*((estimate.low, estimate.high) for estimate in known), strict=True)
        return replace(joint, low=min(lows), high=max(highs))

    @property
    def discrepancy(self) -> float:
        """Return how far apart the two are, in units of what their intervals allow."""
        if self.whole is None or self.within is None or not self.whole.is_bounded:
            return 0.0
        apart = abs(math.log(self.whole.value / self.within.value))
        halves = [math.log(known.high / known.value) for known in (self.whole, self.within)]
        return apart / math.hypot(*halves)


class TimingNoise:
    """How far pairs of calls differ by chance, by all pairs that were timed at one batch size.

    Two or three pairs estimate it badly: where they agree by chance, their interval is too narrow.
    So a mean of pairs is judged by the pooled spread of all trials' pairs about their own means and
    of the baseline's against itself, whose true ratio is known to be 1. Where a trial's own pairs
    differ by more than that allows, its own spread counts: the less likely it is, the less the pool
    weighs, down to nothing.

    Args:
        baselines: The baseline pipeline timed against itself.
        trials: Candidates, each timed beside the baseline; one with a single pair adds nothing.

    Source:
        Variances moderated by those of all others: Smyth, "Linear models and empirical Bayes
        methods for assessing differential expression" (2004), here with the prior's degrees of
        freedom those of the pool; less of them for a variance that the others do not explain:
        Phipson et al., "Robust hyperparameter estimation protects against hypervariable genes
        and improves power to detect differential expression" (2016).
    """

    def __init__(
        self, baselines: Sequence[Measurement], trials: Sequence[Measurement] = ()
    ) -> None:
        groups = [
            (_pairs_of(baseline), squares_of(paired_log_ratios(baseline), 0.0))
            for baseline in baselines
        ]
        groups += [(_pairs_of(trial), squares_of(paired_log_ratios(trial))) for trial in trials]
        # What is stored twice, under two names, is one group.
        pooled = {key: (squares, free) for key, (squares, free) in groups if free > 0}
        squares = np.array([sums[0] for sums in pooled.values()])
        free = np.array([sums[1] for sums in pooled.values()], float)
        kept = np.ones(len(pooled), dtype=bool)
        while kept.sum() > 2:
            rest, left = squares[kept].sum() - squares, free[kept].sum() - free
            chance = np.where(kept, _chance(squares, free, rest, left), 1.0)
            worst = int(np.argmin(chance))
            if chance[worst] * kept.sum() >= OUTLIER:
                break
            kept[worst] = False
        self._pooled = {key for key, keep in zip(pooled, kept, strict=True) if keep}
        self._squares = float(squares[kept].sum())
        self._free = float(free[kept].sum())
        self._steps = step_noise(trials, self._spread)

    @property
    def _spread(self) -> float:
        """Return the standard deviation of the log ratio of one pair; infinite where unknown."""
        spread = math.sqrt(self._squares / self._free) if self._free else math.inf
        return max(spread, LEAST_SPREAD)

    def timed(self, measurement: Measurement) -> Timed:
        """Estimate a speedup from all that a measurement holds.

        Args:
            measurement: With a pair, or step times that can be compared.
        """
        whole = within = None
        if measurement.baseline_seconds_per_image:
            mean = float(paired_log_ratios(measurement).mean())
            whole = _estimate(mean, self.half_width(measurement))
        if (known := self._steps.estimate(measurement.step_times)) is not None:
            within = _estimate(known.log_speedup, Z * math.sqrt(known.variance))
        return Timed(whole, within)

    def half_width(self, measurement: Measurement) -> float:
        """Return half the width of the interval of the mean log ratio of its pairs."""
        ratios = paired_log_ratios(measurement)
        own, own_free = squares_of(ratios)
        rest, free = self._squares, self._free
        if own_free and _pairs_of(measurement) in self._pooled:
            rest, free = rest - own, free - own_free
        if own_free and free > 0 and rest > 0:
            chance = float(_chance(own, own_free, rest, free))
            weight = min(1.0, chance / DOUBT)
            rest, free = weight * rest, weight * free
        return _half_width(own + rest, own_free + free, len(ratios))

    def floor_of(self, measurement: Measurement) -> float:
        """Return the relative difference that a candidate that gains nothing may show by chance.

        Args:
            measurement: As for `timed`.
        """
        timed = self.timed(measurement)
        if timed.within is None:
            return self.floor(len(measurement.baseline_seconds_per_image))
        # To the lower end: an interval that spans two disagreeing ones is wide to one side.
        return timed.speedup.value / timed.speedup.low - 1

    def floor(self, pairs: int) -> float:
        """Return the relative difference that two copies of one pipeline may show by chance.

        A disturbed call of the baseline timed against itself widens it only until enough trials'
        pairs show a smaller spread.

        Args:
            pairs: Pairs of calls that a ratio is the mean of.

        Returns:
            Half the width of the 95 % interval of such a ratio, e.g. 0.01 for ±1 %.
        """
        return math.expm1(_half_width(self._squares, self._free, pairs))


def timing_noises(
    extras: Mapping[str, Measurement], trials: Iterable[Measurement | None]
) -> dict[int, TimingNoise]:
    """Return batch size -> how far pairs of calls differ by chance.

    Args:
        extras: A study's extra measurements by name, e.g. baselines and held-out measurements.
        trials: Its trials' measurements; None for a failed one.
    """
    baselines: dict[int, list[Measurement]] = {}
    others: dict[int, list[Measurement]] = {}
    for name, measurement in extras.items():
        part = baselines if is_baseline(name) else others
        part.setdefault(measurement.batch_size, []).append(measurement)
    for trial in trials:
        if trial is not None:
            others.setdefault(trial.batch_size, []).append(trial)
    sizes = baselines.keys() | others.keys()
    return {size: TimingNoise(baselines.get(size, ()), others.get(size, ())) for size in sizes}


def step_noise(trials: Sequence[Measurement], pair_spread: float) -> StepNoise:
    """Return how far speedups from single UNet calls are wrong, by trials timed both ways.

    Args:
        trials: Candidates.
        pair_spread: Standard deviation of the log ratio of one pair.
    """
    judged = []
    for trial in trials:
        pairs = len(trial.baseline_seconds_per_image)
        if pairs and trial.step_times and math.isfinite(pair_spread):
            mean = float(paired_log_ratios(trial).mean())
            judged.append(Judged(trial.step_times, mean, pair_spread**2 / pairs))
    return StepNoise([trial.step_times for trial in trials], judged)


def _estimate(log_speedup: float, half: float) -> Estimate:
    return Estimate(math.exp(log_speedup), math.exp(log_speedup - half), _exp(log_speedup + half))


def _exp(logarithm: float) -> float:
    return math.exp(logarithm) if logarithm < MOST_LOG else math.inf


def _half_width(squares: float, freedom: float, count: int) -> float:
    return half_width(max(squares, freedom * LEAST_SPREAD**2), freedom, count)


def _pairs_of(measurement: Measurement) -> tuple[tuple[float, ...], tuple[float, ...]]:
    baseline = measurement.baseline_seconds_per_image
    return baseline, measurement.seconds_per_image[: len(baseline)]


def _chance(squares: Any, free: Any, rest: Any, rest_free: Any) -> Any:
    """Return the probability of a spread at least this large, if the rest's is the true one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(squares, free) / np.divide(rest, rest_free)
    return np.where(np.isfinite(ratio), special.fdtrc(free, rest_free, ratio), 1.0)


def speedup(measurement: Measurement, noise: TimingNoise | Measurement) -> Estimate:
    """Estimate the speedup from all that was timed; see `Timed.speedup`.

    Args:
        measurement: The candidate's, with a pair or with step times that can be compared.
        noise: How far timings differ by chance; or the baseline, to take its pairs against itself.
    """
    known = noise if isinstance(noise, TimingNoise) else TimingNoise([noise])
    return known.timed(measurement).speedup


def is_compared(measurement: Measurement) -> bool:
    """Return whether single UNet calls tell a measurement's speedup."""
    return any(map(speed_within, measurement.step_times))


def is_timed(measurement: Measurement) -> bool:
    """Return whether a measurement tells a speedup, by whole calls or by single UNet calls."""
    return bool(measurement.baseline_seconds_per_image) or is_compared(measurement)


def pairs_beside_steps(
    measured: Sequence[Measurement],
    before: Measurement | None,
    pairs: int,
    noise: TimingNoise | None = None,
) -> int:
    """Return how many pairs of whole calls to time of a candidate whose UNet calls are timed.

    Args:
        measured: All candidates so far, at one batch size.
        before: What was measured of this one.
        pairs: How many where only pairs tell a speedup.
        noise: At that batch size; None where it is unknown what tells more.
    """
    known = measured if before is None else [before]
    if known and not any(map(is_compared, known)):
        return pairs  # Stored by an earlier version, or other UNet calls are made than described.
    if before is not None and before.baseline_seconds_per_image:
        return 0
    judges = [
        trial for trial in measured if trial.baseline_seconds_per_image and is_compared(trial)
    ]
    is_wanted = len(judges) < JUDGES or (
        before is None and noise is not None and _pair_is_worth_its_time(judges[:JUDGES], noise)
    )
    return min(pairs, 1) if is_wanted else 0


def _pair_is_worth_its_time(judges: Sequence[Measurement], noise: TimingNoise) -> bool:
    """Return whether a baseline call beside a candidate's own tells more a second than none.

    On a quiet device pairs tell more than UNet calls do; where others share it, far less. Nothing
    more is needed where UNet calls alone tell enough to choose by.
    """
    gains, halves = [], []
    for judge in judges:
        timed = noise.timed(judge)
        if timed.whole is None or timed.within is None or not timed.whole.is_bounded:
            continue
        by_pairs, within = (
            math.log(known.high / known.value) ** -2 for known in (timed.whole, timed.within)
        )
        by_pair = by_pairs / len(judge.baseline_seconds_per_image)
        told = next(times for times in judge.step_times if speed_within(times) is not None)
        own = told.call + sum(seconds for _, seconds in told.probes)
        pair = float(np.mean(judge.baseline_seconds_per_image))
        if told is not judge.step_times[0]:
            pair += judge.step_times[0].call  # A call of a pair has no plain calls in it.
        gains.append((by_pair + within) / (own + pair) - within / own)
        halves.append(within**-0.5)
    return bool(gains) and float(np.median(gains)) > 0 and float(np.median(halves)) > ENOUGH


def noise_floor(noise: Measurement, pairs: int) -> float:
    """Return `TimingNoise.floor` of the baseline against itself, before any trial is timed."""
    return TimingNoise([noise]).floor(pairs)


def timing_spread(noise: Measurement, trials: Sequence[Measurement] = ()) -> float:
    """Return the standard deviation of the log ratio of one pair of calls; 0.0 without pairs.

    Each trial's own pairs count too, as the baseline's few may agree by chance. It is the median
    absolute deviation, which a few disturbed calls do not move.

    Args:
        noise: The baseline timed against itself.
        trials: Candidates, each timed beside the baseline.
    """
    deviations = [paired_log_ratios(noise)]
    for trial in trials:
        ratios = paired_log_ratios(trial)
        if len(ratios) > 1:
            # About their own mean they differ by less than about the true one.
            scale = math.sqrt(len(ratios) / (len(ratios) - 1))
            deviations.append(scale * (ratios - ratios.mean()))
    pooled = np.concatenate(deviations)
    to_sd = 1 / float(stats.norm.ppf(0.75))
    return to_sd * float(np.median(np.abs(pooled))) if len(pooled) else 0.0
