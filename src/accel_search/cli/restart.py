"""Restart a process in place after a hang that nothing else would end."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from accel_search.errors import ExitCode

_CARRIED = "ACCEL_SEARCH_BEGUN_ANEW"
"""Environment variable that hands `Carried` to the process in this one's place."""
RESUME = "what was measured is stored: run the same command again to go on"


class Carried(NamedTuple):
    """What a process that hung hands to the one that goes on from its trials."""

    hangs: int = 0
    """Candidates on record as having hung."""
    spent: float = 0.0
    """Seconds spent measuring."""


def carried() -> Carried:
    """Return what this process took over; zeros unless it began in the place of one that hung.

    A second call returns zeros: it is not for the processes that this one starts.
    """
    hangs, _, spent = os.environ.pop(_CARRIED, "").partition(" ")
    try:
        return Carried(int(hangs or 0), float(spent or 0))
    except ValueError:  # Somebody else's variable.
        return Carried()


def end(line: str, code: int = ExitCode.UNEXPECTED) -> NoReturn:
    """End the process at once with a line on standard error, whatever its other threads do."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
    leave(code)


def leave(code: int) -> NoReturn:
    """End the process at once, with what it has printed and whatever a hung call has started."""
    _flush()
    _end_children()
    os._exit(code)


def restart_process(carried: Carried) -> NoReturn:
    """Replace this process by one of the same command line; locks and files fall with the old."""
    os.environ[_CARRIED] = f"{carried.hangs} {carried.spent:.1f}"
    _flush()
    _end_children()
    # What a library left open for its children, say on a GPU, must not outlive it either.
    with suppress(OSError):
        for descriptor in Path("/proc/self/fd").iterdir():
            if int(descriptor.name) > 2:
                with suppress(OSError):  # The listing's own is closed by now.
                    os.set_inheritable(int(descriptor.name), False)
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    except OSError as error:
        end(f"cannot begin anew: {error}; {RESUME}")


def _end_children() -> None:
    import psutil

    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
