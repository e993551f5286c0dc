"""The requested trackers of a search, from connecting to its end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from accel_search.core.outcome import Outcome
from accel_search.core.workload import Provenance, Workload
from accel_search.report.trackers import asked_for
from accel_search.report.trackers.base import Ending, Subject, Tracker
from accel_search.search.events import Observers, warn
from accel_search.settings import Settings
from accel_search.storage.entries import BoundEntry, SearchEntry

ASKED = (
    *("pipe", "sched", "steps", "targets", "strategy", "sampler", "req_score_loss", "req_speedup"),
    *("min_psnr", "min_ssim", "max_tail_loss", "max_trials", "time_budget", "seed", "prompts"),
    *("num_samples", "held_out_samples", "timing_pairs", "latency_only", "compile", "attention"),
)
"""Options that trackers write."""


class Tracking(Observers):
    """The trackers of one search, by option and address."""

    def end(
        self,
        entry: SearchEntry | None,
        outcome: Outcome | None,
        files: Sequence[Path],
        bound: BoundEntry | None = None,
    ) -> None:
        """Send the end of the search to every tracker; `entry` and `bound` are as in `Ending`."""
        stopped = "speed alone" if outcome is None else outcome.stopped
        trials = () if outcome is None else outcome.trials
        there = [path for path in files if path.is_file()]
        self.tell("end", Ending(entry, stopped, trials, there, bound))
        self._observers.clear()


@contextmanager
def tracked(
    settings: Settings,
    workload: Workload,
    provenance: Provenance | None,
    study: str,
    logger: logging.Logger,
) -> Iterator[Tracking]:
    """Connect the requested trackers, and notify them if the block raises."""
    asked = {name: getattr(settings, name) for name in ASKED}
    name = None if settings.replay is not None else study
    subject = Subject(name, asked, workload, provenance)
    trackers: dict[str, Tracker] = {}
    for cls, target in asked_for(settings):
        label = f"--{cls.name} {target}"
        try:
            trackers[label] = cls(target)
        except Exception as error:  # As in `Observers`.
            warn(logger, label, error)
    tracking = Tracking(trackers, logger)
    tracking.tell("begin", subject)
    try:
        yield tracking
    except BaseException as error:
        tracking.tell("abort", interrupted=isinstance(error, KeyboardInterrupt))
        raise
