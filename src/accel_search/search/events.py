"""The events of a search, declared once, and the fan-out that passes them on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from accel_search.core.secrets import without_secrets
from accel_search.errors import first_line

if TYPE_CHECKING:
    from accel_search.core.assessment import AssessedTrial, Assessment
    from accel_search.core.candidate import Candidate
    from accel_search.core.intervals import Estimate
    from accel_search.core.outcome import Ablation, Rival
    from accel_search.core.trial import Measurement, Trial


class Observer:
    """Receives each event of a search as it happens; a subclass overrides what it needs."""

    def on_baseline(self, baseline: Measurement) -> None:
        """Receive the baseline, measured now or loaded from an earlier run."""

    def on_resume(self, history: Sequence[AssessedTrial]) -> None:
        """Receive the trials that an earlier run stored."""

    def on_start(self, candidate: Candidate) -> None:
        """Receive a candidate that is about to be measured."""

    def on_trial(self, assessed: AssessedTrial) -> None:
        """Receive a stored trial, finished or at a stage of its early stopping."""

    def on_timed(self, trial: Trial, speedup: Estimate | None) -> None:
        """Receive a timing where only speed is searched; the speedup is None where it failed."""

    def on_confirm(
        self, assessed: AssessedTrial, held_out: Assessment | None, chance: float | None
    ) -> None:
        """Receive how a candidate did on held-out prompts, and its probability of being within.

        Both are None where it failed there.
        """

    def on_rival(self, rival: Rival) -> None:
        """Receive what the baseline pipeline does with fewer steps."""

    def on_ablation(self, ablation: Ablation) -> None:
        """Receive what the winner does without one of its targets, timed on a few prompts."""


EVENTS = tuple(name for name in vars(Observer) if name.startswith("on_"))


class Observers(Observer):
    """Passes every event on to several observers; drops one that raises, with one warning.

    Args:
        observers: Name, as the warning gives it -> observer, in the order in which they are called.
        logger: Gets the warnings.
    """

    def __init__(self, observers: Mapping[str, Observer], logger: logging.Logger) -> None:
        self._observers = dict(observers)
        self._logger = logger
        for event in EVENTS:
            setattr(self, event, partial(self.tell, event))

    def tell(self, event: str, *arguments: Any, **named: Any) -> None:
        """Call a method of every observer."""
        for name, observer in list(self._observers.items()):
            try:
                getattr(observer, event)(*arguments, **named)
            except Exception as error:  # Whatever a server or its client comes up with.
                del self._observers[name]
                warn(self._logger, name, error)


def warn(logger: logging.Logger, name: str, error: Exception) -> None:
    """Warn that an observer is lost, and that nothing else is."""
    logger.warning(
        "%s: %s; the search goes on without it", without_secrets(name), first_line(error)
    )
