"""The names of a study's extra measurements: all that it measured but its trials."""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

from accel_search.core.candidate import Candidate

ExtraName = NewType("ExtraName", str)
"""A kind and what is measured of it; result files and databases hold it as text."""


class Kind(StrEnum):
    """What an extra measurement is of."""

    BASELINE = "baseline"
    HELD_OUT = "held_out"
    """A candidate on held-out prompts."""
    STEPS = "steps"
    """The baseline pipeline at fewer steps."""
    WITHOUT = "without"
    """A winner without one of its targets."""


def baseline(split: str = "search", batch_size: int | str = "") -> ExtraName:
    """Return the name of a baseline: of a part of the prompts, at a batch size if one is given."""
    return _name(Kind.BASELINE, f"{split}:{batch_size}".removesuffix(":"))


def held_out(candidate: Candidate) -> ExtraName:
    """Return the name of a candidate's measurement on held-out prompts."""
    return _name(Kind.HELD_OUT, candidate)


def fewer_steps(steps: int) -> ExtraName:
    """Return the name of the baseline pipeline's measurement at a number of steps."""
    return _name(Kind.STEPS, steps)


def without(rest: Candidate) -> ExtraName:
    """Return the name of the timing of a winner without one of its targets: of the rest."""
    return _name(Kind.WITHOUT, rest)


def parse(name: str) -> tuple[str, str]:
    """Return the kind of an extra measurement, as a `Kind`'s text, and what is measured of it."""
    kind, _, what = name.partition(":")
    return kind, what


def is_baseline(name: str, split: str = "") -> bool:
    """Return whether a name is a baseline's, of a part of the prompts if one is given."""
    kind, what = parse(name)
    return kind == Kind.BASELINE and (not split or parse(what)[0] == split)


def _name(kind: Kind, what: object) -> ExtraName:
    return ExtraName(f"{kind}:{what}")
