"""Restart a process in place after a hang that nothing else can end."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from accel_search.errors import ExitCode

_CARRIED = "ACCEL_SEARCH_RESTARTED"
"""Environment variable that hands `Carried` to the restarted process."""
RESUME = "what was measured is stored: run the same command again to go on"


class Carried(NamedTuple):
    """State that a process which hung hands to its restart."""

    hangs: int = 0
    """Candidates that were recorded as having hung."""
    spent: float = 0.0
    """Seconds spent measuring."""


def carried() -> Carried:
    """Return the state handed over by a process that hung; zeros if this is no restart.

    A second call returns zeros: processes that this one starts must not inherit it.
    """
    hangs, _, spent = os.environ.pop(_CARRIED, "").partition(" ")
    try:
        return Carried(int(hangs or 0), float(spent or 0))
    except ValueError:  # The variable was set by something else.
        return Carried()


def end(line: str, code: int = ExitCode.UNEXPECTED) -> NoReturn:
    """Print a line on standard error and end the process, whatever its other threads do."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
    leave(code)


def leave(code: int) -> NoReturn:
    """End the process and its child processes at once, after flushing what it has printed."""
    _flush()
    _end_children()
    os._exit(code)


def restart_process(carried: Carried) -> NoReturn:
    """Replace this process by one of the same command line; its locks and files are closed."""
    os.environ[_CARRIED] = f"{carried.hangs} {carried.spent:.1f}"
    _flush()
    _end_children()
    # Also descriptors that a library made inheritable, e.g. of a GPU.
    with suppress(OSError):
        for descriptor in Path("/proc/self/fd").iterdir():
            if int(descriptor.name) > 2:
                with suppress(OSError):  # The descriptor of the listing itself is closed by now.
                    os.set_inheritable(int(descriptor.name), False)
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    except OSError as error:
        end(f"cannot restart: {error}; {RESUME}")


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
