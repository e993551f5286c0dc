"""The state of a configuration, by the bounds file: open, done or failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from accel_search.core.workload import in_words
from accel_search.settings import Settings
from accel_search.storage import speedup_bounds
from accel_search.storage.answers import stored_bound
from accel_search.storage.entries import BoundEntry, FailedEntry
from accel_search.storage.keys import Configuration
from accel_search.storage.lookup import Reason, other_options


@dataclass(frozen=True)
class Status:
    """The state of a configuration."""

    state: Literal["open", "done", "failed"]
    entry: BoundEntry | None = None
    """Where it is done."""
    failure: FailedEntry | None = None
    """Where it failed."""
    note: str = ""
    """Why a stored entry does not count."""


def status_of(
    content: Mapping[str, Any],
    configuration: Configuration,
    settings: Settings,
    machine: Mapping[str, Any] | None,
) -> Status:
    """Return the state of a configuration.

    An entry counts if it was made with the same options, on this machine and with these versions
    of the packages; without them, on any machine.
    """
    entry, reasons = stored_bound(content, settings, machine)
    if entry is not None and not reasons:
        return Status("done", entry=entry)
    note = _reason_for(reasons)
    failure = speedup_bounds.failures(content).get(configuration)
    if failure is not None and bool(failure.latency_only) == settings.latency_only:
        wanted = speedup_bounds.asked(settings)
        others = other_options(failure.asked, wanted) if failure.asked else []
        if not others:
            return Status("failed", failure=failure)
        note = f"failed when asked for with another {', '.join(others)}"
    return Status("open", note=note)


def _reason_for(reasons: Sequence[Reason]) -> str:
    """Return why a stored entry does not count: its options, else its machine."""
    names = ", ".join(reason.name for reason in reasons if reason.part == "options")
    if names:
        return f"was asked for with another {names}"
    names = in_words(reason.name for reason in reasons)
    return f"was measured elsewhere (other {names})" if names else ""
