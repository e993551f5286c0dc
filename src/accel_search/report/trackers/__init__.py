"""Trackers that follow a search besides its log: one per file, found by discovery."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from accel_search.core.plugins import discover
from accel_search.report.trackers.base import Tracker


@cache
def all_trackers() -> dict[str, type[Tracker]]:
    """Return every tracker by the name of the option that asks for it."""
    return discover(sys.modules[__name__], Tracker, "accel_search.trackers")  # type: ignore[type-abstract]


def check(settings: Any) -> None:
    """Check that the requested trackers are available.

    Raises:
        ConfigurationError: A required package is not installed.
    """
    for tracker, _ in asked_for(settings):
        tracker.check()


def asked_for(settings: Any) -> list[tuple[type[Tracker], str]]:
    """Return the requested trackers, each with its target."""
    targets = {name: getattr(settings, name, None) for name in all_trackers()}
    return [(all_trackers()[name], str(target)) for name, target in targets.items() if target]
