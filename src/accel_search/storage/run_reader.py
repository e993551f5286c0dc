"""Read a search for a report from disk, or take one that has just ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from accel_search.core import extras
from accel_search.core.candidate import Candidate
from accel_search.core.outcome import Outcome
from accel_search.core.secrets import without_secrets
from accel_search.core.trial import Measurement
from accel_search.core.workload import Prompt
from accel_search.errors import ConfigurationError, LoadError, first_line
from accel_search.storage.entries import Params
from accel_search.storage.json_files import Unreadable, as_type, load_json
from accel_search.storage.run import DEFAULT_BOUND, Column, Pictures, Run, build
from accel_search.storage.run_folder import RunRecord, pictures_path, read_record, record_path
from accel_search.storage.trials_db import DATABASE, default_url, read_study, study_names
from accel_search.storage.trials_file import read_trials


def of_outcome(
    outcome: Outcome,
    record: RunRecord,
    beside: Mapping[str, Measurement],
    run_dir: str | None,
) -> Run:
    """Return a search that has just ended, with the images of its run folder, if it has one."""
    run = build(
        f"{run_dir or 'a replay'}",
        record,
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
        bound: Largest allowed loss of score, for a run without a record.
        storage: Optuna storage URL of the trials, if they are not in the folder's own database;
            the folder need not exist then.

    Raises:
        ConfigurationError: There is no such study, or it is empty.
        LoadError: A file or storage cannot be read.
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
    record = RunRecord(workload=recorded.given)
    return build(path.name, record, bound, baselines, recorded.trials, beside)


def studies(folder: Path, storage: str | None = None) -> list[str]:
    """Return the names of a run folder's studies, the one that ended last at the end.

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
    ended = {name: record_path(folder, name) for name in names}
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
    path = record_path(folder, name)
    record = read_record(path) if path.exists() else RunRecord(study=name)
    origin = str(folder) if storage is None else without_secrets(storage)
    try:
        trials, beside = read_study(url, name)
        baselines = _baselines(beside)
        run = build(origin, record, bound, baselines, trials, beside) if baselines else None
    except Exception as error:  # As above, or records of another version.
        raise LoadError(f"{place}: {name} cannot be read: {first_line(error)}") from error
    if run is None:
        raise ConfigurationError(
            f"{place}: {name} holds no finished baseline yet; run the search again to go on"
        )
    # Images of an earlier end may not show the winner any more.
    return run if record.is_open else _with_pictures(run, folder)


def _place(folder: Path, storage: str | None) -> tuple[str, str]:
    """Return the name of the trials' place in messages, and its URL."""
    if storage is not None:
        return f"--storage {without_secrets(storage)}", storage
    return str(folder / DATABASE), default_url(folder)


def _baselines(beside: Mapping[str, Measurement]) -> dict[int, Measurement]:
    """Return batch size -> the baseline on the search's prompts, the latest size last."""
    return {
        measured.batch_size: measured
        for key, measured in beside.items()
        if extras.is_baseline(key, "search") and measured.seconds_per_image
    }


@dataclass(frozen=True)
class _Column:
    part: str
    candidate: Params
    files: tuple[str, ...]


@dataclass(frozen=True)
class _Index:
    """The content of `pictures.json`."""

    prompts: tuple[Prompt, ...]
    columns: tuple[_Column, ...]


def _with_pictures(run: Run, folder: Path) -> Run:
    """Add the images of a run, if there are any."""
    if not run.record.study:
        return run
    place = pictures_path(folder, run.record.study)
    path = place / "pictures.json"
    if not path.exists():
        return run
    try:
        index = as_type(load_json(path), _Index)
        columns = tuple(
            Column(
                column.part,
                Candidate(column.candidate),
                # Only names: files elsewhere do not belong to this run.
                tuple(place / Path(file).name for file in column.files),
            )
            for column in index.columns
        )
        if any(len(column.files) != len(index.prompts) for column in columns):
            raise Unreadable("it does not name an image for each prompt")
        files = [file for column in columns for file in column.files]
        missing = [file for file in files if not file.is_file()]  # Raises for an impossible name.
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{path}: cannot be read as a list of pictures: {first_line(error)}"
        ) from error
    if missing:
        raise LoadError(f"{missing[0]}: is missing; delete {place} for a report without pictures")
    return replace(run, pictures=Pictures(index.prompts, columns))
