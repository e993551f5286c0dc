"""Intervals and verdicts, derived from raw samples and nothing else."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from accel_search.errors import ConfigurationError
from accel_search.racing import is_lost
from accel_search.records import Goal, Measurement, Trial

CONFIDENCE = 0.95
RESAMPLES = 2000
FEWEST_RESAMPLED = 6
"""Prompts from which on resampling them tells how their mean may differ."""
_SEED = 20240229  # The same samples always give the same interval.


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def as_list(self) -> list[float]:
        """Return `[low, high]`."""
        return [self.low, self.high]

    @property
    def is_bounded(self) -> bool:
        """Tell whether it is known how far off the value may be; if not, an end is infinite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def agrees_with(self, other: Estimate) -> bool:
        """Tell whether the two intervals overlap: if not, one of them is not what it claims."""
        return self.low <= other.high and other.low <= self.high


class Verdict(StrEnum):
    """Whether the score loss is within the bound."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Assessment:
    """What one trial's samples say about it."""

    speedup: Estimate
    """Baseline seconds per image / candidate seconds per image; above 1 is faster."""
    score_loss: Estimate
    """Fraction of the baseline's mean score that is lost; negative is better than it."""
    verdict: Verdict
    noise_floor: float
    """Relative difference that two copies of one pipeline may show at this number of pairs."""
    prompts: int
    """Prompts that the score loss was measured on."""
    is_complete: bool
    """Whether these are all prompts of the part; if not, the verdict is that of an early look."""
    psnr: float | None
    """Mean likeness to the baseline's images in dB, higher is nearer; None where not measured."""
    ssim: float | None
    """Mean structural similarity to the baseline's images; None where not measured."""

    @property
    def is_gain(self) -> bool:
        """Tell whether it is faster beyond its interval and beyond the noise floor."""
        return is_gain(self.speedup, self.noise_floor)

    def is_within(self, goal: Goal) -> bool:
        """Tell whether it keeps the goal's bounds on score and likeness."""
        return (
            self.score_loss.value <= goal.max_score_loss
            and _is_at_least(self.psnr, goal.min_psnr)
            and _is_at_least(self.ssim, goal.min_ssim)
        )


def _is_at_least(value: float | None, least: float | None) -> bool:
    """Tell whether a likeness keeps a bound, if there is one; an unknown one is not shown to."""
    return least is None or (value is not None and value >= least)


@dataclass(frozen=True)
class AssessedTrial:
    """A trial, and what follows from its samples; None for a failed one."""

    trial: Trial
    assessment: Assessment | None

    @property
    def is_open(self) -> bool:
        """Tell whether scoring it on more prompts could still make it pass."""
        found = self.assessment
        return found is not None and not found.is_complete and found.verdict is not Verdict.FAIL

    def is_feasible(self, goal: Goal) -> bool:
        """Tell whether it may be the winner: scored on all prompts, truly faster, within bounds."""
        found = self.assessment
        return found is not None and found.is_gain and self._is_good_enough(goal)

    def is_refused_for_noise(self, goal: Goal) -> bool:
        """Tell whether it would be the winner, were its timing less noisy."""
        found = self.assessment
        return (
            found is not None
            and found.speedup.value > 1.0
            and not found.is_gain
            and self._is_good_enough(goal)
        )

    def _is_good_enough(self, goal: Goal) -> bool:
        """Tell whether it meets the goal by its figures, whatever their noise."""
        found = self.assessment
        return (
            found is not None
            and found.is_complete
            and found.is_within(goal)
            and (goal.min_speedup is None or found.speedup.value >= goal.min_speedup)
        )


def is_gain(speedup: Estimate, noise_floor: float) -> bool:
    """Tell whether a speedup is one beyond its interval and beyond the noise floor.

    Args:
        speedup: Of a candidate over the baseline.
        noise_floor: Relative difference that two copies of one pipeline may show.
    """
    return speedup.low > 1.0 and speedup.value > 1.0 + noise_floor


