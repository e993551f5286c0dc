"""What a report is made of: one search, its trials, its rivals and its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accel_search.core import extras
from accel_search.core.assessment import AssessedTrial, Assessment, assess, verdict
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate, Verdict
from accel_search.core.timing_noise import TimingNoise, speedup, timing_noises
from accel_search.core.trial import Goal, Measurement, Trial
from accel_search.errors import LoadError, first_line

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
    """As `run_folder.story_of` returned it; parts that the run did not store may be missing."""
    goal: Goal
    baseline: Measurement
    rows: tuple[Row, ...]
    """In the order in which they were first measured."""
    beside: Mapping[str, Measurement] = field(default_factory=dict)
    """Measurements that are no trials, by name."""
    rivals: tuple[Rival, ...] = ()
    winner: Row | None = None
    without: Mapping[str, Estimate] = field(default_factory=dict)
    """The winner's speedup without each of several targets, of those that it was timed without."""
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
        baseline = self.baseline
        noises = timing_noises(
            {extras.baseline(): baseline} | dict(self.beside),
            [row.measurement for row in self.rows],
        )
        pairs = max(1, len(baseline.baseline_seconds_per_image))
        return noises[baseline.batch_size].floor(pairs)

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


def build(
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
        {extras.baseline("search", size): each for size, each in baselines.items()} | dict(beside),
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
        without={} if winner is None else _without(winner.candidate, beside, noises),
        is_confirmed=named is not None,
    )


def _row(
    known: AssessedTrial,
    baselines: Mapping[int, Measurement],
    noises: Mapping[int, TimingNoise],
    goal: Goal,
) -> tuple[Row, Assessment | None]:
    trial = known.trial
    measured, seconds = trial.measurement, trial.seconds
    if measured is None:
        assert trial.failure is not None
        said = f"{trial.failure.kind}: {trial.failure.message}"
        return Row(trial.candidate, "failed", None, None, 0, None, said, seconds=seconds), None
    baseline = baselines.get(measured.batch_size)
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
        kind, text = extras.parse(name)
        of_size = measured.batch_size == baseline.batch_size
        if kind != extras.Kind.STEPS or not of_size or not baseline.scores:
            continue
        each = assess(measured, baseline, goal.max_score_loss, noises[measured.batch_size])
        steps = int(text)
        found.append(Rival(steps, each.speedup, each.score_loss, bool(as_well.get(steps))))
    return tuple(sorted(found, key=lambda rival: rival.steps))


def _without(
    winner: Candidate, beside: Mapping[str, Measurement], noises: Mapping[int, TimingNoise]
) -> dict[str, Estimate]:
    found = {name: beside.get(extras.without(winner.without(name))) for name in winner}
    return {
        name: speedup(measured, noises[measured.batch_size])
        for name, measured in found.items()
        if measured is not None
    }
