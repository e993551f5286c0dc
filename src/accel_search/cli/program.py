"""Run a program: print an error as one line, and return an exit code in every case."""

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
"""Errors of a disk, a folder or a closed pipe, which are no defect of the program."""
LONGEST = 2000
"""Most characters of an error's line."""


def in_one_line(text: str) -> str:
    """Return a message as one printable line, as it may quote any text that was given."""
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
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
        parse: Returns the settings of the command line.
        run: Carries them out, and returns the exit code.
        log_level: Returns the level of the settings: with `DEBUG` errors show their traceback.
        interrupted: What to do after an interruption, for the message.
    """
    debug = False
    try:
        with interruptible():
            settings = parse()
            debug = log_level(settings) == "DEBUG"
            code = run(settings)
            sys.stdout.flush()  # Here, so that an error is reported below, not at exit.
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
    """Print what could not be written, and return the exit code."""
    where = error.filename or "standard output"
    print(
        f"{name}: error: {where}: cannot be written: {error.strerror}; what was measured is "
        "stored: fix this and run the same command again",
        file=sys.stderr,
    )
    if debug:
        traceback.print_exc()
    if error.filename is None:
        # Otherwise the interpreter would try to write the rest of the buffer at exit.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.INVALID
