"""Timed calls and the loading of models take turns, over the processes of one sweep.

While a process starts up on one GPU and fills its memory, calls on another GPU of the same host
were seen to take twice their time, each worker on cores of its own. Any number of processes may
time at once, and any number may load at once, but nobody times while somebody loads.
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
except ImportError:  # Windows: nobody waits for anybody there.
    fcntl = None  # type: ignore[assignment]

POLL_SECONDS = 0.02
LONGEST_SECONDS = 120.0
"""What a loader may keep others waiting, e.g. while it fetches files, and may wait itself."""


class Turns:
    """The turns of one process.

    They are locks on two files: the system takes them back from a process that dies.

    Args:
        folder: One for all the processes that take turns, on a file system of the machine's own.
            None, or a system without such locks, is a process by itself, which never waits.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder if fcntl is not None else None
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                with self._file("timing") as file:
                    _is_free(file)
            except OSError:  # Some network file systems have none.
                self._folder = None

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Wait until nobody loads, and let nobody begin to for the length of a `with` block."""
        if self._folder is None:
            yield
            return
        with self._file("timing") as own, self._file("loading") as others:
            fcntl.flock(own, fcntl.LOCK_SH)
            while not _is_free(others):
                fcntl.flock(own, fcntl.LOCK_UN)
                # Two that look at one moment see each other; not twice.
                time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
                fcntl.flock(own, fcntl.LOCK_SH)
            yield

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Let nobody begin to time for the length of a `with` block, and wait for who does now."""
        if self._folder is None:
            yield
            return
        with self._file("loading") as own, self._file("timing") as others:
            fcntl.flock(own, fcntl.LOCK_SH)
            deadline = time.monotonic() + LONGEST_SECONDS
            while not _is_free(others) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            enough = threading.Timer(LONGEST_SECONDS, _unlock, [own])
            enough.daemon = True
            enough.start()
            try:
                yield
            finally:
                enough.cancel()

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
