"""Strategies, which decide what to measure next: one per file, found by discovery."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

from accel_search.cli.options import refuse
from accel_search.core.plugins import discover
from accel_search.errors import ConfigurationError

if TYPE_CHECKING:
    from accel_search.search.strategies.base import Strategy


@cache
def all_strategies() -> dict[str, type[Strategy]]:
    """Return every strategy by name."""
    from accel_search.search.strategies.base import Strategy

    return discover(sys.modules[__name__], Strategy, "accel_search.strategies")  # type: ignore[type-abstract]


def get(name: str) -> type[Strategy]:
    """Return the strategy of that name.

    Raises:
        ConfigurationError: There is none.
    """
    if name not in all_strategies():
        raise ConfigurationError(
            f"--strategy {name!r}: expected one of {', '.join(all_strategies())}"
        )
    return all_strategies()[name]


def check(name: str, sampler: str | None) -> None:
    """Check that there is a strategy of that name with that sampler.

    Raises:
        ConfigurationError: There is none.
    """
    samplers = get(name).samplers
    if sampler is not None and sampler not in samplers:
        allowed = f"one of {', '.join(samplers)}" if samplers else "no sampler"
        refuse("sampler", sampler, f"{allowed} for --strategy {name}")
