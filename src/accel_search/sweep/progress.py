"""The lines, the bar and the table of a sweep."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from accel_search.report.console.bar import WithBar
from accel_search.report.format import duration, factor
from accel_search.storage.entries import BoundEntry, estimate_of
from accel_search.storage.keys import Configuration
from accel_search.sweep.answer import Answer
from accel_search.sweep.status import Status

LEVELS = {"WARNING: ": logging.WARNING, "ERROR: ": logging.ERROR}
"""Prefix of a process's line -> its level in the sweep's log."""


class SweepProgress(WithBar):
    """Writes the sweep's lines to the log, and draws a bar below them.

    Args:
        logger: Receives the lines, from several threads.
        total: Configurations in the table.
        expected: Relative seconds that a configuration should take.
        show_bar: Whether a bar is drawn on standard error.
    """

    def __init__(
        self,
        logger: logging.Logger,
        total: int,
        expected: Callable[[Configuration], float],
        *,
        show_bar: bool,
    ) -> None:
        self._logger = logger
        self._expected = expected
        self._lock = threading.Lock()
        self.done = self.failed = 0
        self._running: set[Configuration] = set()
        self._left: set[Configuration] = set()
        self._spent = self._earned = 0.0
        self._workers = 1
        super().__init__(total, "  {desc}", show=show_bar)

    def expect(self, configurations: Sequence[Configuration], workers: int) -> None:
        """Set the configurations to explore, for the time left."""
        self._left = set(configurations)
        self._workers = max(1, workers)

    def on_skip(self, configuration: Configuration, status: Status) -> None:
        """Write that a configuration was done or failed before."""
        if status.failure is not None:
            self.failed += 1
            self._logger.info(
                "skipped: %s  failed before: %s; --retry_failed explores it again",
                configuration,
                status.failure.error,
            )
        else:
            self.done += 1
            assert status.entry is not None
            self._logger.info(
                "skipped: %s  done: speedup: %.2f",
                configuration,
                status.entry.measured_max_speedup,
            )
        self._left.discard(configuration)
        self._advance(1)

    def on_start(self, configuration: Configuration, status: Status) -> None:
        """Write that a configuration begins."""
        note = f"  (its stored result {status.note})" if status.note else ""
        self._logger.info("begins: %s%s", configuration, note)
        with self._lock:
            self._running.add(configuration)
        self._advance(0)

    def on_line(self, configuration: Configuration, line: str) -> None:
        """Write a line of its process, under its name."""
        level = logging.INFO
        for mark, its_level in LEVELS.items():
            if line.startswith(mark):
                level, line = its_level, line.removeprefix(mark)
        self._logger.log(level, "[%s] %s", configuration, line)

    def on_done(self, configuration: Configuration, answer: Answer, seconds: float) -> None:
        """Write its result or its failure."""
        with self._lock:
            self._running.discard(configuration)
            self._left.discard(configuration)
            if answer.entry is not None:
                self.done += 1
            else:
                self.failed += 1
            if seconds:
                self._spent += seconds
                self._earned += self._expected(configuration)
        if answer.entry is not None:
            self._logger.info(
                "done: %s  %s  in %s", configuration, in_a_line(answer.entry), duration(seconds)
            )
        else:
            assert answer.failure is not None
            self._logger.error(
                "failed: %s  %s: %s",
                configuration,
                answer.failure.error,
                answer.failure.message,
            )
        self._advance(1)

    def _advance(self, count: int) -> None:
        with self._lock:
            parts = [f"{self.done} done", f"{self.failed} failed", f"{len(self._running)} running"]
            if self._earned and self._left:
                left = sum(map(self._expected, self._left)) / self._workers
                parts.append(f"{duration(left * self._spent / self._earned)} left")
        self._bar.set_description_str(", ".join(parts), refresh=False)
        self._bar.update(count)
        self._bar.refresh()


def in_a_line(entry: BoundEntry) -> str:
    """Write an entry in the words that scripts look for: `speedup: 1.83`."""
    speedup = factor(estimate_of(entry.measured_max_speedup, entry.measured_max.speedup_interval))
    text = f"speedup: {speedup}  bound: {entry.max_speedup:.2f}"
    feasible = entry.best_feasible
    if feasible is not None:
        within = factor(estimate_of(feasible.speedup, feasible.speedup_interval))
        how = f"likely ({feasible.likely}) " if feasible.likely else ""
        text += f"  {how}within the loss: {within} at a score loss of "
        text += f"{100 * feasible.score_loss:.1f} %"
    elif entry.latency_only:
        text += "  (latency only: nothing was scored)"
    else:
        text += "  nothing within the loss"
    return f"{text}  {entry.no_gain}" if entry.no_gain else text


def table(statuses: Mapping[Configuration, Status]) -> str:
    """Return the sweep's table: a line per model, scheduler and steps, a column per method."""
    methods = list(dict.fromkeys(configuration.method for configuration in statuses))
    rows: dict[tuple[str, str, int], dict[str, str]] = {}
    for configuration, status in statuses.items():
        place = (configuration.model, configuration.sched, configuration.steps)
        rows.setdefault(place, {})[configuration.method] = _cell(status)
    head = ["model", "scheduler", "steps", *methods]
    lines = [
        [place[0], place[1], str(place[2]), *(cells.get(method, "") for method in methods)]
        for place, cells in rows.items()
    ]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *lines]
    )


def _cell(status: Status) -> str:
    if status.entry is not None:
        feasible = status.entry.best_feasible
        measured = f"{status.entry.measured_max_speedup:.2f}"
        if status.entry.latency_only:
            return measured
        return f"{'–' if feasible is None else format(feasible.speedup, '.2f')} ({measured})"
    if status.failure is not None:
        return status.failure.error
    return "to run"


def legend(latency_only: bool) -> str:
    """Return the legend of the table."""
    if latency_only:
        return "Largest measured speedup; latency only, nothing was scored."
    return "Best speedup within the loss of score, and in brackets the largest measured at all."


def plan(
    statuses: Mapping[Configuration, Status], seconds: float, workers: int, *, measured: bool
) -> str:
    """Return the text of a dry run, whose open configurations should take that long in all."""
    counts = {"open": 0, "done": 0, "failed": 0}
    for status in statuses.values():
        counts[status.state] += 1
    basis = (
        "by what the finished ones took"
        if measured
        else "by call times of an H200; a better one follows once a configuration is done"
    )
    shared = f" on {workers} workers" if workers > 1 else ""
    return (
        f"{table(statuses)}\n\n{len(statuses)} configurations: {counts['open']} to run, "
        f"{counts['done']} done, {counts['failed']} failed.\n"
        f"About {duration(seconds / workers)}{shared}, {basis}."
    )
