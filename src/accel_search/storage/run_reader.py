"""A search as a report shows it, read from what it left on disk or taken as it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accel_search.core import extras
from accel_search.core.candidate import Candidate
from accel_search.core.outcome import Outcome
from accel_search.core.secrets import without_secrets
from accel_search.core.trial import Measurement
from accel_search.errors import ConfigurationError, LoadError, first_line
from accel_search.storage.json_files import as_object, part_of
from accel_search.storage.run import DAMAGED, DEFAULT_BOUND, Column, Pictures, Run, build, damaged
from accel_search.storage.run_folder import FORMAT, is_open, pictures_path, story_path
from accel_search.storage.trials_db import DATABASE, default_url, read_study, study_names
from accel_search.storage.trials_file import read_trials


def of_outcome(
    outcome: Outcome,
    story: Mapping[str, Any],
    beside: Mapping[str, Measurement],
    run_dir: str | None,
) -> Run:
    """Return a search that has just ended.

    Args:
        outcome: What it found.
        story: From `run_folder.story_of`.
        beside: What its store remembers beside the trials.
        run_dir: Where its pictures are; None where it left nothing.
    """
    run = build(
        f"{run_dir or 'a replay'}",
        story,
        DEFAULT_BOUND,
        {outcome.baseline.batch_size: outcome.baseline} | _baselines(beside),
        outcome.trials,
        beside,
    )
    return run if run_dir is None else _with_pictures(run, Path(run_dir))


def read_run(
    path: Path,
    study: str | None = None,
    bound: float = DEFAULT_BOUND,
    storage: str | None = None,
) -> Run:
    """Read a search from its run folder, or from a file that `--trials_out` wrote.

    Args:
        path: The folder or the file.
        study: Which study of a folder; None is the one that ended last.
        bound: Largest loss of score allowed, where the run does not say.
        storage: Optuna storage URL that the trials are in, if not the folder's own database; the
            folder need not exist then.

    Raises:
        ConfigurationError: There is no such study, or nothing in it to report.
        LoadError: A file or storage cannot be read as what it should be.
    """
    if storage is not None or path.is_dir():
        return _read_folder(path, study, bound, storage)
    try:
        recorded = read_trials(path)
    except ConfigurationError as error:
        raise LoadError(str(error).removeprefix("--replay ")) from error
    beside: dict[str, Measurement] = {
        extras.fewer_steps(steps): value for steps, value in recorded.rivals.items()
    }
    beside |= {extras.held_out(tested): value for tested, value in recorded.held_out.items()}
    if recorded.held_out_baseline is not None:
        size = recorded.held_out_baseline.batch_size
        beside[extras.baseline("held_out", size)] = recorded.held_out_baseline
    baselines = {recorded.baseline.batch_size: recorded.baseline}
    try:
        told = {"workload": dict(recorded.workload_fields)}
        return build(path.name, told, bound, baselines, recorded.trials, beside)
    except DAMAGED as error:
        raise damaged(path, error) from error


def studies(folder: Path, storage: str | None = None) -> list[str]:
    """Return the names of the studies of a run folder, the one that ended last at the end.

    Args:
        folder: The run folder.
        storage: As in `read_run`.

    Raises:
        ConfigurationError: There are none.
        LoadError: The storage cannot be read.
    """
    place, url = _place(folder, storage)
    if storage is None and not (folder / DATABASE).exists():
        raise ConfigurationError(
            f"{folder}: holds no {DATABASE}; give the --run_dir of a search, a --trials_out file, "
            "or a speedup_bounds.json; for a search with --storage, the same --storage"
        )
    try:
        names = study_names(url)
    except Exception as error:  # Any database driver may raise its own.
        raise LoadError(
            f"{place}: cannot be read as a trials' database: {first_line(error)}"
        ) from error
    if not names:
        raise ConfigurationError(f"{place}: holds no study; run accel-search first")
    ended = {name: story_path(folder, name) for name in names}
    return sorted(
        names,
        key=lambda name: ended[name].stat().st_mtime if ended[name].exists() else 0.0,
    )


def _read_folder(folder: Path, study: str | None, bound: float, storage: str | None) -> Run:
    names = studies(folder, storage)
    place, url = _place(folder, storage)
    if study is not None and study not in names:
        raise ConfigurationError(f"--study {study}: {place} holds {', '.join(names)}")
    name = study or names[-1]
    story = _read_story(folder, name)
    try:
        trials, beside = read_study(url, name)
    except Exception as error:  # As above; or records of another version.
        raise LoadError(f"{place}: {name} cannot be read: {first_line(error)}") from error
    baselines = _baselines(beside)
    if not baselines:
        raise ConfigurationError(
            f"{place}: {name} holds no finished baseline yet; run the search again to go on"
        )
    origin = str(folder) if storage is None else without_secrets(storage)
    try:
        run = build(origin, story, bound, baselines, trials, beside)
    except DAMAGED as error:
        raise damaged(folder, error) from error
    # Those of an earlier end show what need not be the winner any more.
    return run if is_open(story) else _with_pictures(run, folder)


def _place(folder: Path, storage: str | None) -> tuple[str, str]:
    """Return how the place of the trials is named in messages, and its URL."""
    if storage is not None:
        return f"--storage {without_secrets(storage)}", storage
    return str(folder / DATABASE), default_url(folder)


def _baselines(beside: Mapping[str, Measurement]) -> dict[int, Measurement]:
    """Return batch size -> the bare pipeline on the search's prompts, the latest size last."""
    return {
        measured.batch_size: measured
        for key, measured in beside.items()
        if extras.is_baseline(key, "search")
    }


