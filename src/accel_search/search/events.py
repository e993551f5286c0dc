"""What a search reports as it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from accel_search.core.assessment import AssessedTrial, Assessment
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate
from accel_search.core.outcome import Ablation, Rival
from accel_search.core.trial import Measurement, Trial


class Observer(Protocol):
    """Is told what happens, as it happens."""

    def on_baseline(self, baseline: Measurement) -> None:
        """Tell that the baseline is measured, or was recalled."""

    def on_resume(self, history: Sequence[AssessedTrial]) -> None:
        """Tell of the trials that an earlier run stored."""

    def on_start(self, candidate: Candidate) -> None:
        """Tell that a candidate is about to be measured."""

    def on_trial(self, assessed: AssessedTrial) -> None:
        """Tell that a trial is stored: finished, or at an early look of its race."""

    def on_confirm(self, assessed: AssessedTrial, held_out: Assessment | None, ok: bool) -> None:
        """Tell how a candidate did on held-out prompts; None where it failed there."""

    def on_rival(self, rival: Rival) -> None:
        """Tell what the bare pipeline does with fewer steps."""

    def on_ablation(self, ablation: Ablation) -> None:
        """Tell what the winner does without one of its targets."""


class Listener(Protocol):
    """Is told what is timed, as it is."""

    def on_baseline(self, baseline: Measurement) -> None:
        """Tell that the baseline is measured, or was recalled."""

    def on_start(self, candidate: Candidate) -> None:
        """Tell that a candidate is about to be timed."""

    def on_timed(self, trial: Trial, found: Estimate | None) -> None:
        """Tell what came of it; None where it failed."""


class Everything(Observer, Listener, Protocol):
    """Is told of a search, and of the timing of what it did not score."""


class Observers:
    """Tells an observer of a search what happens, and then all others.

    Args:
        first: Is told first.
        tell: Passes an event on to the others, who may lack it: its name, then its arguments.
    """

    def __init__(self, first: Everything, tell: Callable[..., None]) -> None:
        self._first = first
        self._tell = tell

    def on_baseline(self, baseline: Measurement) -> None:
        """Tell that the baseline is measured, or was recalled."""
        self._first.on_baseline(baseline)
        self._tell("on_baseline", baseline)

    def on_resume(self, history: Sequence[AssessedTrial]) -> None:
        """Tell of the trials that an earlier run stored."""
        self._first.on_resume(history)
        self._tell("on_resume", history)

    def on_start(self, candidate: Candidate) -> None:
        """Tell that a candidate is about to be measured."""
        self._first.on_start(candidate)
        self._tell("on_start", candidate)

    def on_trial(self, assessed: AssessedTrial) -> None:
        """Tell that a trial is stored."""
        self._first.on_trial(assessed)
        self._tell("on_trial", assessed)

    def on_timed(self, trial: Trial, found: Estimate | None) -> None:
        """Tell what a candidate's timing came to."""
        self._first.on_timed(trial, found)
        self._tell("on_timed", trial, found)

    def on_confirm(self, assessed: AssessedTrial, held_out: Assessment | None, ok: bool) -> None:
        """Tell how a candidate did on held-out prompts."""
        self._first.on_confirm(assessed, held_out, ok)
        self._tell("on_confirm", assessed, held_out, ok)

    def on_rival(self, rival: Rival) -> None:
        """Tell what the bare pipeline does with fewer steps."""
        self._first.on_rival(rival)
        self._tell("on_rival", rival)

    def on_ablation(self, ablation: Ablation) -> None:
        """Tell what the winner does without one of its targets."""
        self._first.on_ablation(ablation)
        self._tell("on_ablation", ablation)
