"""Keep timed calls and model loading apart, across the processes of one sweep.

While one process loads a model, calls on another GPU of the same host were measured to take twice
their time, even on separate cores. Any number of processes may time at once, and any number may
load at once, but not both.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: there is no lock.
    fcntl = None  # type: ignore[assignment]

POLL_SECONDS = 0.02
LONGEST_SECONDS = 120.0
"""Longest time that a loader waits for others, and keeps others waiting."""


class TimingLock:
    """Locks on two files, which the system releases if a process dies.

    Args:
        folder: Shared by the processes, on a local file system. None, or a system without such
            locks, never waits.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder if fcntl is not None else None
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                with self._file("timing") as file:
                    _is_free(file)
            except OSError:  # Some network file systems have no locks.
                self._folder = None

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Wait until no process loads, and keep others from loading in a `with` block."""
        if self._folder is None:
            yield
            return
        with self._file("timing") as own, self._file("loading") as others:
            fcntl.flock(own, fcntl.LOCK_SH)
            while not _is_free(others):
                fcntl.flock(own, fcntl.LOCK_UN)
                # A random delay, so that two processes do not block each other repeatedly.
                time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
                fcntl.flock(own, fcntl.LOCK_SH)
            yield

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Keep others from timing in a `with` block, after waiting for those that do now."""
        if self._folder is None:
            yield
            return
        with self._file("loading") as own, self._file("timing") as others:
            fcntl.flock(own, fcntl.LOCK_SH)
            deadline = time.monotonic() + LONGEST_SECONDS
            while not _is_free(others) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            timeout = threading.Timer(LONGEST_SECONDS, _unlock, [own])
            timeout.daemon = True
            timeout.start()
            try:
                yield
            finally:
                timeout.cancel()

    def _file(self, name: str) -> IO[str]:
        assert self._folder is not None
        return (self._folder / f"{name}.lock").open("a+", encoding="ascii")


def _is_free(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    _unlock(file)
    return True


def _unlock(file: IO[str]) -> None:
    with suppress(ValueError):  # It is closed already.
        fcntl.flock(file, fcntl.LOCK_UN)
