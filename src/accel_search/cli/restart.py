"""A program that begins anew in its own place, after a hang that nothing else would end."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from accel_search.errors import ExitCode

_CARRIED = "ACCEL_SEARCH_BEGUN_ANEW"
"""Environment variable from one process to the one in its place: hangs on record, seconds spent."""
RESUME = "what was measured is stored: run the same command again to go on"


def carried() -> tuple[int, float]:
    """Return how many hangs were on record and how many seconds spent when this process began.

    Both are 0 unless it began in the place of one that hung. The second call returns them no more:
    they are not for the processes that this one starts.
    """
    hangs, _, spent = os.environ.pop(_CARRIED, "").partition(" ")
    try:
        return int(hangs or 0), float(spent or 0)
    except ValueError:  # Somebody else's variable.
        return 0, 0.0


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


def begin_anew(hangs: int, spent: float) -> NoReturn:
    """Replace this process by one of the same command line; locks and files fall with the old.

    Args:
        hangs: How many hangs are on record by now, for the next process.
        spent: Seconds that were spent measuring, for it too.
    """
    os.environ[_CARRIED] = f"{hangs} {spent:.1f}"
    _flush()
    _end_children()
    # What a library left open for its children, say on a GPU, must not outlive it either.
    with suppress(OSError):
        for each in Path("/proc/self/fd").iterdir():
            if int(each.name) > 2:
                with suppress(OSError):  # The listing's own is closed by now.
                    os.set_inheritable(int(each.name), False)
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    except OSError as error:
        end(f"cannot begin anew: {error}; {RESUME}")


def _end_children() -> None:
    import psutil

    with suppress(psutil.Error):
        for each in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                each.kill()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
