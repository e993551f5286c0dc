"""Verdicts on a candidate that was chosen before it was measured: a stored one, or a named one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from accel_search.core.assessment import Assessment
from accel_search.core.intervals import Estimate, Verdict
from accel_search.core.timing_noise import is_gain
from accel_search.core.trial import Goal


def judge_speedup(
    measured: Estimate, floor: float, required: float | None, least: float = 1.0
) -> Verdict:
    """Compare a speedup with the required one or, without one, with the least that is expected.

    Args:
        measured: The speedup.
        floor: Relative difference that two copies of the baseline pipeline may show by chance.
        required: The whole interval has to be at it or above; None requires a gain.
        least: Without a required speedup, the value has to be at it or above too, and one whose
            whole interval is below it fails.
    """
    if required is not None:
        if measured.high < required:
            return Verdict.FAIL
        return Verdict.PASS if measured.low >= required else Verdict.INCONCLUSIVE
    if measured.high < least:
        return Verdict.FAIL
    is_held = is_gain(measured, floor) and measured.value >= least
    return Verdict.PASS if is_held else Verdict.INCONCLUSIVE


def judge_quality(assessment: Assessment, goal: Goal) -> Verdict:
    """Return the verdict on the score loss; `fail` where another bound on quality is broken.

    Similarity and the worst prompts have no interval: they are within their bounds or not.
    """
    others = replace(goal, max_score_loss=1.0, min_speedup=None)
    return assessment.verdict if assessment.is_within(others) else Verdict.FAIL


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """Return `fail` if one of several fails, `pass` if all pass."""
    known = set(verdicts)
    if Verdict.FAIL in known:
        return Verdict.FAIL
    return Verdict.PASS if known == {Verdict.PASS} else Verdict.INCONCLUSIVE
