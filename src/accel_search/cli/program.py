"""What both programs do around their work: one line for a user's error, an exit code for all."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from accel_search.cli.signals import interruptible
from accel_search.core.secrets import without_secrets
from accel_search.errors import AccelSearchError, ExitCode

S = TypeVar("S")

_OF_THE_SYSTEM = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.EPIPE, errno.ENFILE, errno.EMFILE, errno.ESTALE),
}
"""What a disk, a folder or a closed pipe may refuse anywhere: no defect of the program."""
LONGEST = 2000
"""Characters of an error's line."""


def in_one_line(text: str) -> str:
    """Return a message as one line that a terminal can show: it may quote what was given."""
    shown = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def run_program(
    name: str,
    parse: Callable[[], S],
    run: Callable[[S], int],
    log_level: Callable[[S], str],
    interrupted: str,
) -> int:
    """Run a program and return its exit code.

    Args:
        name: The program's.
        parse: Returns what the command line asks for.
        run: Does it, and returns the exit code.
        log_level: Returns the level that was asked for: with `DEBUG` errors show their traceback.
        interrupted: What an interrupted user is told.
    """
    debug = False
    try:
        with interruptible():
            settings = parse()
            debug = log_level(settings) == "DEBUG"
            code = run(settings)
            sys.stdout.flush()  # What it refuses is told here, not by the interpreter as it ends.
            return code
    except AccelSearchError as error:
        print(f"{name}: error: {in_one_line(without_secrets(str(error)))}", file=sys.stderr)
        if debug or error.exit_code == ExitCode.UNEXPECTED:
            traceback.print_exc()
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted; {interrupted}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM:
            raise
        return _refused(name, error, debug)


def _refused(name: str, error: OSError, debug: bool) -> int:
    """Say what the system refused, and return the exit code."""
    where = error.filename or "standard output"
    print(
        f"{name}: error: {where}: cannot be written: {error.strerror}; what was measured is "
        "stored: mend that and run the same command again",
        file=sys.stderr,
    )
    if debug:
        traceback.print_exc()
    if error.filename is None:
        # What is left in the buffer would be tried, and refused, once more as the process ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.INVALID
