"""Read a candidate from text, in every form in which the programs write one."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from accel_search.accelerators import all_accelerators
from accel_search.accelerators.base import Accelerator, check_params
from accel_search.core.candidate import Candidate, Params, Value
from accel_search.errors import ConfigurationError

OPTION = "--candidate"
FORMS = "settings like 'deepcache(3,0)', 'tome(0.4,2) + steps(10)' or JSON"
LONGEST = 2000
"""Characters of a candidate; one of all accelerators takes some 200."""
MOST_SHOWN = 80
"""Characters of a candidate that a message repeats."""
LARGEST = 2**31 - 1
"""Largest value where a parameter has no limit of its own."""

_WORD = re.compile(
    r"\s*(?:(?P<name>[^\W\d][\w.-]*)|(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<sign>\S))"
)


def parse_candidates(given: str | Sequence[Any]) -> tuple[Candidate, ...]:
    """Return the candidate of one text, or those of a list of texts and tables.

    Raises:
        ConfigurationError: One cannot be read or measured; the message is one line.
    """
    if isinstance(given, str):
        return (parse_candidate(given),)
    return tuple(
        parse_candidate(one) if isinstance(one, str) else _checked(one, str(one)) for one in given
    )


def parse_candidate(text: str) -> Candidate:
    """Return the candidate that a text stands for.

    Args:
        text: As the programs write it: `deepcache(3, 0)`, `tome(0.4, 2) + steps(10)`, with
            parameters' names or without; or as JSON.

    Raises:
        ConfigurationError: It cannot be read, or names what there is not; the message is one line.
    """
    if len(text) > LONGEST:
        raise _refusal(text, f"expected {FORMS}")
    if text.strip().startswith("{"):
        try:
            # As Python writes a dictionary of several lines: with a comma after the last one.
            return _checked(json.loads(re.sub(r",(\s*})", r"\1", text)), text)
        except (ValueError, RecursionError) as error:
            raise _refusal(text, "this is not valid JSON") from error
    settings: dict[str, Params] = {}
    words = deque((word.lastgroup, word[0].strip()) for word in _WORD.finditer(text.rstrip()))
    while words or not settings:
        name = _take(words, "name", text)
        if name in settings:
            raise _refusal(text, f"gives {name} twice")
        settings[name] = _params(_accelerator(name, text), words, text)
        if words and words[0][1] == "+":
            words.popleft()
            if not words:
                raise _refusal(text, f"expected {FORMS}")
    return _checked(settings, text)


_Words = deque[tuple[str | None, str]]
"""What is left of a text: the kind of each word, and the word."""


def _take(words: _Words, kind: str, text: str, sign: str | None = None) -> str:
    """Return the next word and take it off; it must be of this kind."""
    if not words or words[0][0] != kind or sign not in (None, words[0][1]):
        raise _refusal(text, f"expected {FORMS}")
    return words.popleft()[1]


def _params(accelerator: Accelerator, words: _Words, text: str) -> Params:
    """Take off the values that follow an accelerator's name, in parentheses or each with its name.

    Those without a name are in the parameters' order.
    """
    own = [parameter.name for parameter in accelerator.parameters]
    params: dict[str, Value] = {}
    is_listed = bool(words) and words[0][1] == "("
    if is_listed:
        words.popleft()
    while words and (words[0][1] != ")" if is_listed else len(words) > 1 and words[1][1] == "="):
        if is_listed and params:
            _take(words, "sign", text, ",")
        key = own[len(params)] if len(params) < len(own) else ""
        if words and words[0][0] == "name":
            key = _take(words, "name", text)
            _take(words, "sign", text, "=")
        number = _take(words, "number", text)
        if not key:
            raise _refusal(text, f"{accelerator.name} takes {', '.join(own)}: too many values")
        if key in params:
            raise _refusal(text, f"gives {key} of {accelerator.name} twice")
        # Python refuses to read thousands of digits; no number of more than ten is in range.
        params[key] = int(number) if re.fullmatch(r"-?\d{1,10}", number) else float(number)
    if is_listed:
        _take(words, "sign", text, ")")
    return params


def _checked(settings: Any, text: str) -> Candidate:
    """Return the candidate of a table, its parameters in their own order, each value checked."""
    if not isinstance(settings, Mapping) or not settings:
        raise _refusal(text, f"expected {FORMS}")
    checked: dict[str, Params] = {}
    for name, params in settings.items():
        accelerator = _accelerator(name, text)
        own = {parameter.name: parameter for parameter in accelerator.parameters}
        if not isinstance(params, Mapping):
            raise _refusal(text, f"{name}: expected its parameters, {', '.join(own)}")
        for unknown in [key for key in params if key not in own]:
            raise _refusal(
                text,
                f"{name} has no parameter {unknown!r}{_nearest(unknown, own)}: it takes "
                f"{', '.join(own)}",
            )
        if missing := [key for key in own if key not in params]:
            raise _refusal(text, f"{name} lacks a value of {', '.join(missing)}")
        for key, value in params.items():
            if isinstance(value, int | float) and abs(value) > LARGEST:
                raise _refusal(text, f"{name}: {key} is beyond {LARGEST}")
        try:
            check_params(accelerator, params)
        except ConfigurationError as error:
            raise _refusal(text, str(error)) from error
        checked[name] = {
            key: float(params[key]) if isinstance(parameter.minimum, float) else params[key]
            for key, parameter in own.items()
        }
    return Candidate(checked)


def _accelerator(name: Any, text: str) -> Accelerator:
    known = all_accelerators()
    if name == "baseline":
        raise _refusal(text, "the baseline is what candidates are compared with; leave it out")
    if name not in known:
        raise _refusal(
            text,
            f"unknown accelerator {name!r}{_nearest(name, known)}: choose from {', '.join(known)}",
        )
    return known[name]


def _nearest(name: Any, known: Iterable[str]) -> str:
    nearest = get_close_matches(str(name).lower(), known, n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""


def _refusal(text: str, reason: str) -> ConfigurationError:
    shown = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
    return ConfigurationError(f"{OPTION} {shown!r}: {reason}")
