"""The loop: a strategy proposes, an evaluator measures, a store keeps, a winner is confirmed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from accel_search.errors import ConfigurationError, TrialFailure
from accel_search.records import Candidate, Failure, Measurement, Provenance, Trial, Workload
from accel_search.statistics import Assessment, assess, is_feasible, score_loss
from accel_search.store import TrialStore
from accel_search.strategies.base import Strategy

Split = Literal["search", "held_out"]
"""Part of the prompts: those the search scores on, or those only the winner sees."""

MAX_CONFIRMATIONS = 5
"""Candidates tried on held-out prompts before the search gives up."""


class Evaluator(Protocol):
    """Measures candidates: a real pipeline, or a file of recorded trials."""

    workload: Workload

    @property
    def provenance(self) -> Provenance | None:
        """Return where and with what it measures; None where that was not recorded."""

    def baseline(self, split: Split = "search") -> Measurement:
        """Measure the bare pipeline, timed against itself."""

    def measure(
        self, candidate: Candidate, split: Split = "search", steps: int | None = None
    ) -> Measurement:
        """Measure a candidate beside the baseline; `steps` is for the bare pipeline alone.

        A batch that does not fit the device is halved for good, and `workload` with it; the
        measurement then belongs to the baseline of its own batch size, in `baselines`.

        Raises:
            TrialFailure: This candidate cannot be measured; others can.
        """

    @property
    def baselines(self) -> Mapping[Split, Measurement]:
        """Return the latest baseline that was measured of each part."""

    def check(self) -> None:
        """Check that the pipeline is what it was before the first candidate.

        Raises:
            ContaminationError: It is not.
        """


class Observer(Protocol):
    """Is told what happens, as it happens."""

    def on_baseline(self, baseline: Measurement) -> None:
        """Tell that the baseline is measured, or was recalled."""

    def on_resume(self, history: Sequence[AssessedTrial]) -> None:
        """Tell of the trials that an earlier run stored."""

    def on_start(self, candidate: Candidate) -> None:
        """Tell that a candidate is about to be measured."""

    def on_trial(self, assessed: AssessedTrial) -> None:
        """Tell that a trial is finished and stored."""

    def on_confirm(self, assessed: AssessedTrial, held_out: Assessment | None, ok: bool) -> None:
        """Tell how a candidate did on held-out prompts; None where it failed there."""

    def on_rival(self, rival: Rival) -> None:
        """Tell what the bare pipeline does with fewer steps."""


@dataclass(frozen=True)
class Budget:
    """When to stop before the space is exhausted; None is no limit."""

    max_trials: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Goal:
    """What is looked for."""

    max_score_loss: float
    """Largest loss of score allowed, a fraction."""
    min_speedup: float | None = None
    """Requirement mode: stop at the first candidate this fast. None: find the fastest."""


@dataclass(frozen=True)
class AssessedTrial:
    """A trial, and what follows from its samples; None for a failed one."""

    trial: Trial
    assessment: Assessment | None


@dataclass(frozen=True)
class Rival:
    """The bare pipeline with fewer steps."""

    steps: int
    measurement: Measurement
    assessment: Assessment

    def rivals(self, winner: AssessedTrial) -> bool:
        """Tell whether it does as well as the winner, as far as these prompts can tell.

        It must be as fast, noise apart, and its scores must not be shown to be lower than the
        winner's, prompt by prompt.
        """
        assert winner.assessment is not None and winner.trial.measurement is not None
        least = winner.assessment.speedup.value / (1 + winner.assessment.noise_floor)
        if self.assessment.speedup.value < least:
            return False
        return score_loss(winner.trial.measurement.scores, self.measurement.scores).low <= 0


@dataclass(frozen=True)
class Outcome:
    """What a search found."""

    baseline: Measurement
    winner: AssessedTrial | None
    held_out: Assessment | None
    """The winner on prompts that the search never saw; None if there were none."""
    rivals: tuple[Rival, ...]
    trials: tuple[AssessedTrial, ...]
    resumed: int
    """Trials that an earlier run had measured."""
    refuted: tuple[Candidate, ...]
    """Faster candidates that failed on held-out prompts."""
    stopped: str
    """Why no further candidate was measured."""
    exhausted: bool
    """Whether every distinct candidate was measured, so that the winner is the upper bound."""
    seconds: float
    """Seconds measured, over every run of this study."""


class Search:
    """One search over one study.

    Args:
        evaluator: Measures.
        strategy: Proposes.
        store: Keeps; what it already holds is not measured again.
        goal: What is looked for.
        budget: When to stop early.
        observer: Is told what happens.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        strategy: Strategy,
        store: TrialStore,
        goal: Goal,
        budget: Budget,
        observer: Observer,
    ) -> None:
        self._evaluator = evaluator
        self._strategy = strategy
        self._store = store
        self._goal = goal
        self._budget = budget
        self._observer = observer
        self._spent = 0.0
        self._refuted: list[Candidate] = []

    def run(self) -> Outcome:
        """Search until the goal, the end of the space or the budget, and confirm the winner.

        Raises:
            ConfigurationError: The bare pipeline makes no valid image.
            ContaminationError: An accelerator left the pipeline changed.
            OutOfMemoryError: The workload does not fit even at batch size 1.
        """
        baseline = self._baseline("search")
        self._observer.on_baseline(baseline)
        assessed = [self._assess(trial) for trial in self._store.trials()]
        resumed = len(assessed)
        if resumed:
            self._observer.on_resume(assessed)
        confirmed = None
        if self._goal.min_speedup is not None:
            confirmed = self._confirm_first(assessed)
        stopped = "the requirement was met"
        exhausted = False
        while confirmed is None:
            if over := self._over_budget(len(assessed)):
                stopped = over
                break
            candidate = self._strategy.ask([each.trial for each in assessed])
            if candidate is None:
                stopped, exhausted = "every distinct candidate was measured", True
                break
            self._observer.on_start(candidate)
            assessed.append(self._measure(candidate))
            if self._goal.min_speedup is not None:
                confirmed = self._confirm_first(assessed[-1:])
        if self._goal.min_speedup is None:
            confirmed = self._confirm_first(assessed)
        winner, held_out = confirmed or (None, None)
        rivals = () if winner is None else self._rivals(winner)
        self._evaluator.check()
        if winner is not None and winner.trial.measurement is not None:
            baseline = self._baseline_beside(winner.trial.measurement)
        beside = self._store.remembered().values()
        return Outcome(
            baseline=baseline,
            winner=winner,
            held_out=held_out,
            rivals=rivals,
            trials=tuple(assessed),
            resumed=resumed,
            refuted=tuple(self._refuted),
            stopped=stopped,
            exhausted=exhausted,
            seconds=sum(_seconds(each.trial) for each in assessed)
            + sum(measurement.seconds for measurement in beside),
        )

    def _baseline(self, split: Split) -> Measurement:
        """Return the baseline at the batch size in hand, measured once a study."""
        size = self._evaluator.workload.batch_size
        kept = self._store.recall(f"baseline:{split}:{size}")
        if kept is not None:
            return kept
        try:
            measured = self._evaluator.baseline(split)
        except TrialFailure as error:
            # Not one candidate's fault: without a baseline there is nothing to compare with.
            raise ConfigurationError(str(error)) from error
        return self._keep_baseline(split, measured)

    def _keep_baseline(self, split: Split, measured: Measurement) -> Measurement:
        self._spent += measured.seconds
        self._store.remember(f"baseline:{split}:{measured.batch_size}", measured)
        return measured

    def _baseline_beside(self, measurement: Measurement, split: Split = "search") -> Measurement:
        """Return the baseline at a measurement's own batch size: no ratio is of two sizes."""
        kept = self._store.recall(f"baseline:{split}:{measurement.batch_size}")
        if kept is None:
            latest = self._evaluator.baselines.get(split)
            if latest is None or latest.batch_size != measurement.batch_size:
                return self._baseline(split)
            kept = self._keep_baseline(split, latest)
        return kept

    def _assess(self, trial: Trial) -> AssessedTrial:
        measured = trial.measurement
        return AssessedTrial(trial, None if measured is None else self._assessment(measured))

    def _assessment(self, measured: Measurement, split: Split = "search") -> Assessment:
        return assess(measured, self._baseline_beside(measured, split), self._goal.max_score_loss)

    def _measure(self, candidate: Candidate) -> AssessedTrial:
        """Measure one candidate and store it, a failure as a record of its kind."""
        try:
            trial = Trial(candidate, self._evaluator.measure(candidate))
        except TrialFailure as error:
            trial = Trial(candidate, None, Failure(error.kind, str(error)[:1000], error.seconds))
        assessed = self._assess(trial)
        self._store.add(trial, assessed.assessment)
        self._spent += _seconds(trial)
        self._observer.on_trial(assessed)
        return assessed

    def _over_budget(self, trials: int) -> str | None:
        budget = self._budget
        if budget.max_trials is not None and trials >= budget.max_trials:
            return f"--max_trials {budget.max_trials} was reached"
        if budget.seconds is not None and self._spent >= budget.seconds:
            return f"--time_budget of {budget.seconds:.0f} s was spent"
        return None

    def _confirm_first(
        self, assessed: Sequence[AssessedTrial]
    ) -> tuple[AssessedTrial, Assessment | None] | None:
        """Return the fastest feasible trial that also holds on held-out prompts."""
        bound, least = self._goal.max_score_loss, self._goal.min_speedup
        feasible = [
            each
            for each in assessed
            if each.assessment
            and is_feasible(each.trial, each.assessment, bound)
            and (least is None or each.assessment.speedup.value >= least)
            and each.trial.candidate not in self._refuted
        ]
        feasible.sort(key=lambda each: -_speedup(each))
        for each in feasible[:MAX_CONFIRMATIONS]:
            try:
                held_out = self._held_out(each.trial.candidate)
            except TrialFailure:
                self._observer.on_confirm(each, None, False)
                self._refuted.append(each.trial.candidate)
                continue
            # Of many candidates that are no faster, some look so by chance; the second,
            # independent timing is what rules those out.
            holds = held_out is None or (
                held_out.is_gain
                and held_out.score_loss.value <= bound
                and (least is None or held_out.speedup.high >= least)
            )
            if held_out is not None:
                self._observer.on_confirm(each, held_out, holds)
            if holds:
                return each, held_out
            self._refuted.append(each.trial.candidate)
        return None

    def _held_out(self, candidate: Candidate) -> Assessment | None:
        """Assess a candidate on held-out prompts; None where there are none."""
        if not self._baseline("held_out").scores:
            return None
        measured = self._recall(
            f"held_out:{candidate}", lambda: self._evaluator.measure(candidate, "held_out")
        )
        return self._assessment(measured, "held_out")

    def _rivals(self, winner: AssessedTrial) -> tuple[Rival, ...]:
        """Measure the bare pipeline at the step count that should be as fast as the winner."""
        steps, target = self._evaluator.workload.steps, _speedup(winner)
        rivals: dict[int, Rival] = {}
        guess = math.floor(steps / target)
        # Time is fixed overhead plus so much a step; the first guess, which takes the overhead
        # for nothing, yields the second one, which does not.
        for _ in range(2):
            guess = min(max(guess, 1), steps - 1)
            if guess in rivals or guess < 1:
                break
            try:
                measured = self._recall(
                    f"steps:{guess}",
                    lambda: self._evaluator.measure(Candidate(), steps=guess),  # noqa: B023
                )
            except TrialFailure:
                break
            rivals[guess] = Rival(guess, measured, self._assessment(measured))
            self._observer.on_rival(rivals[guess])
            per_step = (1 - 1 / rivals[guess].assessment.speedup.value) / (steps - guess)
            if per_step <= 0:
                break
            guess = steps - math.ceil((1 - 1 / target) / per_step)
        return tuple(rivals[key] for key in sorted(rivals))

    def _recall(self, name: str, measure: Callable[[], Measurement]) -> Measurement:
        """Return what is stored under a name, or measure and store it."""
        kept = self._store.recall(name)
        if kept is None:
            kept = measure()
            self._spent += kept.seconds
            self._store.remember(name, kept)
        return kept


def _speedup(assessed: AssessedTrial) -> float:
    return assessed.assessment.speedup.value if assessed.assessment else 0.0


def _seconds(trial: Trial) -> float:
    if trial.measurement is not None:
        return trial.measurement.seconds
    return trial.failure.seconds if trial.failure else 0.0
