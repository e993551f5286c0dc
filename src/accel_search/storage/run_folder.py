"""What a search leaves in its run folder beside the trials: what was asked, how it went and ended.

The trials' database holds samples and the result file winners. A report needs the rest too: the
bound, why the search stopped, who was refused, and which prompts the pictures were made of. One
small JSON file a study, `stories/<study>.json`, holds that; it is written when a search ends. When
another one begins to go on with the study, what the file tells of an end is taken out of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Verdict
from accel_search.core.outcome import Outcome
from accel_search.core.workload import Provenance, SpaceSummary, Workload
from accel_search.errors import ConfigurationError
from accel_search.settings import Settings
from accel_search.storage.json_files import write_atomically
from accel_search.storage.search_results import figures

FORMAT = "accel-search-story/1"
FOLDER = "stories"
PICTURES = "pictures"
"""Folder of a run that the pictures lie in, a folder a study."""


def story_of(
    outcome: Outcome,
    settings: Settings,
    space: SpaceSummary,
    workload: Workload,
    provenance: Provenance | None,
    study: str,
    no_gain: str | None,
) -> dict[str, Any]:
    """Return how a search went, as plain JSON types.

    Args:
        outcome: What it found.
        settings: What was asked.
        space: What was searched.
        workload: What was measured.
        provenance: Where and with what; None of recorded trials.
        study: Name of the trials' study.
        no_gain: What is to be said of targets that gain nothing, from `explain.of_search`.
    """
    winner = outcome.winner
    return begun_story(settings, space, workload, provenance, study) | {
        "winner": None if winner is None else winner.trial.candidate.as_dict(),
        "held_out": None if outcome.held_out is None else figures(outcome.held_out),
        "rivals": [
            {
                "steps": rival.steps,
                **figures(rival.assessment),
                "does_as_well": winner is not None and rival.rivals(winner, outcome.held_out),
            }
            for rival in outcome.rivals
        ],
        "refuted": [each.as_dict() for each in outcome.refuted],
        "no_gain": no_gain,
        "resumed": outcome.resumed,
        "stopped": outcome.stopped,
        "settled": outcome.settled,
        "could_win": outcome.could_win,
        "seconds": round(outcome.seconds, 1),
    }


def begun_story(
    settings: Settings,
    space: SpaceSummary,
    workload: Workload,
    provenance: Provenance | None,
    study: str,
) -> dict[str, Any]:
    """Return what there is to be told of a search as it begins, as plain JSON types."""
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": study,
        "workload": asdict(workload),
        "asked": {
            "targets": list(settings.targets),
            "sched": settings.sched,
            "strategy": settings.strategy,
            "req_score_loss": settings.req_score_loss,
            "req_speedup": settings.req_speedup,
            "min_psnr": settings.min_psnr,
            "min_ssim": settings.min_ssim,
            "max_trials": settings.max_trials,
            "time_budget": settings.time_budget,
            "prompts": settings.prompts,
            "output": settings.output,
            "replay": settings.replay,
        },
        "space": {
            "points": space.points,
            "distinct": space.distinct,
            "values": space.values,
        },
        "provenance": None if provenance is None else provenance.as_dict(),
    }


def story_path(run_dir: str | Path, study: str) -> Path:
    """Return where a study's story lies in a run folder."""
    return Path(run_dir) / FOLDER / f"{_plain(study)}.json"


def pictures_path(run_dir: str | Path, study: str) -> Path:
    """Return the folder of a study's pictures in a run folder."""
    return Path(run_dir) / PICTURES / _plain(study)


def _plain(study: str) -> str:
    """Return a study's name as that of a file; one that someone else wrote may climb out."""
    if not study or study in (".", "..") or "/" in study or "\0" in study:
        raise ConfigurationError(f"{study!r}: is no name of a study of accel-search")
    return study


def write_story(run_dir: str | Path, story: Mapping[str, Any]) -> None:
    """Write a search's story into its run folder.

    Raises:
        ConfigurationError: The folder cannot be written to.
    """
    path = story_path(run_dir, story["study"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(story, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise ConfigurationError(f"--run_dir {run_dir}: {error.strerror}") from error


def reopen_story(run_dir: str | Path, begun: Mapping[str, Any]) -> None:
    """Replace the story of a study that a search goes on with: its end is none any more.

    Args:
        run_dir: The run folder; nothing is written where it has no story of that study.
        begun: As `begun_story` returned it.

    Raises:
        ConfigurationError: The folder cannot be written to.
    """
    if story_path(run_dir, begun["study"]).exists():
        write_story(run_dir, begun)


def is_open(story: Mapping[str, Any]) -> bool:
    """Tell whether a story is one of a search that has not ended."""
    return "asked" in story and "stopped" not in story


def to_picture(outcome: Outcome) -> dict[str, Candidate]:
    """Return what a reader wants to see side by side, by the part it plays.

    The baseline; the winner; the fastest candidate that was refused for what it does to the
    pictures; and fewer steps, the rival that costs nothing.
    """
    found = {"baseline": Candidate()}
    if outcome.winner is not None:
        found["winner"] = outcome.winner.trial.candidate
    refused = [
        each
        for each in outcome.trials
        if each.assessment is not None
        and (each.assessment.verdict is Verdict.FAIL or each.trial.candidate in outcome.refuted)
    ]
    if refused:
        fastest = max(refused, key=lambda each: each.assessment.speedup.value)  # type: ignore[union-attr]
        found["refused"] = fastest.trial.candidate
    if outcome.rivals:
        rival = max(outcome.rivals, key=lambda each: each.assessment.speedup.value)
        found["rival"] = Candidate({"steps": {"num_inference_steps": rival.steps}})
    return found
