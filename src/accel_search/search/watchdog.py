"""Watch every measurement, and end the process if one hangs.

A hang in a driver or a lock cannot be ended from another thread. So the watchdog records the
candidate as failed, writes the stacks of all threads and ends the process;
`restarting_watchdog` decides whether it restarts.
"""

from __future__ import annotations

import faulthandler
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, NoReturn

from accel_search.cli.restart import Carried
from accel_search.core.candidate import Candidate
from accel_search.core.trial import Failure, Measurement
from accel_search.errors import first_line
from accel_search.settings import Settings

TIMES = 30.0
"""Limit of a measurement, in multiples of the baseline's time for the same number of images."""
AGAIN = 4.0
"""Baselines added to it: where a batch is halved, the baseline is measured again in between."""
LEAST_SECONDS = 600.0
"""Least derived limit: a first call may load kernels, or wait while another process loads."""
LEAST_SECONDS_COMPILED = 3600.0
"""The same where the UNet is compiled, again for every candidate that changes it."""
TICK_SECONDS = 5.0

Record = Callable[[Failure], int]
"""Stores a failure, and returns the number of candidates recorded as hung."""


@dataclass(frozen=True)
class Hang:
    """A measurement that did not end in time."""

    candidate: Candidate | None
    """None is the baseline pipeline."""
    seconds: float
    """Its limit."""
    recorded: int | None
    """Candidates of the study recorded as hung; None if this one could not be recorded."""
    spent: float
    """Seconds measured by this process and those before its restarts."""
    error: Exception | None = None
    """Why it could not be recorded."""

    @property
    def message(self) -> str:
        """Return what happened, in one line."""
        what = self.candidate or "the baseline pipeline"
        return f"{what} did not end within {self.seconds:g} s (--trial_timeout)"


class Watchdog:
    """Watches one measurement at a time, from its own thread.

    Time in which the process was stopped or the machine asleep does not count. A hang that keeps
    Python's global lock, as a regular expression may, stops this thread too and is not noticed.

    Args:
        limit: Seconds that a measurement may take; 0 is no limit. None derives it from the
            baseline, which itself is not limited then.
        on_hang: Ends the process; the measurement cannot return meanwhile.
        stacks: Open file, with a descriptor, for the stacks of all threads.
        compiled: Whether the UNet is compiled.
        hangs: Candidates recorded as hung before this process started.
        spent: Seconds measured before the process restarted.
    """

    def __init__(
        self,
        limit: float | None = 0.0,
        on_hang: Callable[[Hang], None] = lambda hang: None,
        stacks: IO[str] | None = None,
        *,
        compiled: bool = False,
        hangs: int = 0,
        spent: float = 0.0,
    ) -> None:
        self.hangs, self.spent = hangs, spent
        self._limit = limit
        self._on_hang = on_hang
        self._stacks = stacks
        self._least = LEAST_SECONDS_COMPILED if compiled else LEAST_SECONDS
        self._seconds_per_image = 0.0
        self._baseline_seconds: float | None = None
        self._hand: _Hand | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def learn(self, baseline: Measurement) -> None:
        """Derive limits from a baseline; of several, the slowest counts."""
        calls = len(baseline.seconds_per_image) * baseline.batch_size
        pace = baseline.seconds / max(len(baseline.scores), calls, 1)
        self._seconds_per_image = max(self._seconds_per_image, pace)
        self._baseline_seconds = max(self._baseline_seconds or 0.0, baseline.seconds)

    def limit(self, images: int) -> float:
        """Return the seconds that measuring that many images may take; infinite is no limit."""
        if self._limit is not None:
            return self._limit or math.inf
        if self._baseline_seconds is None:
            return math.inf
        needed = TIMES * images * self._seconds_per_image
        return max(self._least, needed) + AGAIN * self._baseline_seconds

    @contextmanager
    def over(
        self, candidate: Candidate | None, images: int, record: Record | None = None
    ) -> Iterator[None]:
        """Watch a measurement for the length of a `with` block.

        Args:
            candidate: What is measured; None is the baseline pipeline.
            images: How many it makes.
            record: Stores the candidate's failure; None where nothing is stored.
        """
        limit = self.limit(images)
        began = time.monotonic()
        if limit < math.inf:
            with self._changed:
                self._hand = _Hand(candidate, limit, record)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._watch, daemon=True)
                    self._thread.start()
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:  # Waits forever where the time was up a moment before.
                self._hand = None
            self.spent += time.monotonic() - began

    def _watch(self) -> None:
        with self._changed:
            while True:
                hand = self._hand
                if hand is None:
                    self._thread = None  # The next measurement starts another.
                    return
                tick = min(TICK_SECONDS, hand.limit - hand.seconds)
                before = time.monotonic()
                self._changed.wait(tick)
                hand.seconds += min(time.monotonic() - before, 2 * tick)
                if self._hand is hand and hand.seconds >= hand.limit:
                    self._hand = None
                    self._handle_hang(hand)

    def _handle_hang(self, hand: _Hand) -> None:
        spent = self.spent + hand.seconds
        self._write_stacks(Hang(hand.candidate, hand.limit, None, spent))
        recorded, why = None, None
        if hand.record is not None:
            failure = Failure(
                "timeout",
                f"it did not end within {hand.limit:g} s (--trial_timeout); the log shows where "
                "it hung",
                hand.seconds,
            )
            try:
                recorded = hand.record(failure)
            except Exception as error:  # An error that ends this thread would leave the hang.
                why = error
        self._on_hang(Hang(hand.candidate, hand.limit, recorded, spent, why))

    def _write_stacks(self, hang: Hang) -> None:
        """Write all stacks, before anything that may wait for a lock of one of these threads."""
        if self._stacks is not None:
            with suppress(OSError, ValueError):  # A full disk or a closed file.
                self._stacks.write(f"{hang.message}; the stacks of all threads:\n")
                self._stacks.flush()
                faulthandler.dump_traceback(self._stacks, all_threads=True)


@dataclass
class _Hand:
    """The current measurement."""

    candidate: Candidate | None
    limit: float
    record: Record | None
    seconds: float = 0.0


def restarting_watchdog(
    settings: Settings,
    inherited: Carried,
    stacks: IO[str],
    log: str,
    restart: Callable[[str, Carried], NoReturn],
    give_up: Callable[[str], NoReturn],
) -> Watchdog:
    """Return a watchdog that restarts the process after a hang, without what hung.

    It gives up where the baseline hung or the failure could not be recorded: the next process would
    hang at the same place.

    Args:
        settings: Their `trial_timeout` and `compile` decide what counts as a hang.
        inherited: State of the process before its restart.
        stacks: Open file for the stacks of all threads.
        log: Its name in messages.
        restart: Gets a message and the state for the next process; ends this one.
        give_up: Gets a message; ends the process.
    """

    def react(hang: Hang) -> NoReturn:
        if hang.recorded is None or hang.recorded <= inherited.hangs:
            why = "" if hang.error is None else f"cannot be recorded ({first_line(hang.error)}): "
            give_up(f"{hang.message}: {why}{log} shows where it hung")
        restart(f"{hang.message} and is recorded as failed", Carried(hang.recorded, hang.spent))

    return Watchdog(
        settings.trial_timeout,
        react,
        stacks,
        compiled=settings.compile,
        hangs=inherited.hangs,
        spent=inherited.spent,
    )
