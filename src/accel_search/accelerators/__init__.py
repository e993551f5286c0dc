"""Accelerators by name: every module of this folder, and every installed plug-in.

A plug-in is a package with an entry point in the group `accel_search.accelerators` that names
an `Accelerator` subclass. Nothing here imports torch.
"""

from __future__ import annotations

import sys
from functools import cache

from accel_search.accelerators.base import Accelerator, Parameter
from accel_search.core.plugins import discover
from accel_search.errors import ConfigurationError

__all__ = ["Accelerator", "Parameter", "all_accelerators", "get"]

ENTRY_POINT_GROUP = "accel_search.accelerators"


def all_accelerators() -> dict[str, Accelerator]:
    """Return every accelerator by name, in alphabetical order.

    Raises:
        ConfigurationError: A plug-in cannot be loaded, or takes a name that is in use.
    """
    return dict(_discovered())


def get(name: str) -> Accelerator:
    """Return the accelerator called `name`.

    Raises:
        ConfigurationError: There is none of that name.
    """
    known = _discovered()
    if name not in known:
        raise ConfigurationError(f"unknown accelerator {name!r}: choose from {', '.join(known)}")
    return known[name]


@cache
def _discovered() -> dict[str, Accelerator]:
    classes = discover(sys.modules[__name__], Accelerator, ENTRY_POINT_GROUP)  # type: ignore[type-abstract]
    return {name: cls() for name, cls in classes.items()}
