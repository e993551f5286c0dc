"""The content of a report: one search, its trials, fewer steps, and its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from accel_search.core import extras
from accel_search.core.assessment import AssessedTrial, Assessment, assess, verdict
from accel_search.core.candidate import Candidate, Value
from accel_search.core.intervals import Estimate, Verdict
from accel_search.core.machine_health import NoiseNote, noise_note
from accel_search.core.timing_noise import TimingNoise, speedup, timing_noises
from accel_search.core.trial import Goal, Measurement, Trial
from accel_search.core.workload import Prompt
from accel_search.settings import Settings
from accel_search.storage.entries import Figures, interval_of
from accel_search.storage.run_folder import Asked, End, RunRecord

DEFAULT_BOUND = Settings.req_score_loss
"""Allowed loss of score of a run without a record."""


@dataclass(frozen=True)
class Row:
    """One trial as a report shows it."""

    candidate: Candidate
    state: str
    """`pass`, `fail`, `inconclusive`; `open` or `dropped` at an early stage; `timed` if nothing was
    scored; `failed`."""
    speedup: Estimate | None
    score_loss: Estimate | None
    prompts: int
    """Prompts it was scored on."""
    measurement: Measurement | None = field(repr=False)
    failure: str | None
    is_front: bool = False
    """Whether no trial scored on all prompts is faster at a smaller loss."""
    seconds: float = 0.0
    """Wall seconds it took, a failed one until it failed."""
    tail_loss: float | None = None
    """Mean loss over the worst tenth of its prompts."""
    range_loss: float | None = None
    """Loss as a fraction of the score's usable range."""

    @property
    def settings(self) -> dict[str, dict[str, Value]]:
        """Return the candidate as plain JSON types, as `accelerate` takes it."""
        return self.candidate.as_dict()


@dataclass(frozen=True)
class Rival:
    """The baseline pipeline with fewer steps."""

    steps: int
    speedup: Estimate
    score_loss: Estimate
    does_as_well: bool


@dataclass(frozen=True)
class Column:
    """Images of one candidate."""

    part: str
    """`baseline`, `winner`, `refused` or `rival`."""
    candidate: Candidate
    files: tuple[Path, ...]

    @property
    def steps(self) -> int:
        """Return the steps of a candidate that sets them, 0 of another."""
        return int(self.candidate.get("steps", {}).get("num_inference_steps", 0))


@dataclass(frozen=True)
class Pictures:
    """Images of several candidates, from the same prompts and noise."""

    prompts: tuple[Prompt, ...]
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Run:
    """One search."""

    origin: str
    """Its folder, file or storage."""
    record: RunRecord
    goal: Goal
    baseline: Measurement
    rows: tuple[Row, ...]
    """In the order in which they were first measured."""
    beside: Mapping[str, Measurement] = field(default_factory=dict)
    """Measurements that are no trials, by name."""
    rivals: tuple[Rival, ...] = ()
    winner: Row | None = None
    without: Mapping[str, Estimate] = field(default_factory=dict)
    """Target -> the winner's speedup without it, where that was timed."""
    is_confirmed: bool = False
    """Whether the search named the winner; if not, it is only the fastest within the bound."""
    pictures: Pictures | None = None

    @property
    def headline(self) -> Figures | None:
        """Return the winner's figures to quote: on held-out prompts, if there are any."""
        held = self.record.end and self.record.end.held_out
        row = self.winner
        if row is None or row.speedup is None or row.score_loss is None:
            return None
        return held or Figures(
            speedup=row.speedup.value,
            score_loss=row.score_loss.value,
            speedup_interval=interval_of(row.speedup),
            score_loss_interval=interval_of(row.score_loss),
            verdict=row.state,
            prompts=row.prompts,
            tail_loss=row.tail_loss,
            range_loss=row.range_loss,
        )

    @property
    def asked(self) -> Asked:
        """Return the options, as far as they are known."""
        return self.record.asked or Asked()

    @property
    def noise_floor(self) -> float:
        """Return the relative difference that two timings of the baseline may show by chance."""
        baseline = self.baseline
        noises = timing_noises(
            {extras.baseline(): baseline} | dict(self.beside),
            [row.measurement for row in self.rows],
        )
        pairs = max(1, len(baseline.baseline_seconds_per_image))
        return noises[baseline.batch_size].floor(pairs)

    @property
    def noise_note(self) -> NoiseNote | None:
        """Return what to say of the timing noise, by all trials; None where it is small."""
        pairs = max(1, len(self.baseline.baseline_seconds_per_image))
        measured = (self.baseline, *(row.measurement for row in self.rows if row.measurement))
        samples = [sample for part in measured for sample in part.health]
        return noise_note(self.noise_floor, pairs, samples)

    @property
    def varied(self) -> dict[tuple[str, str], list[Value]]:
        """Return each parameter, by accelerator and name, with its values if it has several."""
        values: dict[tuple[str, str], set[Value]] = {}
        for row in self.rows:
            for name, params in row.candidate.items():
                for key, value in params.items():
                    values.setdefault((name, key), set()).add(value)
        return {parameter: sorted(seen) for parameter, seen in values.items() if len(seen) > 1}

    @property
    def targets(self) -> tuple[str, ...]:
        """Return the accelerators searched."""
        searched = sorted({name for row in self.rows for name in row.candidate})
        return self.asked.targets or tuple(searched)


