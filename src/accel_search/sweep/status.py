"""What became of a configuration so far, as the bounds file tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from accel_search.settings import Settings
from accel_search.storage import speedup_bounds
from accel_search.storage.answers import stored_bound
from accel_search.storage.entries import BoundEntry, FailedEntry
from accel_search.storage.keys import Configuration
from accel_search.storage.lookup import Reason, other_options


@dataclass(frozen=True)
class Status:
    """What became of a configuration so far."""

    state: Literal["open", "done", "failed"]
    entry: BoundEntry | None = None
    """Where it is done."""
    failure: FailedEntry | None = None
    """Where it failed."""
    note: str = ""
    """Why a stored result does not count."""


def status_of(
    content: Mapping[str, Any],
    configuration: Configuration,
    settings: Settings,
    machine: Mapping[str, Any] | None,
) -> Status:
    """Return what a bounds file says of a configuration.

    A result counts if the same options asked for it and this machine, with these versions of the
    packages, made it.

    Args:
        content: Of the file.
        configuration: Which one.
        settings: Its search's.
        machine: The fields of a provenance that depend on the machine; None takes any machine's.
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
    """Return in words why a stored result is none of this sweep; the options first."""
    names = ", ".join(reason.name for reason in reasons if reason.part == "options")
    if names:
        return f"was asked for with another {names}"
    names = ", ".join(reason.name for reason in reasons)
    return f"was measured elsewhere (other {names})" if names else ""
