"""Who is told of a search: its own lines first, then every tracker that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accel_search.core.outcome import Outcome
from accel_search.core.secrets import without_secrets
from accel_search.core.workload import Provenance, Workload
from accel_search.errors import first_line
from accel_search.report.trackers import asked_for
from accel_search.report.trackers.base import Ending, Subject, Tracker
from accel_search.settings import Settings

ASKED = (
    *("pipe", "sched", "steps", "targets", "strategy", "sampler", "req_score_loss", "req_speedup"),
    *("min_psnr", "min_ssim", "max_trials", "time_budget", "seed", "prompts", "num_samples"),
    *("held_out_samples", "timing_pairs", "latency_only", "compile", "attention"),
)
"""Options that are written where a search is followed."""


class Tracking:
    """The trackers of one search. What one raises is a warning, once, and it is told no more.

    Args:
        trackers: Connected ones, each with its option and address as messages name it.
        logger: Gets the warnings.
    """

    def __init__(self, trackers: Mapping[str, Tracker], logger: logging.Logger) -> None:
        self._trackers = dict(trackers)
        self._logger = logger

    def tell(self, event: str, *arguments: Any, **named: Any) -> None:
        """Call a method of every tracker."""
        for name, tracker in list(self._trackers.items()):
            try:
                getattr(tracker, event)(*arguments, **named)
            except Exception as error:  # Whatever a server or its client comes up with.
                del self._trackers[name]
                warn(self._logger, name, error)

    def end(
        self, entry: Mapping[str, Any] | None, outcome: Outcome | None, files: Sequence[Path]
    ) -> None:
        """Tell how the search ended.

        Args:
            entry: Its result, as the result file holds it; None without one.
            outcome: What it found; None where speed alone was looked for.
            files: What was written.
        """
        stopped = "speed alone" if outcome is None else outcome.stopped
        trials = () if outcome is None else outcome.trials
        there = [path for path in files if path.is_file()]
        self.tell("end", Ending(entry, stopped, trials, there))
        self._trackers.clear()


def warn(logger: logging.Logger, name: str, error: Exception) -> None:
    """Say that a tracker is lost, and that nothing else is."""
    logger.warning(
        "%s: %s; the search goes on without it", without_secrets(name), first_line(error)
    )


@contextmanager
def tracked(
    settings: Settings,
    workload: Workload,
    provenance: Provenance | None,
    study: str,
    logger: logging.Logger,
) -> Iterator[Tracking]:
    """Connect the trackers that the settings ask for, and tell them if the block ends early."""
    asked = {name: getattr(settings, name) for name in ASKED}
    name = None if settings.replay is not None else study
    subject = Subject(name, asked, workload, provenance)
    trackers: dict[str, Tracker] = {}
    for cls, target in asked_for(settings):
        label = f"--{cls.name} {target}"
        try:
            trackers[label] = cls(target)
        except Exception as error:  # As above.
            warn(logger, label, error)
    tracking = Tracking(trackers, logger)
    tracking.tell("begin", subject)
    try:
        yield tracking
    except BaseException as error:
        tracking.tell("abort", interrupted=isinstance(error, KeyboardInterrupt))
        raise
