"""What is measured next: one strategy a file, found by discovery."""

from __future__ import annotations

import sys
from functools import cache

from accel_search.discovery import discover
from accel_search.errors import ConfigurationError
from accel_search.strategies.base import Strategy


@cache
def all_strategies() -> dict[str, type[Strategy]]:
    """Return every strategy by name."""
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