def build(
    origin: str,
    record: RunRecord,
    bound: float,
    baselines: Mapping[int, Measurement],
    trials: Sequence[Trial | AssessedTrial],
    beside: Mapping[str, Measurement],
) -> Run:
    """Return a run; trials that are assessed already are not assessed again."""
    asked, end = record.asked or Asked(), record.end
    limit = bound if asked.req_score_loss is None else asked.req_score_loss
    goal = Goal(limit, asked.req_speedup, asked.min_psnr, asked.min_ssim, asked.max_tail_loss)
    known = [
        trial if isinstance(trial, AssessedTrial) else AssessedTrial(trial, None)
        for trial in trials
    ]
    noises = timing_noises(
        {extras.baseline("search", size): own for size, own in baselines.items()} | dict(beside),
        [trial.trial.measurement for trial in known],
    )
    rows, assessed = [], []
    for trial in known:
        row, assessment = _row(trial, baselines, noises, goal)
        rows.append(row)
        assessed.append(AssessedTrial(trial.trial, assessment))
    rows = _with_front(rows)
    named = None if end is None else end.winner
    winner = None
    if named is not None:
        winner = next((row for row in rows if row.candidate == Candidate(named)), None)
    elif end is None:
        # No search has named one: the fastest of those that meet the goal.
        feasible = [
            row for row, trial in zip(rows, assessed, strict=True) if trial.is_feasible(goal)
        ]
        winner = max(feasible, key=lambda row: row.speedup.value, default=None)  # type: ignore[union-attr]
    size = list(baselines)[-1]
    if winner is not None and winner.measurement is not None:
        size = winner.measurement.batch_size
    baseline = baselines.get(size, next(iter(baselines.values())))
    return Run(
        origin=origin,
        record=record,
        goal=goal,
        baseline=baseline,
        rows=tuple(rows),
        beside=beside,
        rivals=_rivals(end, beside, baseline, noises, goal),
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
        message = f"{trial.failure.kind}: {trial.failure.message}"
        return Row(trial.candidate, "failed", None, None, 0, None, message, seconds=seconds), None
    size = measured.batch_size
    baseline, noise = baselines.get(size), noises[size]
    if baseline is None:
        message = f"no baseline was measured at its batch size, {size}"
        row = Row(trial.candidate, "failed", None, None, 0, measured, message, seconds=seconds)
        return row, None
    if not measured.scores or not baseline.scores:
        timed = speedup(measured, noise)
        return Row(trial.candidate, "timed", timed, None, 0, measured, None, seconds=seconds), None
    assessment = known.assessment or assess(measured, baseline, goal.max_score_loss, noise)
    is_dropped = not assessment.is_complete and assessment.verdict is Verdict.FAIL
    row = Row(
        trial.candidate,
        "dropped" if is_dropped else verdict(assessment),
        assessment.speedup,
        assessment.score_loss,
        assessment.prompts,
        measured,
        None,
        seconds=seconds,
        tail_loss=assessment.tail_loss,
        range_loss=assessment.range_loss,
    )
    return row, assessment


def _with_front(rows: Sequence[Row]) -> list[Row]:
    """Mark the rows that no other beats in both speed and loss."""
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
    end: End | None,
    beside: Mapping[str, Measurement],
    baseline: Measurement,
    noises: Mapping[int, TimingNoise],
    goal: Goal,
) -> tuple[Rival, ...]:
    as_well = {} if end is None else {steps.steps: steps.does_as_well for steps in end.rivals}
    rivals = []
    for name, measured in beside.items():
        kind, text = extras.parse(name)
        of_size = measured.batch_size == baseline.batch_size
        if kind != extras.Kind.STEPS or not of_size or not baseline.scores or not text.isdecimal():
            continue
        known = assess(measured, baseline, goal.max_score_loss, noises[measured.batch_size])
        count = int(text)
        rivals.append(Rival(count, known.speedup, known.score_loss, as_well.get(count, False)))
    return tuple(sorted(rivals, key=lambda rival: rival.steps))


def _without(
    winner: Candidate, beside: Mapping[str, Measurement], noises: Mapping[int, TimingNoise]
) -> dict[str, Estimate]:
    timed = {name: beside.get(extras.without(winner.without(name))) for name in winner}
    return {
        name: speedup(measured, noises[measured.batch_size])
        for name, measured in timed.items()
        if measured is not None
    }
