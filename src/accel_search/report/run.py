"""What a report is made of: one search, read from what it left on disk or taken as it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accel_search.errors import ConfigurationError, LoadError, first_line
from accel_search.logging_utils import without_secrets
from accel_search.records import Candidate, Goal, Measurement, Trial
from accel_search.report.wording import verdict
from accel_search.search import Outcome
from accel_search.statistics import (
    AssessedTrial,
    Assessment,
    Estimate,
    TimingNoise,
    Verdict,
    assess,
    noise_floor,
    speedup,
    timing_noises,
)
from accel_search.store import read_study, sqlite_url, study_names
from accel_search.story import FORMAT, pictures_path, story_path
from accel_search.trials_file import read_trials

DATABASE = "trials.db"
DEFAULT_BOUND = 0.02
"""Loss of score that is allowed where a run does not say."""


DAMAGED = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, AssertionError
)  # fmt: skip
"""What comes of reading a story or a list of pictures that someone else wrote."""


@dataclass(frozen=True)
class Row:
    """One trial as a report shows it."""

    candidate: Candidate
    state: str
    """`pass`, `fail`, `inconclusive`; `open` or `dropped` at an early look; `timed` where nothing
    was scored; `failed`."""
    speedup: Estimate | None
    score_loss: Estimate | None
    prompts: int
    """Prompts that it was scored on."""
    measurement: Measurement | None
    failure: str | None
    is_front: bool = False
    """Whether none was faster at a smaller loss, among those scored on all prompts."""
    seconds: float = 0.0
    """Wall seconds that it took, a failed one until it failed."""


@dataclass(frozen=True)
class Rival:
    """The bare pipeline with fewer steps."""

    steps: int
    speedup: Estimate
    score_loss: Estimate
    does_as_well: bool


@dataclass(frozen=True)
class Column:
    """Pictures of one candidate."""

    part: str
    """`baseline`, `winner`, `refused` or `rival`."""
    candidate: Candidate
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Pictures:
    """Pictures of several candidates, from the same prompts and noise."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Run:
    """One search."""

    origin: str
    """Where it was read from."""
    story: Mapping[str, Any]
    """As `story.story_of` returned it; parts may be missing where the run did not store them."""
    goal: Goal
    baseline: Measurement
    rows: tuple[Row, ...]
    """In the order in which they were first measured."""
    beside: Mapping[str, Measurement] = field(default_factory=dict)
    """Measurements that are no trials, by name."""
    rivals: tuple[Rival, ...] = ()
    winner: Row | None = None
    is_confirmed: bool = False
    """Whether a search named the winner; otherwise it is only the fastest within the bound."""
    pictures: Pictures | None = None

    @property
    def workload(self) -> Mapping[str, Any]:
        """Return the fields of the workload that are known."""
        found: Mapping[str, Any] = self.story.get("workload") or {}
        return found

    @property
    def asked(self) -> Mapping[str, Any]:
        """Return what was asked for, as far as it is known."""
        found: Mapping[str, Any] = self.story.get("asked") or {}
        return found

    @property
    def noise_floor(self) -> float:
        """Return how far apart two timings of the bare pipeline may lie by chance."""
        return noise_floor(self.baseline, max(1, len(self.baseline.baseline_seconds_per_image)))

    @property
    def targets(self) -> tuple[str, ...]:
        """Return the accelerators that were searched."""
        named = self.asked.get("targets")
        return tuple(named or sorted({name for row in self.rows for name in row.candidate}))


def damaged(run: Run | Path, error: Exception) -> LoadError:
    """Return the error that says so."""
    where = run.origin if isinstance(run, Run) else run
    return LoadError(
        f"{where}: what is told of the search there cannot be shown ({first_line(error)}): "
        f"search again, or remove its story"
    )