def score_loss(baseline: Sequence[float], candidate: Sequence[float]) -> Estimate:
    """Estimate the relative loss of mean score, paired by prompt.

    Args:
        baseline: Score of each prompt's baseline image, `[N]`.
        candidate: Score of the candidate's image of the same prompt and noise, `[N]`.

    Returns:
        (mean baseline − mean candidate) / mean baseline with its bias-corrected and
        accelerated bootstrap interval over prompts, widened for few of them. Of fewer than
        `FEWEST_RESAMPLED` it is Student's t, and of one the interval is infinite.

    Raises:
        ConfigurationError: The baseline's mean is not positive, so a relative loss has no
            meaning, or the two are not of one length.

    Source:
        Efron, "Better bootstrap confidence intervals" (1987), as scipy.stats.bootstrap has it. Its
        percentiles are too narrow at few prompts (92 % at 16 for 95 %, measured by
        tests/reliability/test_coverage.py): expanded as in Hesterberg, "What teachers should know
        about the bootstrap" (2015), to those of Student's t. Two to five prompts have too few
        distinct resamples for any level (51 to 90 %, same test).
    """
    if len(baseline) != len(candidate):
        raise ConfigurationError(
            f"{len(candidate)} scores for a baseline of {len(baseline)}: they are paired by prompt"
        )
    before, after = np.asarray(baseline, float), np.asarray(candidate, float)
    if not before.mean() > 0:
        raise ConfigurationError(
            f"the baseline's mean score is {before.mean():.2f}; a relative loss needs a positive "
            "one: check that --clip_model suits these pictures and prompts"
        )
    value = float(1 - after.mean() / before.mean())
    if len(before) < 2:
        return Estimate(value, -math.inf, math.inf)
    # The bootstrap of a constant is not defined; there the interval is the value.
    if np.ptp(before - after) == 0 and np.ptp(before) == 0:
        return Estimate(value, value, value)
    if np.array_equal(before, after):
        return Estimate(0.0, 0.0, 0.0)
    if len(before) < FEWEST_RESAMPLED:
        # Linearised about the loss, as in `racing.is_lost`: the mean of these is 0.
        apart = ((1 - value) * before - after) / before.mean()
        half = half_width(*squares_of(apart), len(apart))
        return Estimate(value, value - half, value + half)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        # The same loss at every prompt: all resamples agree, and no end can be computed.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (before, after),
            lambda b, a, axis: 1 - a.mean(axis=axis) / b.mean(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=_expanded(len(before)),
            method="BCa",
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
    low, high = (value if math.isnan(end) else float(end) for end in interval)
    return Estimate(value, low, high)


def _expanded(count: int) -> float:
    """Return the level at which a bootstrap's percentiles of `count` samples hold `CONFIDENCE`.

    Resampling takes the spread of n samples with n in place of n − 1, and knows no tails heavier
    than the normal's: both are made up for by the level.
    """
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    level = 1 - 2 * float(stats.norm.cdf(-math.sqrt(count / (count - 1)) * t))
    return min(level, 1 - 2 / RESAMPLES)  # There are no percentiles beyond the outermost resamples.


def judge(loss: Estimate, bound: float) -> Verdict:
    """Return whether a loss is within the bound, outside it, or cannot be told apart from it."""
    if loss.high <= bound:
        return Verdict.PASS
    return Verdict.FAIL if loss.low > bound else Verdict.INCONCLUSIVE


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
        baselines: The bare pipeline timed against itself.
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
        groups = [(_pairs_of(each), squares_of(paired_log_ratios(each), 0.0)) for each in baselines]
        groups += [(_pairs_of(each), squares_of(paired_log_ratios(each))) for each in trials]
        # What is stored twice, under two names, is one group.
        found = {key: (squares, free) for key, (squares, free) in groups if free > 0}
        squares = np.array([each[0] for each in found.values()])
        free = np.array([each[1] for each in found.values()], float)
        kept = np.ones(len(found), dtype=bool)
        while kept.sum() > 2:
            rest, left = squares[kept].sum() - squares, free[kept].sum() - free
            chance = np.where(kept, _chance(squares, free, rest, left), 1.0)
            worst = int(np.argmin(chance))
            if chance[worst] * kept.sum() >= OUTLIER:
                break
            kept[worst] = False
        self._pooled = {key for key, keep in zip(found, kept, strict=True) if keep}
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
    for name, each in beside.items():
        part = baselines if name.startswith("baseline:") else others
        part.setdefault(each.batch_size, []).append(each)
    for measured in trials:
        if measured is not None:
            others.setdefault(measured.batch_size, []).append(measured)
    sizes = baselines.keys() | others.keys()
    return {size: TimingNoise(baselines.get(size, ()), others.get(size, ())) for size in sizes}


def _pairs_of(measurement: Measurement) -> tuple[tuple[float, ...], tuple[float, ...]]:
    beside = measurement.baseline_seconds_per_image
    return beside, measurement.seconds_per_image[: len(beside)]


def squares_of(ratios: NDArray[np.float64], mean: float | None = None) -> tuple[float, int]:
    """Return the sum of squares about a known mean, or about their own, and how many are free."""
    if mean is None:
        mean, free = (float(ratios.mean()) if len(ratios) else 0.0), max(len(ratios) - 1, 0)
    else:
        free = len(ratios)
    return float(((ratios - mean) ** 2).sum()), free


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


def half_width(squares: float, freedom: float, count: int) -> float:
    """Half-width of the interval of a mean of `count`, from a pooled sum of squares."""
    if freedom < 1:
        return math.inf
    t = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))
    return t * math.sqrt(squares / freedom / count)


