"""What both programs do around their work: one line for a user's error, an exit code for all."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

from accel_search.errors import AccelSearchError, ExitCode

S = TypeVar("S")

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
        settings = parse()
        debug = log_level(settings) == "DEBUG"
        # A polite kill ends as Ctrl-C does: what is finished is stored, nothing is half done.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return run(settings)
    except AccelSearchError as error:
        print(f"{name}: error: {in_one_line(str(error))}", file=sys.stderr)
        if debug or error.exit_code == ExitCode.UNEXPECTED:
            traceback.print_exc()
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted; {interrupted}", file=sys.stderr)
        return ExitCode.INTERRUPTED
