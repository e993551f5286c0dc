"""What a search's own data say against its results, in words."""

from __future__ import annotations

import textwrap

from accel_search.core.early_stopping import hides_gains
from accel_search.core.intervals import Verdict
from accel_search.core.outcome import Outcome
from accel_search.report.format import counted, factor

WIDTH = 80
"""Columns of the paragraphs."""


def disagreement(outcome: Outcome) -> str:
    """Return a warning where the winner's speedup depends on how it is timed."""
    headline = outcome.headline
    timed = None if headline is None else headline.disagreement
    if timed is None or timed.whole is None or timed.within is None:
        return ""
    return textwrap.fill(
        f"Whole calls of the winner beside the baseline's show a speedup of {factor(timed.whole)}, "
        f"its UNet calls one by one {factor(timed.within)}: the interval above allows for that.",
        WIDTH,
    )


def given_up(outcome: Outcome) -> str:
    """Return a warning where losses are of the shape on which early stopping errs."""
    complete = [
        trial for trial in outcome.trials if trial.assessment and trial.assessment.is_complete
    ]
    count = sum(
        trial.assessment.verdict is Verdict.FAIL and not trial.assessment.is_complete
        for trial in outcome.trials
        if trial.assessment
    )
    scores = [trial.trial.measurement.scores for trial in complete if trial.trial.measurement]
    if not count or not hides_gains(outcome.baseline.scores, scores):
        return ""
    return textwrap.fill(
        f"A few prompts gain much here and most lose a little, which a few prompts do not show: of "
        f"the {counted(count, 'candidate')} given up early, some may be within the bound. "
        "--strategy grid scores every candidate on all prompts.",
        WIDTH,
    )
