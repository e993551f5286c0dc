"""A worker's answer, in JSON: an entry, a failure, a hang, or its machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from accel_search.errors import (
    AccelSearchError,
    ConfigurationError,
    ExitCode,
    LoadError,
    OutOfMemoryError,
    TrialFailure,
)
from accel_search.storage.entries import BoundEntry, FailedEntry, SearchEntry
from accel_search.storage.json_files import as_type
from accel_search.storage.typed import to_builtins


@dataclass(frozen=True)
class Answer:
    """The answer to one job: one of `entry`, `failure`, `carried` and `machine`."""

    key: str = ""
    """Of `speedup_bounds.json`."""
    label: str = ""
    """The model's, under that key."""
    entry: BoundEntry | None = None
    winner: SearchEntry | None = None
    """Entry of `search_params.json`, where there is one."""
    failure: FailedEntry | None = None
    is_of_model: bool = False
    """Whether every configuration of the model would fail the same way."""
    carried: tuple[int, float] | None = None
    """After a hang that is stored as a failure: counts for the next process."""
    machine: Mapping[str, Any] | None = None
    """The fields of a provenance that depend on the machine, for a probe."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return to_builtins(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Answer:
        """Return the answer that `as_dict` was written from; raises Unreadable where it is none."""
        return as_type(document, cls)


def failure(error: str, message: str, *, seconds: float, **facts: Any) -> FailedEntry:
    """Return a failure with the current time; `facts` are further fields of it."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return FailedEntry(
        error=error, message=message, timestamp=now, seconds=round(seconds, 1), **facts
    )


def failure_of(error: BaseException, seconds: float) -> FailedEntry:
    """Return an exception as a failure."""
    code = error.exit_code if isinstance(error, AccelSearchError) else ExitCode.UNEXPECTED
    message = str(error) if isinstance(error, AccelSearchError) else _named(error)
    facts: dict[str, Any] = {}
    if isinstance(error, OutOfMemoryError):
        kind = "cuda_oom"
        facts = {
            "batch_sizes_tried": error.batch_sizes,
            "bytes_asked": error.bytes_asked,
            "bytes_free": error.bytes_free,
        }
    elif isinstance(error, LoadError):
        kind = "model_load"
    elif isinstance(error, TrialFailure):
        kind = error.kind
    elif isinstance(error, ConfigurationError) and isinstance(error.__cause__, TrialFailure):
        kind = error.__cause__.kind  # The baseline pipeline's own images.
    else:
        kind = "unknown_error"
    return failure(kind, message, seconds=seconds, exit_code=code, **facts)


def _named(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