def of_outcome(
    outcome: Outcome,
    story: Mapping[str, Any],
    beside: Mapping[str, Measurement],
    run_dir: str | None,
) -> Run:
    """Return a search that has just ended.

    Args:
        outcome: What it found.
        story: From `story.story_of`.
        beside: What its store remembers beside the trials.
        run_dir: Where its pictures are; None where it left nothing.
    """
    run = _build(
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
    beside = {f"steps:{steps}": value for steps, value in recorded.rivals.items()}
    beside |= {f"held_out:{each}": value for each, value in recorded.held_out.items()}
    if recorded.held_out_baseline is not None:
        size = recorded.held_out_baseline.batch_size
        beside[f"baseline:held_out:{size}"] = recorded.held_out_baseline
    baselines = {recorded.baseline.batch_size: recorded.baseline}
    try:
        told = {"workload": dict(recorded.workload_fields)}
        return _build(path.name, told, bound, baselines, recorded.trials, beside)
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
        run = _build(origin, story, bound, baselines, trials, beside)
    except DAMAGED as error:
        raise damaged(folder, error) from error
    return _with_pictures(run, folder)


def _place(folder: Path, storage: str | None) -> tuple[str, str]:
    """Return how the place of the trials is named in messages, and its URL."""
    if storage is not None:
        return f"--storage {without_secrets(storage)}", storage
    return str(folder / DATABASE), sqlite_url(folder / DATABASE)


def _baselines(beside: Mapping[str, Measurement]) -> dict[int, Measurement]:
    """Return batch size -> the bare pipeline on the search's prompts, the latest size last."""
    return {
        measured.batch_size: measured
        for key, measured in beside.items()
        if key.startswith("baseline:search:")
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
    from accel_search.space import parse_key

    for path in (folder / "search_params.json", folder.parent / "search_params.json"):
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        for text, value in content.items() if isinstance(content, dict) else ():
            key = parse_key(text)
            entries = value.get("by_model", {"": value}) if isinstance(value, dict) else {}
            for entry in entries.values():
                evidence = entry.get("evidence") or {}
                if key is None or evidence.get("study") != study:
                    continue
                where = entry.get("provenance") or {}
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


def _build(
    origin: str,
    story: Mapping[str, Any],
    bound: float,
    baselines: Mapping[int, Measurement],
    trials: Sequence[Trial | AssessedTrial],
    beside: Mapping[str, Measurement],
) -> Run:
    """Return a run; trials that a search has assessed already are not assessed again."""
    asked = story.get("asked") or {}
    goal = Goal(
        bound if asked.get("req_score_loss") is None else float(asked["req_score_loss"]),
        asked.get("req_speedup"),
        asked.get("min_psnr"),
        asked.get("min_ssim"),
    )
    records = [each.trial if isinstance(each, AssessedTrial) else each for each in trials]
    noises = timing_noises(
        {f"baseline:search:{size}": each for size, each in baselines.items()} | dict(beside),
        [each.measurement for each in records],
    )
    rows: list[Row] = []
    assessed: list[AssessedTrial] = []
    for each in trials:
        known = each if isinstance(each, AssessedTrial) else AssessedTrial(each, None)
        row, found = _row(known, baselines, noises, goal)
        rows.append(row)
        assessed.append(AssessedTrial(known.trial, found))
    rows = _with_front(rows)
    refuted = [Candidate(each) for each in story.get("refuted") or []]
    named = story.get("winner")
    winner = None
    if named is not None:
        winner = next((row for row in rows if row.candidate == Candidate(named)), None)
    elif "stopped" not in story:
        # No search has said which one: the fastest of those that meet the goal.
        feasible = [
            row
            for row, each in zip(rows, assessed, strict=True)
            if each.assessment is not None
            and each.is_feasible(goal)
            and each.trial.candidate not in refuted
        ]
        winner = max(feasible, key=lambda row: row.speedup.value, default=None)  # type: ignore[union-attr]
    size = list(baselines)[-1]
    if winner is not None and winner.measurement is not None:
        size = winner.measurement.batch_size
    baseline = baselines.get(size, next(iter(baselines.values())))
    return Run(
        origin=origin,
        story=story,
        goal=goal,
        baseline=baseline,
        rows=tuple(rows),
        beside=beside,
        rivals=_rivals(story, beside, baseline, noises, goal),
        winner=winner,
        is_confirmed=named is not None,
    )


def _row(
    known: AssessedTrial,
    baselines: Mapping[int, Measurement],
    noises: Mapping[int, TimingNoise],
    goal: Goal,
) -> tuple[Row, Assessment | None]:
    trial = known.trial
    measured = trial.measurement
    if measured is None:
        assert trial.failure is not None
        said = f"{trial.failure.kind}: {trial.failure.message}"
        seconds = trial.failure.seconds
        return Row(trial.candidate, "failed", None, None, 0, None, said, seconds=seconds), None
    baseline, seconds = baselines.get(measured.batch_size), measured.seconds
    if baseline is None:
        said = f"no baseline was measured at its batch size, {measured.batch_size}"
        return Row(trial.candidate, "failed", None, None, 0, measured, said, seconds=seconds), None
    noise = noises[measured.batch_size]
    if not measured.scores or not baseline.scores:
        found = speedup(measured, noise)
        return Row(trial.candidate, "timed", found, None, 0, measured, None, seconds=seconds), None
    each = known.assessment or assess(measured, baseline, goal.max_score_loss, noise)
    state = verdict(each)
    if not each.is_complete and each.verdict is Verdict.FAIL:
        state = "dropped"
    row = Row(
        trial.candidate,
        state,
        each.speedup,
        each.score_loss,
        each.prompts,
        measured,
        None,
        seconds=seconds,
    )
    return row, each


def _with_front(rows: Sequence[Row]) -> list[Row]:
    """Mark the rows that none beats in both speed and loss."""
    scored = [
        (row.score_loss.value, -row.speedup.value, number)
        for number, row in enumerate(rows)
        if row.state in ("pass", "fail", "inconclusive") and row.speedup and row.score_loss
    ]
    front: set[int] = set()
    fastest = 0.0
    for _, slowness, number in sorted(scored):
        if -slowness > fastest:
            fastest = -slowness
            front.add(number)
    return [replace(row, is_front=number in front) for number, row in enumerate(rows)]


def _rivals(
    story: Mapping[str, Any],
    beside: Mapping[str, Measurement],
    baseline: Measurement,
    noises: Mapping[int, TimingNoise],
    goal: Goal,
) -> tuple[Rival, ...]:
    as_well = {int(each["steps"]): each["does_as_well"] for each in story.get("rivals") or []}
    found = []
    for name, measured in beside.items():
        kind, _, text = name.partition(":")
        if kind != "steps" or measured.batch_size != baseline.batch_size or not baseline.scores:
            continue
        each = assess(measured, baseline, goal.max_score_loss, noises[measured.batch_size])
        steps = int(text)
        found.append(Rival(steps, each.speedup, each.score_loss, bool(as_well.get(steps))))
    return tuple(sorted(found, key=lambda rival: rival.steps))


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
