"""Estimates with their intervals, and verdicts on the loss of score."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import special

from accel_search.errors import ConfigurationError

CONFIDENCE = 0.95
FEWEST_TO_PASS = 8
"""Fewest prompts on which a loss may pass: what hits 1 prompt in 4 hides from 1 set in 10 of 8."""
POWER = 0.85
"""Probability that `prompts_needed` aims at; of recorded losses it settles about 4 in 5."""
MOST_NEEDED = 10**6
"""Most prompts that `prompts_needed` returns."""
USUAL_SKEWNESS = 2.0
"""Skewness of losses, either way, that a sample without it is taken to miss."""
MOST_MISSING = 2.5
"""Most skewness that is taken to be missing: a tail of gains tells of no losses."""
UNSEEN_LOSSES = 0.4
"""Part by which the upper end is further out for a unit of missing skewness to the right."""
UNSEEN_GAINS = 0.1
"""The same of the lower end, to the left: few prompts seldom gain much."""
KNOWN_SHAPE = 64
"""Prompts beyond which missing skewness counts less, with the root of their number."""
SEEN_TAIL = 0.8
"""Part by which an end is further out for a unit of skewness, over the root of the prompts."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def as_list(self) -> list[float]:
        """Return `[low, high]`."""
        return [self.low, self.high]

    @property
    def is_bounded(self) -> bool:
        """Return whether both ends of the interval are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def agrees_with(self, other: Estimate) -> bool:
        """Return whether the two differ by no more than both intervals allow."""
        lower, upper = sorted((self, other), key=lambda estimate: estimate.value)
        allowed = math.hypot(lower.high - lower.value, upper.value - upper.low)
        return upper.value - lower.value <= allowed


class Verdict(StrEnum):
    """Whether the score loss is within the bound."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


def score_loss(baseline: Sequence[float], candidate: Sequence[float]) -> Estimate:
    """Estimate the relative loss of mean score, paired by prompt.

    Args:
        baseline: Score of each prompt's baseline image, `[N]`.
        candidate: Score of the candidate's image of the same prompt and noise, `[N]`.

    Returns:
        (mean baseline − mean candidate) / mean baseline with its interval over prompts: Student's
        t, with both ends further out for skewness. Of one prompt it is infinite.

    Raises:
        ConfigurationError: The baseline's mean is not positive, so a relative loss has no
            meaning, or the two are not of one length.

    Source:
        A few prompts lose much and most lose little. A sample that holds none of the few has too
        small a mean and too small a spread, and does not show it: on recorded losses the truth is
        above the upper end in 7 to 16 % of cases by Student's t, with the correction for skewness
        of Johnson, "Modified t tests and confidence intervals for asymmetrical populations" (1978),
        and by the bootstrap of Efron, "Better bootstrap confidence intervals" (1987). So an end is
        put further out by Johnson's correction for the skewness that is seen, or for what is
        missing from the usual one, whichever is more. Fitted to two of the tables in
        tests/data/tables, tgate (upper end) and deepcache (lower end); for all five
        scripts/benchmarks/bench_intervals.py prints how often the interval holds the truth.
    """
    loss = _mean_loss(baseline, candidate)
    half = half_width(loss.error**2 * loss.freedom, loss.freedom, 1)
    return Estimate(loss.value, loss.value - loss.lower * half, loss.value + loss.upper * half)


def score_difference(
    baseline: Sequence[float], own: Sequence[float], other: Sequence[float]
) -> Estimate:
    """Estimate how much more score one candidate loses than another, paired by prompt.

    Args:
        baseline: Score of each prompt's baseline image, `[N]`.
        own: Score of the candidate's image of the same prompt and noise, `[N]`.
        other: Score of the other candidate's, `[N]`.

    Returns:
        (mean other − mean own) / mean baseline, above 0 where the candidate loses more. The
        interval is that of `score_loss`, but either of the two may be the one that loses much on
        few prompts: what skewness may be missing puts both ends equally far out.

    Raises:
        ConfigurationError: As `score_loss`.
    """
    before = np.asarray(baseline, float)
    lost = before + np.asarray(own, float) - np.asarray(other, float)
    loss = _mean_loss(baseline, lost.tolist())
    half = half_width(loss.error**2 * loss.freedom, loss.freedom, 1)
    count = len(before)
    seen = SEEN_TAIL * loss.skewness / math.sqrt(count)
    doubt = min(1.0, math.sqrt(KNOWN_SHAPE / count))
    missing = UNSEEN_LOSSES * doubt * max(USUAL_SKEWNESS - abs(loss.skewness), 0.0)
    lower, upper = 1 + max(-seen, missing), 1 + max(seen, missing)
    return Estimate(loss.value, loss.value - lower * half, loss.value + upper * half)


def chance_within(baseline: Sequence[float], candidate: Sequence[float], bound: float) -> float:
    """Return how sure it is that the mean loss over prompts like these is within a bound.

    Args:
        baseline: As for `score_loss`.
        candidate: As for `score_loss`.
        bound: Largest loss of score allowed, a fraction.

    Returns:
        The one-sided confidence at which the upper end of the interval of `score_loss` is the
        bound: at least 0.975 where the 95 % interval is within the bound, at most 0.025 where it is
        beyond, 0.5 for a single prompt.

    Raises:
        ConfigurationError: As `score_loss`.
    """
    loss = _mean_loss(baseline, candidate)
    distance = bound - loss.value
    if loss.freedom < 1:
        return 0.5
    if loss.error == 0:
        return float(distance >= 0)
    t = distance / loss.error
    return float(special.stdtr(loss.freedom, t / (loss.upper if t > 0 else loss.lower)))


