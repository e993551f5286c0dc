"""The record of a run: options, space, provenance and end of a search; one JSON file per study.

It is written when a search ends. A search that resumes the study removes the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from msgspec import to_builtins

from accel_search.core.outcome import Outcome
from accel_search.core.workload import Provenance, SpaceSummary, Workload
from accel_search.errors import LoadError
from accel_search.settings import Settings
from accel_search.storage.entries import (
    UNKNOWN,
    FewerSteps,
    Figures,
    Number,
    Params,
    StoredProvenance,
    StoredWorkload,
    fewer_steps,
)
from accel_search.storage.json_files import Unreadable, as_type, load_json


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options that a report shows; None if unknown."""

    targets: tuple[str, ...] | None = None
    sched: str | None = None
    strategy: str | None = None
    req_score_loss: Number | None = None
    req_speedup: Number | None = None
    min_psnr: Number | None = None
    min_ssim: Number | None = None
    max_trials: int | None = None
    time_budget: Number | None = None
    prompts: str | None = None
    output: str | None = None
    replay: str | None = None


@dataclass(frozen=True, kw_only=True)
class Space:
    """The space searched."""

    points: int | None = None
    distinct: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    """Accelerator -> parameter -> values."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How a search ended."""

    winner: Params | None = None
    held_out: Figures | None = None
    rivals: tuple[FewerSteps, ...] = ()
    refuted: tuple[Params, ...] = ()
    """Faster candidates that failed on held-out prompts."""
    no_gain: str | None = None
    resumed: int | None = None
    stopped: str
    settled: bool = False
    could_win: int | None = None
    seconds: Number | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that is known of a search but its trials; any part may be missing."""

    format: Literal["accel-search-story/1"] = "accel-search-story/1"
    date: str | None = None
    study: str = ""
    workload: StoredWorkload = field(default_factory=StoredWorkload)
    asked: Asked | None = None
    space: Space = field(default_factory=Space)
    provenance: StoredProvenance | None = None
    end: End | None = None
    """None if the search has not ended, or its end is unknown."""

    @property
    def is_open(self) -> bool:
        """Return whether the search has begun and not ended."""
        return self.asked is not None and self.end is None

    @property
    def where(self) -> StoredProvenance:
        """Return the provenance, `UNKNOWN` if it is missing."""
        return self.provenance or UNKNOWN

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types; the end's fields are at the top level."""
        document: dict[str, Any] = to_builtins(self)
        return document | (document.pop("end") or {})


def begun_record(
    settings: Settings,
    space: SpaceSummary,
    workload: Workload,
    provenance: Provenance | None,
    study: str,
) -> RunRecord:
    """Return the record of a search that begins; arguments as in `ended_record`."""
    return RunRecord(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        study=study,
        workload=StoredWorkload(**asdict(workload)),
        asked=Asked(**{option.name: getattr(settings, option.name) for option in fields(Asked)}),
        space=Space(points=space.points, distinct=space.distinct, values=space.values),
        provenance=None if provenance is None else StoredProvenance(**provenance.as_dict()),
    )


def ended_record(
    outcome: Outcome,
    settings: Settings,
    space: SpaceSummary,
    workload: Workload,
    provenance: Provenance | None,
    study: str,
    no_gain: str | None,
) -> RunRecord:
    """Return the record of a search that has ended.

    Args:
        outcome: Of the search.
        settings: The options.
        space: The space searched.
        workload: The workload.
        provenance: Where and with what it was measured; None for recorded trials.
        study: Name of the trials' study.
        no_gain: Explains targets that gain nothing, from `explain.of_search`.
    """
    winner = outcome.winner
    end = End(
        winner=None if winner is None else winner.trial.candidate.as_dict(),
        held_out=None if outcome.held_out is None else Figures.of(outcome.held_out),
        rivals=fewer_steps(outcome),
        refuted=tuple(candidate.as_dict() for candidate in outcome.refuted),
        no_gain=no_gain,
        resumed=outcome.resumed,
        stopped=outcome.stopped,
        settled=outcome.settled,
        could_win=outcome.could_win,
        seconds=round(outcome.seconds, 1),
    )
    return replace(begun_record(settings, space, workload, provenance, study), end=end)


def read_record(path: Path) -> RunRecord:
    """Read a run record.

    Raises:
        LoadError: The file cannot be read as one.
    """
    try:
        content = load_json(path)
        record = as_type(content, RunRecord)
        return replace(record, end=as_type(content, End) if "stopped" in content else None)
    except Unreadable as error:
        raise LoadError(f"{path}: cannot be read as a run record: {error}") from error
