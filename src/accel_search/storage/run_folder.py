"""The run folder of a search: its record and its images, next to the trials' database."""

from __future__ import annotations

import json
from pathlib import Path

from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Verdict
from accel_search.core.outcome import Outcome
from accel_search.errors import ConfigurationError
from accel_search.storage.json_files import write_atomically
from accel_search.storage.run_record import RunRecord

FOLDER = "stories"
"""Subfolder of the records, a file per study."""
PICTURES = "pictures"
"""Subfolder of the images, a folder per study."""


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


def to_picture(outcome: Outcome) -> dict[str, Candidate]:
    """Return the candidates to show side by side, by their part.

    The baseline, the winner, the fastest candidate refused for its quality, and fewer steps.
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
        rival = max(outcome.rivals, key=lambda steps: steps.assessment.speedup.value)
        shown["rival"] = Candidate({"steps": {"num_inference_steps": rival.steps}})
    return shown