@dataclass(frozen=True)
class _MeanLoss:
    """The mean loss of some prompts, and what its interval is made of."""

    value: float
    error: float
    """Its standard error; infinite for a single prompt."""
    freedom: int
    skewness: float
    lower: float
    """How far the lower end is from the value, in half-widths of Student's t."""
    upper: float


def _mean_loss(baseline: Sequence[float], candidate: Sequence[float]) -> _MeanLoss:
    if len(baseline) != len(candidate):
        raise ConfigurationError(
            f"{len(candidate)} scores for a baseline of {len(baseline)}: they are paired by prompt"
        )
    before, after = np.asarray(baseline, float), np.asarray(candidate, float)
    if not before.mean() > 0:
        raise ConfigurationError(
            f"the baseline's mean score is {before.mean():.2f}; a relative loss needs a positive "
            "one: check that --clip_model suits these images and prompts"
        )
    value = float(1 - after.mean() / before.mean())
    count = len(before)
    # Linearised about the loss: the mean of these is 0.
    apart = ((1 - value) * before - after) / before.mean()
    error = math.sqrt(float((apart**2).sum()) / (count - 1) / count) if count > 1 else math.inf
    skewness = skewness_of(apart)
    return _MeanLoss(value, error, count - 1, skewness, *_stretches(skewness, count))


def _stretches(skewness: float, count: int) -> tuple[float, float]:
    """Return how far the ends are from the value, in half-widths of Student's t: lower, upper."""
    seen = SEEN_TAIL * skewness / math.sqrt(count)
    doubt = min(1.0, math.sqrt(KNOWN_SHAPE / count))
    missing_gains = doubt * (USUAL_SKEWNESS - abs(skewness))
    missing_losses = doubt * min(USUAL_SKEWNESS - skewness, MOST_MISSING)
    lower = max(-seen, UNSEEN_GAINS * missing_gains, 0.0)
    return 1 + lower, 1 + max(seen, UNSEEN_LOSSES * missing_losses)


def skewness_of(apart: NDArray[np.float64]) -> float:
    """Return the skewness of deviations from their mean, corrected for their number."""
    count = len(apart)
    spread = math.sqrt(float((apart**2).mean()))
    if count < 3 or spread == 0:
        return 0.0
    biased = float(((apart / spread) ** 3).mean())
    return biased * math.sqrt(count * (count - 1)) / (count - 2)


def judge(loss: Estimate, bound: float, prompts: int = FEWEST_TO_PASS) -> Verdict:
    """Return whether a loss is within the bound, outside it, or cannot be told apart from it.

    Args:
        loss: The loss with its interval.
        bound: Largest loss of score allowed, a fraction.
        prompts: What it was measured on; on fewer than `FEWEST_TO_PASS` no loss passes.
    """
    if loss.high <= bound and prompts >= FEWEST_TO_PASS:
        return Verdict.PASS
    return Verdict.FAIL if loss.low > bound else Verdict.INCONCLUSIVE


def squares_of(ratios: NDArray[np.float64], mean: float | None = None) -> tuple[float, int]:
    """Return the sum of squares about a known mean, or about their own, and how many are free."""
    if mean is None:
        mean, free = (float(ratios.mean()) if len(ratios) else 0.0), max(len(ratios) - 1, 0)
    else:
        free = len(ratios)
    return float(((ratios - mean) ** 2).sum()), free


def half_width(squares: float, freedom: float, count: int) -> float:
    """Return the half-width of the interval of a mean of `count`, from a pooled sum of squares."""
    if freedom < 1:
        return math.inf
    t = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))
    return t * math.sqrt(squares / freedom / count)


def prompts_needed(
    baseline: Sequence[float], candidate: Sequence[float], bound: float
) -> int | None:
    """Estimate how many prompts would settle an inconclusive verdict in about four of five cases.

    The loss on other prompts is expected about the one measured, as far off as both may be by
    chance (a flat prior, normal means), with the same spread and skewness.

    Args:
        baseline: As for `score_loss`.
        candidate: As for `score_loss`.
        bound: Largest loss of score allowed, a fraction.

    Returns:
        The number, at most `MOST_NEEDED`; None of a single prompt, which says nothing of a spread.
    """
    loss = _mean_loss(baseline, candidate)
    count = len(baseline)
    if count < 2:
        return None
    spread = loss.error * math.sqrt(count)
    z = float(special.ndtri((1 + CONFIDENCE) / 2))

    def settled(prompts: int) -> float:
        if spread == 0:
            return 1.0
        lower, upper = _stretches(loss.skewness, prompts)
        error = spread / math.sqrt(prompts)
        off = math.hypot(error, loss.error)
        passes = (bound - loss.value - upper * z * error) / off
        fails = (loss.value - bound - lower * z * error) / off
        return float(special.ndtr(passes) + special.ndtr(fails))

    candidates = range(FEWEST_TO_PASS, MOST_NEEDED)
    return FEWEST_TO_PASS + bisect.bisect_left(candidates, POWER, key=settled)
