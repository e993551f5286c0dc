"""Intervals and verdicts, derived from raw samples and nothing else."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from accel_search.errors import ConfigurationError
from accel_search.racing import is_lost
from accel_search.records import Goal, Measurement, Trial

CONFIDENCE = 0.95
RESAMPLES = 2000
_SEED = 20240229  # The same samples always give the same interval.


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def as_list(self) -> list[float]:
        """Return `[low, high]`, as result files hold it."""
        return [self.low, self.high]

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
    """Relative difference that two copies of one pipeline show at this number of pairs."""
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
        return self.speedup.low > 1.0 and self.speedup.value > 1.0 + self.noise_floor

    def is_within(self, goal: Goal) -> bool:
        """Tell whether it keeps the goal's bounds on score and likeness."""
        return (
            self.score_loss.value <= goal.max_score_loss
            and (goal.min_psnr is None or (self.psnr or 0.0) >= goal.min_psnr)
            and (goal.min_ssim is None or (self.ssim or 0.0) >= goal.min_ssim)
        )


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
        return (
            found is not None
            and found.is_complete
            and found.is_gain
            and found.is_within(goal)
            and (goal.min_speedup is None or found.speedup.value >= goal.min_speedup)
        )


def score_loss(baseline: Sequence[float], candidate: Sequence[float]) -> Estimate:
    """Estimate the relative loss of mean score, paired by prompt.

    Args:
        baseline: Score of each prompt's baseline image, `[N]`.
        candidate: Score of the candidate's image of the same prompt and noise, `[N]`.

    Returns:
        (mean baseline − mean candidate) / mean baseline with its bias-corrected and
        accelerated bootstrap interval over prompts, widened for few of them.

    Raises:
        ConfigurationError: The baseline's mean is not positive, so a relative loss has no
            meaning, or the two are not of one length.

    Source:
        Efron, "Better bootstrap confidence intervals" (1987), as scipy.stats.bootstrap has it. Its
        percentiles are too narrow at few prompts (92 % at 16 for 95 %, measured by
        tests/reliability/test_coverage.py): expanded as in Hesterberg, "What teachers should know
        about the bootstrap" (2015), section 4.1, equation 7, to those of Student's t.
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
    # The bootstrap of a constant is not defined; there the interval is the value.
    if len(before) < 2 or (np.ptp(before - after) == 0 and np.ptp(before) == 0):
        return Estimate(value, value, value)
    if np.array_equal(before, after):
        return Estimate(0.0, 0.0, 0.0)
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


def speedup(measurement: Measurement, noise: Measurement) -> Estimate:
    """Estimate the speedup from calls timed side by side.

    The spread of one trial's few pairs is a poor guess at the noise, so it is pooled with
    that of the baseline timed against itself, whose true ratio is known to be 1.

    Args:
        measurement: The candidate's, with at least one pair.
        noise: The baseline's, whose pairs are baseline against baseline.

    Returns:
        Geometric mean of the pairs' ratios, with its interval by Student's t.
    """
    ratios, noise_ratios = paired_log_ratios(measurement), paired_log_ratios(noise)
    mean = float(ratios.mean())
    freedom = len(ratios) - 1 + len(noise_ratios)
    squares = float(((ratios - mean) ** 2).sum() + (noise_ratios**2).sum())
    half = _half_width(squares, freedom, len(ratios))
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def noise_floor(noise: Measurement, pairs: int) -> float:
    """Return the relative difference that two copies of one pipeline may show by chance.

    Args:
        noise: The baseline timed against itself.
        pairs: Pairs of calls that a ratio is the mean of.

    Returns:
        Half the width of the 95 % interval of such a ratio, e.g. 0.01 for ±1 %.
    """
    ratios = paired_log_ratios(noise)
    half = _half_width(float((ratios**2).sum()), len(ratios), pairs)
    return math.expm1(half)


def _half_width(squares: float, freedom: int, count: int) -> float:
    """Half-width of the interval of a mean of `count`, from a pooled sum of squares."""
    if freedom < 1:
        return math.inf
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    return t * math.sqrt(squares / freedom / count)


def assess(measurement: Measurement, baseline: Measurement, bound: float) -> Assessment:
    """Derive everything that is said about one measured candidate.

    Args:
        measurement: The candidate's samples, over all prompts or over the first of them.
        baseline: The baseline's, over all prompts.
        bound: Largest score loss that is allowed, a fraction.
    """
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
        speedup=speedup(measurement, baseline),
        score_loss=loss,
        verdict=verdict,
        noise_floor=noise_floor(baseline, len(measurement.baseline_seconds_per_image)),
        prompts=count,
        is_complete=is_complete,
        psnr=_mean(measurement.psnr),
        ssim=_mean(measurement.ssim),
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


def prompts_needed(baseline: Sequence[float], candidate: Sequence[float], bound: float) -> int:
    """Estimate how many prompts would settle an inconclusive verdict.

    By the normal approximation: the interval's half-width shrinks with the square root of
    the number of prompts and must fall below the distance from the bound.
    """
    before, after = np.asarray(baseline, float), np.asarray(candidate, float)
    distance = abs(1 - after.mean() / before.mean() - bound)
    if distance == 0:
        return 10**6
    spread = float((before - after).std(ddof=1)) / float(before.mean())
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    return int(min(10**6, math.ceil((z * spread / distance) ** 2)))
