"""What a search leaves in its run folder beside the trials' database: its record and its pictures.

The database holds samples and the result file winners. A report needs the rest too: the bound, why
the search stopped, who was refused, and which prompts the pictures were made of.
"""

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
"""Folder of a run that the records lie in, a file a study."""
PICTURES = "pictures"
"""Folder of a run that the pictures lie in, a folder a study."""


def record_path(run_dir: str | Path, study: str) -> Path:
    """Return where a study's record lies in a run folder."""
    return Path(run_dir) / FOLDER / f"{_plain(study)}.json"


def pictures_path(run_dir: str | Path, study: str) -> Path:
    """Return the folder of a study's pictures in a run folder."""
    return Path(run_dir) / PICTURES / _plain(study)


def _plain(study: str) -> str:
    """Return a study's name as that of a file; one that someone else wrote may climb out."""
    if not study or study in (".", "..") or "/" in study or "\0" in study:
        raise ConfigurationError(f"{study!r}: is no name of a study of accel-search")
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
    """Replace the record of a study that a search goes on with: it has not ended any more.

    Args:
        run_dir: The run folder; nothing is written where it has no record of that study.
        begun: From `begun_record`.

    Raises:
        ConfigurationError: The folder cannot be written to.
    """
    if record_path(run_dir, begun.study).exists():
        write_record(run_dir, begun)


def to_picture(outcome: Outcome) -> dict[str, Candidate]:
    """Return what a reader wants to see side by side, by the part it plays.

    The baseline; the winner; the fastest candidate that was refused for what it does to the
    pictures; and fewer steps, the rival that costs nothing.
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
