"""A watchdog over each measuring: a call that never returns costs one candidate, not the night.

A hang cannot be ended from within its process: nothing makes another thread return from a driver or
a lock. So the candidate is recorded as failed, the stacks of all threads are written down, and the
process ends: `restarting_watchdog` decides whether another one goes on.
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
"""How many times what the baseline needed for as many pictures a measuring may take."""
AGAIN = 4.0
"""How many times the whole baseline on top: where a batch is halved it is measured anew within."""
LEAST_SECONDS = 600.0
"""Least derived limit: a first call may load kernels, or wait while another process loads."""
LEAST_SECONDS_COMPILED = 3600.0
"""The same where the UNet is compiled, anew for what a candidate does to it."""
TICK_SECONDS = 5.0

Record = Callable[[Failure], int]
"""Stores a failure, and returns how many candidates are on record by then as having hung."""


@dataclass(frozen=True)
class Hang:
    """A measuring that did not end in time."""

    candidate: Candidate | None
    """None is the bare pipeline."""
    seconds: float
    """Its limit."""
    recorded: int | None
    """Candidates of the study on record as having hung, this one included; None if it is not."""
    spent: float
    """Seconds measured by this process and those that it went on from."""
    error: Exception | None = None
    """Why it could not be recorded."""

    @property
    def message(self) -> str:
        """Return what happened, in one line."""
        what = "the bare pipeline" if self.candidate is None else self.candidate
        return f"{what} did not end within {self.seconds:g} s (--trial_timeout)"


class Watchdog:
    """Watches one measuring at a time, from a thread of its own.

    Time in which the process was stopped, or the machine asleep, does not count. A hang that keeps
    Python's global lock, as a regular expression may, stops this thread too, and is not noticed.

    Args:
        limit: Seconds that a measuring may take; 0 is any number. None derives them from the
            baseline's, and does not limit the baseline itself.
        on_hang: Is told, and ends the process. While it is at work the measuring cannot return.
        stacks: Open file that the stacks of all threads are written to; it has a descriptor.
        compiled: Whether the UNet is compiled.
        hangs: Candidates on record as having hung when the process began in an earlier one's place.
        spent: Seconds that such earlier processes measured.
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
        self._seconds_per_picture = 0.0
        self._baseline_seconds: float | None = None
        self._hand: _Hand | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def learn(self, baseline: Measurement) -> None:
        """Take a baseline's seconds for what is to be expected; of several the slowest."""
        calls = len(baseline.seconds_per_image) * baseline.batch_size
        pictures = max(len(baseline.scores), calls, 1)
        pace = baseline.seconds / pictures
        self._seconds_per_picture = max(self._seconds_per_picture, pace)
        self._baseline_seconds = max(self._baseline_seconds or 0.0, baseline.seconds)

    def limit(self, pictures: int) -> float:
        """Return the seconds that measuring so many pictures may take; infinite is no limit."""
        if self._limit is not None:
            return self._limit or math.inf
        if self._baseline_seconds is None:
            return math.inf
        needed = TIMES * pictures * self._seconds_per_picture
        return max(self._least, needed) + AGAIN * self._baseline_seconds

    @contextmanager
    def over(
        self, candidate: Candidate | None, pictures: int, record: Record | None = None
    ) -> Iterator[None]:
        """Watch a measuring for the length of a `with` block.

        Args:
            candidate: What is measured; None is the bare pipeline.
            pictures: How many it is to make.
            record: Stores the candidate's failure; None where there is nothing to be stored.
        """
        limit = self.limit(pictures)
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
            with self._changed:  # Waits for good where the time was up a moment before.
                self._hand = None
            self.spent += time.monotonic() - began

    def _watch(self) -> None:
        with self._changed:
            while True:
                hand = self._hand
                if hand is None:
                    self._thread = None  # The next one begins when something is to be watched.
                    return
                tick = min(TICK_SECONDS, hand.limit - hand.seconds)
                before = time.monotonic()
                self._changed.wait(tick)
                hand.seconds += min(time.monotonic() - before, 2 * tick)
                if self._hand is hand and hand.seconds >= hand.limit:
                    self._hand = None
                    self._tell(hand)

    def _tell(self, hand: _Hand) -> None:
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
            except Exception as error:  # A thread that dies of it would leave the hang to itself.
                why = error
        self._on_hang(Hang(hand.candidate, hand.limit, recorded, spent, why))

    def _write_stacks(self, hang: Hang) -> None:
        """Write where each thread stands; before all else, which may wait for a lock of theirs."""
        if self._stacks is not None:
            with suppress(OSError, ValueError):  # A full disk, or a file that is closed.
                self._stacks.write(f"{hang.message}; the stacks of all threads:\n")
                self._stacks.flush()
                faulthandler.dump_traceback(self._stacks, all_threads=True)


@dataclass
class _Hand:
    """The measuring in hand."""

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
    """Return the watchdog of a process that restarts after a hang, without what hung.

    It restarts as often as that adds a candidate to those on record as having hung. It gives up
    where there is no candidate to leave out, or where the failure could not be recorded: the next
    process would hang at the same place.

    Args:
        settings: Their `trial_timeout` and `compile` decide what counts as a hang.
        inherited: What this process took over from one that hung.
        stacks: Open file that the stacks of all threads are written to.
        log: The same, as messages call it.
        restart: Gets what happened and what to hand to the next process; ends this one.
        give_up: Gets why; ends the process.
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