def _read_story(folder: Path, study: str) -> dict[str, Any]:
    """Return a study's story; without one, what the result file beside the folder tells."""
    path = story_path(folder, study)
    if path.exists():
        try:
            story = json.loads(path.read_bytes())
            if story["format"] != FORMAT:
                raise ValueError(f"format is {story['format']!r}, expected {FORMAT!r}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise LoadError(f"{path}: cannot be read as a story: {error}") from error
        return dict(story)
    return {"study": study} | _from_result_file(folder, study)


def _from_result_file(folder: Path, study: str) -> dict[str, Any]:
    """Return what a search of an earlier version left of its story: its entry."""
    from accel_search.storage.keys import parse_key

    for path in (folder / "search_params.json", folder.parent / "search_params.json"):
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        for text, value in as_object(content).items():
            key = parse_key(text)
            for entry in (part_of(value, "by_model") or {"": value}).values():
                evidence, where = part_of(entry, "evidence"), part_of(entry, "provenance")
                if key is None or evidence.get("study") != study:
                    continue
                names = ("dtype", "height", "width", "batch_size", "guidance_scale")
                return {
                    "date": where.get("date"),
                    "workload": {name: where.get(name) for name in names}
                    | {
                        "pipeline": where.get("model_id"),
                        "pipeline_class": key[0],
                        "scheduler_class": key[1],
                        "steps": int(key[2]),
                    },
                    "asked": {
                        "targets": key[5],
                        "req_score_loss": evidence.get("req_score_loss", key[4]),
                        "strategy": evidence.get("strategy"),
                        "output": str(path),
                    },
                    "winner": entry.get("settings"),
                    "held_out": evidence.get("held_out"),
                    "rivals": evidence.get("fewer_steps") or [],
                    "refuted": evidence.get("refuted_on_held_out") or [],
                    "space": {
                        "points": evidence.get("space_points"),
                        "distinct": evidence.get("space_distinct"),
                    },
                    "resumed": evidence.get("trials_resumed"),
                    "stopped": evidence.get("stopped"),
                    "settled": evidence.get("settled"),
                    "could_win": evidence.get("could_win"),
                    "seconds": evidence.get("seconds"),
                    "provenance": where or None,
                }
    return {}


def _with_pictures(run: Run, folder: Path) -> Run:
    """Add the pictures of a run, where there are any that can be read."""
    study = run.story.get("study")
    if not study:
        return run
    place = pictures_path(folder, str(study))
    index = place / "pictures.json"
    if not index.exists():
        return run
    try:
        content = json.loads(index.read_bytes())
        found = Pictures(
            tuple(str(each["text"]) for each in content["prompts"]),
            tuple(int(each["seed"]) for each in content["prompts"]),
            tuple(
                Column(
                    str(each["part"]),
                    Candidate(each["candidate"]),
                    # Names alone: a file elsewhere is none of this run's.
                    tuple(place / Path(str(file)).name for file in each["files"]),
                )
                for each in content["columns"]
            ),
        )
        files = [file for column in found.columns for file in column.files]
        missing = [file for file in files if not file.is_file()]  # Raises for an impossible name.
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(
            f"{index}: cannot be read as a list of pictures: {first_line(error)}"
        ) from error
    if missing:
        raise LoadError(f"{missing[0]}: is missing; delete {place} for a report without pictures")
    return replace(run, pictures=found)
