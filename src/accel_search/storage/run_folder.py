"""The run folder of a search: its record and its images, next to the trials' database.

A record holds the options, space, provenance and end of a search, in one JSON file per study. It is
written when a search ends; a search that resumes the study removes the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Verdict
from accel_search.core.outcome import Outcome
from accel_search.core.trial import Goal, is_sure
from accel_search.core.workload import Provenance, SpaceSummary, Workload
from accel_search.errors import ConfigurationError, LoadError
from accel_search.settings import Settings
from accel_search.storage import entries
from accel_search.storage.entries import Number, Params, StoredProvenance, StoredWorkload
from accel_search.storage.json_files import Unreadable, as_type, load_json, write_atomically

FOLDER = "stories"
"""Subfolder of the records, a file per study."""
PICTURES = "pictures"
"""Subfolder of the images, a folder per study."""


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
    max_tail_loss: Number | None = None
    max_trials: int | None = None
    time_budget: Number | None = None
    prompts: str | None = None
    output: str | None = None
    replay: str | None = None
    controlnet: tuple[str, ...] | None = None
    ip_adapter: str | None = None
    ip_adapter_scale: Number | None = None


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
    held_out: entries.Figures | None = None
    chance_within_bound: Number | None = None
    rivals: tuple[entries.FewerSteps, ...] = ()
    refuted: tuple[Params, ...] = ()
    """Candidates that held-out prompts did not validate."""
    refuted_chances: tuple[Number | None, ...] = ()
    """Their probabilities of being within the bound; None where one failed there. Empty in files of
    earlier versions."""
    is_cut_short: bool = False
    """Whether the time budget ended the winner's validation."""
    no_gain: str | None = None
    resumed: int | None = None
    stopped: str
    settled: bool = False
    could_win: int | None = None
    seconds: Number | None = None

    @property
    def is_sure(self) -> bool:
        """Return whether the winner is validated, and not only likely to be within the bound."""
        return is_sure(self.chance_within_bound)


@dataclass(frozen=True, kw_only=True)
class RunRecord(entries.Measured):
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

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types; the end's fields are at the top level."""
        document = super().as_dict()
        return document | (document.pop("end") or {})


def begun_record(
    settings: Settings,
    space: SpaceSummary,
    workload: Workload,
    provenance: Provenance | None,
    study: str,
) -> RunRecord:
    """Return the record of a search that begins; arguments as in `search_results.entry_of`."""
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
    """Return the record of a search that has ended; arguments as in `search_results.entry_of`."""
    winner = outcome.winner
    end = End(
        winner=None if winner is None else winner.trial.candidate.as_dict(),
        held_out=None if outcome.held_out is None else entries.Figures.of(outcome.held_out),
        chance_within_bound=None if outcome.chance is None else entries.rounded(outcome.chance),
        rivals=entries.fewer_steps(outcome, settings.goal),
        refuted=tuple(candidate.as_dict() for candidate in outcome.refuted),
        refuted_chances=tuple(
            None if chance is None else entries.rounded(chance)
            for chance in outcome.refuted.values()
        ),
        is_cut_short=outcome.is_cut_short,
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


def record_path(run_dir: str | Path, study: str) -> Path:
    """Return the file of a study's record in a run folder."""
    return Path(run_dir) / FOLDER / f"{_plain(study)}.json"


def pictures_path(run_dir: str | Path, study: str) -> Path:
    """Return the folder of a study's images in a run folder."""
    return Path(run_dir) / PICTURES / _plain(study)


def _plain(study: str) -> str:
    """Return a study's name for use as a file name; one written by others may leave the folder."""
    if not study or study in (".", "..") or "/" in study or "\0" in study:
        raise ConfigurationError(f"{study!r}: is not the name of a study of accel-search")
    return study


def write_record(run_dir: str | Path, record: RunRecord) -> None:
    """Write a search's record into its run folder.

    Raises:
        ConfigurationError: The folder cannot be written to.
    """
    path = record_path(run_dir, record.study)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record.as_dict(), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise ConfigurationError(f"--run_dir {run_dir}: {error.strerror}") from error


def reopen_record(run_dir: str | Path, begun: RunRecord) -> None:
    """Replace the record of a study that a search resumes: it has no longer ended.

    Args:
        run_dir: The run folder; nothing is written if it has no record of that study.
        begun: From `begun_record`.

    Raises:
        ConfigurationError: The folder cannot be written to.
    """
    if record_path(run_dir, begun.study).exists():
        write_record(run_dir, begun)


def to_picture(outcome: Outcome, goal: Goal) -> dict[str, Candidate]:
    """Return the candidates to show side by side, by their part.

    The baseline, the winner, the fastest candidate refused for its quality, and fewer steps: those
    that do as well as the winner or, where none do, the fastest.
    """
    shown = {"baseline": Candidate()}
    if outcome.winner is not None:
        shown["winner"] = outcome.winner.trial.candidate
    refused = [
        trial
        for trial in outcome.trials
        if trial.assessment is not None
        and (trial.assessment.verdict is Verdict.FAIL or trial.trial.candidate in outcome.refuted)
    ]
    if refused:
        fastest = max(refused, key=lambda trial: trial.assessment.speedup.value)  # type: ignore[union-attr]
        shown["refused"] = fastest.trial.candidate
    if outcome.rivals:
        fastest_steps = max(outcome.rivals, key=lambda steps: steps.assessment.speedup.value)
        rival = outcome.as_well(goal) or fastest_steps
        shown["rival"] = Candidate({"steps": {"num_inference_steps": rival.steps}})
    return shown
