"""Assess a trial: everything here is derived from its samples alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from accel_search.core.early_stopping import is_lost
from accel_search.core.intervals import Estimate, Verdict, judge, prompts_needed, score_loss
from accel_search.core.timing_noise import Timed, TimingNoise, is_gain
from accel_search.core.trial import Goal, Measurement, Trial


@dataclass(frozen=True)
class Assessment:
    """Statistics of one trial's samples."""

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
    """Whether these are all prompts of the part; if not, the verdict is that of an early stage."""
    psnr: float | None
    """Mean PSNR to the baseline's images in dB, higher is nearer; None where not measured."""
    ssim: float | None
    """Mean structural similarity to the baseline's images; None where not measured."""
    tail_loss: float | None = None
    """Mean loss over the worst tenth of prompts, from `tail_loss`; None where unknown."""
    range_loss: float | None = None
    """Loss as a fraction of the score's usable range, from `usable_range`; None where unknown."""
    prompts_needed: int | None = None
    """Prompts that would settle an inconclusive verdict; None of others, and where unknown."""
    disagreement: Timed | None = None
    """The speedup by whole calls and by single UNet calls, where they disagree."""

    @property
    def is_gain(self) -> bool:
        """Return whether it is faster beyond its interval and beyond the noise floor."""
        return is_gain(self.speedup, self.noise_floor)

    def is_within(self, goal: Goal) -> bool:
        """Return whether it keeps the goal's bounds on score, its worst prompts and similarity."""
        return self.score_loss.value <= goal.max_score_loss and not self.broken(goal)

    def broken(self, goal: Goal) -> dict[str, float | None]:
        """Return the bounds that it breaks, that on score left out: name -> its own value."""
        is_kept = {
            "min_psnr": (self.psnr, _is_at_least(self.psnr, goal.min_psnr)),
            "min_ssim": (self.ssim, _is_at_least(self.ssim, goal.min_ssim)),
            "max_tail_loss": (self.tail_loss, _is_at_most(self.tail_loss, goal.max_tail_loss)),
        }
        return {name: value for name, (value, kept) in is_kept.items() if not kept}


def _is_at_least(value: float | None, least: float | None) -> bool:
    """Return whether a similarity keeps a bound, if there is one; an unknown one does not."""
    return least is None or (value is not None and value >= least)


def _is_at_most(value: float | None, most: float | None) -> bool:
    """Return whether a loss keeps a bound, if there is one; an unknown one does not."""
    return most is None or (value is not None and value <= most)


@dataclass(frozen=True)
class AssessedTrial:
    """A trial, and what follows from its samples; None for a failed one."""

    trial: Trial
    assessment: Assessment | None

    @property
    def is_open(self) -> bool:
        """Return whether scoring it on more prompts could still make it pass."""
        assessment = self.assessment
        return (
            assessment is not None
            and not assessment.is_complete
            and assessment.verdict is not Verdict.FAIL
        )

    def is_feasible(self, goal: Goal) -> bool:
        """Return whether it may be the winner: scored on all prompts, faster, within bounds."""
        assessment = self.assessment
        return assessment is not None and assessment.is_gain and self._is_good_enough(goal)

    def is_refused_for_noise(self, goal: Goal) -> bool:
        """Return whether it would be the winner, were its timing less noisy."""
        assessment = self.assessment
        return (
            assessment is not None
            and assessment.speedup.value > 1.0
            and not assessment.is_gain
            and self._is_good_enough(goal)
        )

    def _is_good_enough(self, goal: Goal) -> bool:
        """Return whether it meets the goal by its figures, whatever their noise."""
        assessment = self.assessment
        return (
            assessment is not None
            and assessment.is_complete
            and assessment.is_within(goal)
            and (goal.min_speedup is None or assessment.speedup.value >= goal.min_speedup)
        )


def assess(
    measurement: Measurement,
    baseline: Measurement,
    bound: float,
    noise: TimingNoise | None = None,
) -> Assessment:
    """Derive the assessment of one measured candidate.

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
    needed = None
    if is_complete:
        verdict = judge(loss, bound, count)
        if verdict is Verdict.INCONCLUSIVE:
            needed = prompts_needed(before, measurement.scores, bound)
    else:
        lost = is_lost(before, measurement.scores, bound, len(baseline.scores))
        verdict = Verdict.FAIL if lost else Verdict.INCONCLUSIVE
    timed = known.timed(measurement)
    usable = usable_range(baseline)
    points_lost = (sum(before) - sum(measurement.scores)) / count
    return Assessment(
        speedup=timed.speedup,
        score_loss=loss,
        verdict=verdict,
        noise_floor=known.floor_of(measurement),
        disagreement=_disagreement(timed),
        prompts=count,
        is_complete=is_complete,
        psnr=_mean(measurement.psnr),
        ssim=_mean(measurement.ssim),
        tail_loss=tail_loss(before, measurement.scores),
        range_loss=None if usable is None else points_lost / usable,
        prompts_needed=needed,
    )


def usable_range(baseline: Measurement) -> float | None:
    """Return the points of score between a baseline's images and images of something else.

    CLIP gives some score to any image: the mean score of the same images against another prompt
    of the set each is its floor.

    Returns:
        Mean score minus that floor; None where the floor is unknown or not below the score.
    """
    if not baseline.shuffled_scores:
        return None
    floor = sum(baseline.shuffled_scores) / len(baseline.shuffled_scores)
    usable = sum(baseline.scores) / len(baseline.scores) - floor
    return usable if usable > 0 else None


def tail_loss(baseline: Sequence[float], candidate: Sequence[float]) -> float:
    """Return the mean loss over the worst tenth of prompts, a fraction.

    A prompt's loss is its own baseline score minus its candidate's, as a fraction of the baseline's
    mean over all prompts, not of its own score, which may be near 0. So the mean over all prompts
    is the score loss, and the tail is never below it. The tenth is rounded up: one prompt of 10 or
    fewer, four of 32. It has no interval: it is of these prompts.

    Args:
        baseline: Score of each prompt's baseline image, `[N]`.
        candidate: Score of the candidate's image of the same prompt and noise, `[N]`.
    """
    losses = sorted((b - c for b, c in zip(baseline, candidate, strict=True)), reverse=True)
    worst = losses[: tail_size(len(losses))]
    return sum(worst) / len(worst) / (sum(baseline) / len(baseline))


def tail_size(prompts: int) -> int:
    """Return how many prompts are the worst tenth."""
    return math.ceil(prompts / 10)


def retimed(assessment: Assessment, measurement: Measurement, noise: TimingNoise) -> Assessment:
    """Return an assessment with its timing judged by the noise as it is known by now."""
    timed = noise.timed(measurement)
    return replace(
        assessment,
        speedup=timed.speedup,
        noise_floor=noise.floor_of(measurement),
        disagreement=_disagreement(timed),
    )


def _disagreement(timed: Timed) -> Timed | None:
    return timed if timed.discrepancy > 1 else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def verdict(assessment: Assessment) -> str:
    """Return a verdict as text: `open` for an early stage that decided nothing."""
    is_open = not assessment.is_complete and assessment.verdict is Verdict.INCONCLUSIVE
    return "open" if is_open else str(assessment.verdict)
