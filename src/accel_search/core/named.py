"""Settings that a user names: a verdict on each, and how they compare with each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from accel_search.core.assessment import AssessedTrial
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate, Verdict, score_difference
from accel_search.core.outcome import Outcome
from accel_search.core.timing_noise import MOST_LOG
from accel_search.core.trial import Goal, Measurement
from accel_search.core.verdicts import judge_quality, judge_speedup, overall


@dataclass(frozen=True)
class Named:
    """One named candidate, measured on all prompts."""

    assessed: AssessedTrial
    goal: Goal
    same: tuple[Candidate, ...] = ()
    """Others that were named and are the same computation: they were not measured again."""

    @property
    def candidate(self) -> Candidate:
        """Return its settings, as they were named first."""
        return self.assessed.trial.candidate

    @property
    def speedup_verdict(self) -> Verdict:
        """Return whether it reaches the required speedup; without one, whether it is a gain."""
        own = self.assessed.assessment
        if own is None:
            return Verdict.FAIL
        return judge_speedup(own.speedup, own.noise_floor, self.goal.min_speedup)

    @property
    def score_verdict(self) -> Verdict:
        """Return whether it keeps the bounds on quality."""
        own = self.assessed.assessment
        return Verdict.FAIL if own is None else judge_quality(own, self.goal)

    @property
    def verdict(self) -> Verdict:
        """Return `fail` if either fails, `pass` if both pass; one that raised has failed."""
        return overall((self.speedup_verdict, self.score_verdict))


@dataclass(frozen=True)
class Comparison:
    """One named candidate beside another."""

    candidate: Candidate
    against: Candidate
    speed: Estimate
    """Speedup of the candidate / speedup of the other; above 1 is faster than the other."""
    loss: Estimate
    """Its score loss less the other's, a fraction, paired by prompt; above 0 it loses more."""


@dataclass(frozen=True)
class NamedOutcome:
    """What was measured of the named candidates."""

    outcome: Outcome
    """As of a search: its winner is the fastest candidate that passes."""
    named: tuple[Named, ...]
    """In the order in which they were named."""
    comparisons: tuple[Comparison, ...]
    """Each further candidate with the first; without those that cannot be compared."""

    @property
    def verdict(self) -> Verdict:
        """Return `fail` if one candidate fails, `pass` if all pass."""
        return overall(named.verdict for named in self.named)


def fastest_passing(named: Sequence[Named]) -> AssessedTrial | None:
    """Return the fastest candidate that passes; None where none does."""
    passing = [one.assessed for one in named if one.verdict is Verdict.PASS]
    return max(passing, key=lambda one: one.assessment.speedup.value, default=None)  # type: ignore[union-attr]


def compare(named: Named, first: Named, baseline: Measurement) -> Comparison | None:
    """Compare two candidates that were measured on the same prompts, noise and batch size.

    Args:
        named: A candidate.
        first: The one to compare it with.
        baseline: At their batch size, on all prompts.

    Returns:
        None where one failed, or where a batch was halved in between: seconds per image at two
        batch sizes are not compared.
    """
    one, other = named.assessed.trial.measurement, first.assessed.trial.measurement
    own, others = named.assessed.assessment, first.assessed.assessment
    if one is None or other is None or own is None or others is None:
        return None
    if one.batch_size != other.batch_size or len(one.scores) != len(other.scores):
        return None
    return Comparison(
        named.candidate,
        first.candidate,
        speed_ratio(own.speedup, others.speedup),
        score_difference(baseline.scores, one.scores, other.scores),
    )


def speed_ratio(own: Estimate, other: Estimate) -> Estimate:
    """Return the ratio of two speedups that were timed beside different baseline calls.

    What slows the whole machine cancels within each; what is left differs independently, so the
    distances to the ends add up as squares of logarithms do.
    """
    low = math.hypot(_log_ratio(own.value, own.low), _log_ratio(other.high, other.value))
    high = math.hypot(_log_ratio(own.high, own.value), _log_ratio(other.value, other.low))
    value = own.value / other.value
    top = value * math.exp(high) if high < MOST_LOG else math.inf
    return Estimate(value, value * math.exp(-low), top)


def _log_ratio(high: float, low: float) -> float:
    """Return log(high / low); infinite where an end of an interval is unknown."""
    return math.log(high / low) if math.isfinite(high) and low > 0 else math.inf
