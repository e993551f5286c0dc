"""Colours on a terminal, where they are wanted."""

from __future__ import annotations

import os
from typing import TextIO

_CODES = {"pass": "32", "fail": "31", "inconclusive": "33", "open": "33"}
"""Verdict -> its colour in ANSI's terms: green, red, yellow."""


def takes_colour(stream: TextIO) -> bool:
    """Return whether a stream is a terminal whose user wants colours.

    Source:
        no-color.org: NO_COLOR, set to anything but nothing, turns colours off.
    """
    is_dumb = os.environ.get("TERM") == "dumb"
    return stream.isatty() and not os.environ.get("NO_COLOR") and not is_dumb


def painted(text: str, verdict: str, *, colour: bool) -> str:
    """Return a text in a verdict's colour; as it is without colour or for another word."""
    code = _CODES.get(verdict)
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code else text