def assess(
    measurement: Measurement,
    baseline: Measurement,
    bound: float,
    noise: TimingNoise | None = None,
) -> Assessment:
    """Derive everything that is said about one measured candidate.

    Args:
        measurement: The candidate's samples, over all prompts or over the first of them.
        baseline: The baseline's, over all prompts.
        bound: Largest score loss that is allowed, a fraction.
        noise: How far pairs differ by chance; None takes the baseline's pairs alone.
    """
    known = noise or TimingNoise([baseline])
    count = len(measurement.scores)
    is_complete = count == len(baseline.scores)
    before = baseline.scores[:count]
    loss = score_loss(before, measurement.scores)
    if is_complete:
        verdict = judge(loss, bound)
    else:
        lost = is_lost(before, measurement.scores, bound, len(baseline.scores))
        verdict = Verdict.FAIL if lost else Verdict.INCONCLUSIVE
    return Assessment(
        speedup=speedup(measurement, known),
        score_loss=loss,
        verdict=verdict,
        noise_floor=known.floor(len(measurement.baseline_seconds_per_image)),
        prompts=count,
        is_complete=is_complete,
        psnr=_mean(measurement.psnr),
        ssim=_mean(measurement.ssim),
    )


def retimed(found: Assessment, measurement: Measurement, noise: TimingNoise) -> Assessment:
    """Return an assessment whose timing is judged by what is known of the noise by now."""
    return replace(
        found,
        speedup=speedup(measurement, noise),
        noise_floor=noise.floor(len(measurement.baseline_seconds_per_image)),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


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


def prompts_needed(
    baseline: Sequence[float], candidate: Sequence[float], bound: float
) -> int | None:
    """Estimate how many prompts would settle an inconclusive verdict; None of a single one.

    By the normal approximation: the interval's half-width shrinks with the square root of
    the number of prompts and must fall below the distance from the bound.
    """
    before, after = np.asarray(baseline, float), np.asarray(candidate, float)
    if len(before) < 2:
        return None
    distance = abs(1 - after.mean() / before.mean() - bound)
    if distance == 0:
        return 10**6
    spread = float((before - after).std(ddof=1)) / float(before.mean())
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    return int(min(10**6, math.ceil((z * spread / distance) ** 2)))
