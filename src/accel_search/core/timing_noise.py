"""Speedups of calls timed side by side, and how far they differ by chance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from accel_search.core.extras import is_baseline
from accel_search.core.intervals import Estimate, half_width, squares_of
from accel_search.core.trial import Measurement


def is_gain(speedup: Estimate, noise_floor: float) -> bool:
    """Return whether a speedup is one beyond its interval and beyond the noise floor.

    Args:
        speedup: Of a candidate over the baseline.
        noise_floor: Relative difference that two copies of one pipeline may show.
    """
    return speedup.low > 1.0 and speedup.value > 1.0 + noise_floor


def paired_log_ratios(measurement: Measurement) -> NDArray[np.float64]:
    """Return log(baseline seconds / candidate seconds) of the calls timed side by side, `[M]`."""
    beside = np.asarray(measurement.baseline_seconds_per_image, float)
    own = np.asarray(measurement.seconds_per_image[: len(beside)], float)
    ratios: NDArray[np.float64] = np.log(beside / own)
    return ratios


DOUBT = 0.2
"""Probability of its own spread, were it that of all pairs, below which a trial's counts more."""
OUTLIER = 0.01
"""The same, over all trials together, below which it tells nothing of the others' pairs."""


class TimingNoise:
    """How far pairs of calls differ by chance, by all pairs that were timed at one batch size.

    Two or three pairs are a poor guess at it: where they agree by chance, an interval made of them
    is too narrow, and the next one, made of others, is somewhere else. So a mean of pairs is judged
    by the pooled spread of all trials' pairs about their own means and of the baseline's against
    itself, whose true ratio is known to be 1. A trial whose own pairs differ by more than that
    allows is taken at its word: the less likely they are, the less the pool weighs beside them,
    down to nothing.

    Args:
        baselines: The baseline pipeline timed against itself.
        trials: Candidates, each timed beside the baseline; one with a single pair tells nothing.

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

    def half_width(self, measurement: Measurement) -> float:
        """Return half the width of the interval of a measurement's mean log ratio."""
        ratios = paired_log_ratios(measurement)
        own, own_free = squares_of(ratios)
        rest, free = self._squares, self._free
        if own_free and _pairs_of(measurement) in self._pooled:
            rest, free = rest - own, free - own_free
        if own_free and free > 0 and rest > 0:
            chance = float(_chance(own, own_free, rest, free))
            weight = min(1.0, chance / DOUBT)
            rest, free = weight * rest, weight * free
        return half_width(own + rest, own_free + free, len(ratios))

    def floor(self, pairs: int) -> float:
        """Return the relative difference that two copies of one pipeline may show by chance.

        One call that was disturbed while the baseline was timed against itself widens it only
        until the trials' pairs contradict that.

        Args:
            pairs: Pairs of calls that a ratio is the mean of.

        Returns:
            Half the width of the 95 % interval of such a ratio, e.g. 0.01 for ±1 %.
        """
        return math.expm1(half_width(self._squares, self._free, pairs))


def timing_noises(
    beside: Mapping[str, Measurement], trials: Iterable[Measurement | None]
) -> dict[int, TimingNoise]:
    """Return batch size -> how far pairs of calls differ by chance.

    Args:
        beside: What a study remembers beside its trials, by name: baselines, confirmations, rivals.
        trials: Its trials' measurements; None for a failed one.
    """
    baselines: dict[int, list[Measurement]] = {}
    others: dict[int, list[Measurement]] = {}
    for name, measurement in beside.items():
        part = baselines if is_baseline(name) else others
        part.setdefault(measurement.batch_size, []).append(measurement)
    for measured in trials:
        if measured is not None:
            others.setdefault(measured.batch_size, []).append(measured)
    sizes = baselines.keys() | others.keys()
    return {size: TimingNoise(baselines.get(size, ()), others.get(size, ())) for size in sizes}


def _pairs_of(measurement: Measurement) -> tuple[tuple[float, ...], tuple[float, ...]]:
    beside = measurement.baseline_seconds_per_image
    return beside, measurement.seconds_per_image[: len(beside)]


def _chance(squares: Any, free: Any, rest: Any, rest_free: Any) -> Any:
    """Return the probability of so large a spread or a larger one, were it that of the rest."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(squares, free) / np.divide(rest, rest_free)
    return np.where(np.isfinite(ratio), special.fdtrc(free, rest_free, ratio), 1.0)


def speedup(measurement: Measurement, noise: TimingNoise | Measurement) -> Estimate:
    """Estimate the speedup from calls timed side by side.

    Args:
        measurement: The candidate's, with at least one pair.
        noise: How far pairs differ by chance; or the baseline, where its pairs against itself are
            all that is known of it.

    Returns:
        Geometric mean of the pairs' ratios, with its interval by Student's t and the spread of all
        pairs.
    """
    known = noise if isinstance(noise, TimingNoise) else TimingNoise([noise])
    mean = float(paired_log_ratios(measurement).mean())
    half = known.half_width(measurement)
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def noise_floor(noise: Measurement, pairs: int) -> float:
    """Return `TimingNoise.floor` of the baseline against itself, where no trial is timed yet."""
    return TimingNoise([noise]).floor(pairs)


def timing_spread(noise: Measurement, trials: Sequence[Measurement] = ()) -> float:
    """Return the standard deviation of the log ratio of one pair of calls; 0.0 without pairs.

    The baseline's few pairs alone may agree by chance: what each trial's own pairs differ by is
    counted in. By the median, which a few disturbed calls do not move.

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
