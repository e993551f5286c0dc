"""Complete options and their values in bash, zsh and fish.

shtab makes a script from the command line once; it holds everything, so TAB starts no Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from accel_search.errors import ConfigurationError

SHELLS = ("bash", "zsh", "fish")
FLAG = "--print_completion"
_FILES = ("FILE", "RUN")
_FOLDERS = ("DIR",)
"""Metavars of files and folders in the help; the shell completes them itself."""

Words = Iterable[str] | Callable[[], Iterable[str]]
"""Values that an option is completed with, or a function that returns them."""


class PrintCompletion(argparse.Action):
    """Print a shell's script and end the program."""

    words: Mapping[str, Words] = {}
    """Option -> its values."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Print, and exit with code 0."""
        if values not in SHELLS:
            raise ConfigurationError(f"{FLAG} {values!r}: expected one of {', '.join(SHELLS)}")
        print(script(parser, str(values), self.words))
        parser.exit()


def add_completion(parser: argparse.ArgumentParser, words: Mapping[str, Words]) -> None:
    """Add the option that prints a script.

    Args:
        parser: The command line.
        words: Option -> values that it is completed with.
    """
    action = type("PrintCompletion", (PrintCompletion,), {"words": words})
    for flag, help_text in (
        (FLAG, f"print the completion script of a shell: {', '.join(SHELLS)}"),
        (FLAG.replace("_", "-"), argparse.SUPPRESS),
    ):
        parser.add_argument(flag, metavar="SHELL", action=action, help=help_text)


def script(parser: argparse.ArgumentParser, shell: str, words: Mapping[str, Words]) -> str:
    """Return a shell's completion script; changes the parser, so use it for nothing else."""
    import shtab

    for action in parser._actions:
        given = words.get(action.dest)
        if given is not None:
            action.choices = list(given() if callable(given) else given)
        elif isinstance(action, PrintCompletion):
            action.choices = list(SHELLS)
        elif action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))
