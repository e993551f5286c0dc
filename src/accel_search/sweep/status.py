"""What became of a configuration so far, as the bounds file tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from accel_search.settings import Settings
from accel_search.storage import speedup_bounds
from accel_search.storage.json_files import part_of
from accel_search.storage.keys import Configuration


@dataclass(frozen=True)
class Status:
    """What became of a configuration so far."""

    state: Literal["open", "done", "failed"]
    entry: Mapping[str, Any] | None = None
    """Of `speedup_bounds.json`, where it is done."""
    failure: Mapping[str, Any] | None = None
    """Of `failed_configs`, where it failed."""
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
        machine: The fields of a provenance that hang on the machine; None takes any machine's.
    """
    entries = speedup_bounds.entries(
        content,
        settings.scheduler_class,
        settings.steps,
        settings.req_score_loss,
        settings.targets,
    )
    entry = entries.get(speedup_bounds.label_of(configuration.model, settings.latency_only))
    note = ""
    if entry is not None:
        note = _why_not(entry, settings, machine)
        if not note:
            return Status("done", entry=entry)
    failure = speedup_bounds.failures(content).get(configuration.failed_key)
    if failure is not None and bool(failure.get("latency_only")) == settings.latency_only:
        others = speedup_bounds.asked_otherwise(settings, failure) if "asked" in failure else []
        if not others:
            return Status("failed", failure=failure)
        note = f"failed when asked for with another {', '.join(others)}"
    return Status("open", note=note)


def _why_not(
    entry: Mapping[str, Any], settings: Settings, machine: Mapping[str, Any] | None
) -> str:
    """Return why a stored result is none of this sweep; empty where it is."""
    if others := speedup_bounds.asked_otherwise(settings, entry):
        return f"was asked for with another {', '.join(others)}"
    where = part_of(entry, "provenance")
    differing = [name for name, value in (machine or {}).items() if where.get(name) != value]
    return f"was measured elsewhere (other {', '.join(differing)})" if differing else ""
