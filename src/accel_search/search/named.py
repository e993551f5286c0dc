"""Measure the settings that a user names, and no others: no strategy, no early stopping."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from accel_search.accelerators import get
from accel_search.accelerators.computation import candidate_signature, effective_workload
from accel_search.core import extras
from accel_search.core.assessment import AssessedTrial, assess
from accel_search.core.candidate import Candidate, Value
from accel_search.core.named import Named, NamedOutcome, compare, fastest_passing
from accel_search.core.outcome import Outcome
from accel_search.core.timing_noise import TimingNoise, timing_noises
from accel_search.core.trial import Goal, Measurement, Trial
from accel_search.core.workload import SpaceSummary, Workload
from accel_search.errors import ConfigurationError
from accel_search.search.evaluator import Evaluator
from accel_search.search.events import Observer
from accel_search.search.stored_evaluator import StoredEvaluator
from accel_search.storage.trials_db import TrialStore

STOPPED = "every named candidate was measured"


class NamedSpace:
    """The named candidates, those that are the same computation as one.

    Args:
        candidates: In the order in which they were named.
        workload: Decides which coincide; None where it is unknown, and then none do.

    Raises:
        ConfigurationError: One changes nothing on this workload, or is not possible on it.
    """

    def __init__(self, candidates: Sequence[Candidate], workload: Workload | None) -> None:
        self.targets = tuple(sorted({name for candidate in candidates for name in candidate}))
        self.workload = workload
        self._groups: dict[Hashable, list[Candidate]] = {}
        for candidate in dict.fromkeys(candidates):
            self._check(candidate)
            self._groups.setdefault(self.key(candidate), []).append(candidate)

    def __len__(self) -> int:
        """Return the number of distinct computations."""
        return len(self._groups)

    @property
    def distinct(self) -> list[list[Candidate]]:
        """Return the candidates, those that are the same computation together."""
        return list(self._groups.values())

    def key(self, candidate: Candidate) -> Hashable:
        """Return what candidates that are the same computation have in common."""
        if self.workload is None:
            return candidate
        return candidate_signature(candidate, self.workload)

    def coinciding(self, candidate: Candidate) -> list[Candidate]:
        """Return every named candidate that is the same computation."""
        return self._groups.get(self.key(candidate), [])

    def summary(self) -> SpaceSummary:
        """Return what a run record stores of a space."""
        values: dict[str, dict[str, list[Value]]] = {}
        for candidate in (one for group in self.distinct for one in group):
            for name, params in candidate.items():
                for key, value in params.items():
                    known = values.setdefault(name, {}).setdefault(key, [])
                    known += [value] if value not in known else []
        count = sum(len(group) for group in self.distinct)
        return SpaceSummary(self.targets, values, count, len(self))

    def _check(self, candidate: Candidate) -> None:
        if self.workload is None:
            return
        for name, params in candidate.items():
            accelerator = get(name)
            load = effective_workload(candidate.without(name), self.workload)
            for parameter in accelerator.parameters:
                value = params[parameter.name]
                if not accelerator.allowed(parameter, value, load):
                    raise ConfigurationError(
                        f"--candidate {candidate}: {name} cannot have {parameter.name} {value} at "
                        f"{load.steps} steps; use more --steps or another value"
                    )
        if self.key(candidate) is None:
            raise ConfigurationError(
                f"--candidate {candidate}: changes nothing on this pipeline, size and number of "
                "steps: it is the baseline; leave it out"
            )


@dataclass(frozen=True)
class NamedRun:
    """Measures each named candidate on all prompts, beside the baseline."""

    evaluator: Evaluator
    measuring: StoredEvaluator
    space: NamedSpace
    store: TrialStore
    goal: Goal
    observer: Observer

    def run(self) -> NamedOutcome:
        """Measure what is not stored, and judge and compare all.

        Raises:
            AccelSearchError: As `Search.run`; a failure of a candidate alone is a verdict.
        """
        measuring, observer = self.measuring, self.observer
        observer.on_baseline(measuring.baseline())
        measuring.reload()
        stored = self._stored()
        if stored:
            noises = self._noises(list(stored.values()))
            observer.on_resume([self._assessed(trial, noises) for trial in stored.values()])
        measuring.check_after_hang()
        trials: list[Trial] = []
        for first, *_ in self.space.distinct:
            trial = stored.get(self.space.key(first)) or self._measured(first, trials)
            # Another name of the same computation may have been stored.
            trials.append(Trial(first, trial.measurement, trial.failure))
        measuring.check()
        return self._outcome(trials, len(stored))

    def _stored(self) -> dict[Hashable, Trial]:
        """Return the trials of an earlier run, by what they compute."""
        wanted = {self.space.key(first) for first, *_ in self.space.distinct}
        known = {self.space.key(trial.candidate): trial for trial in self.store.trials()}
        return {key: trial for key, trial in known.items() if key in wanted}

    def _measured(self, candidate: Candidate, before: Sequence[Trial]) -> Trial:
        self.observer.on_start(candidate)
        trial = self.measuring.trial(candidate, range(self.evaluator.prompt_count))
        assessed = self._assessed(trial, self._noises([*before, trial]))
        self.store.add(trial, assessed.assessment, self.goal.max_score_loss)
        self.observer.on_trial(assessed)
        if trial.failure is not None:
            # If it broke the pipeline, the next candidate must not be blamed for it.
            self.measuring.check()
        return trial

    def _noises(self, trials: Sequence[Trial]) -> dict[int, TimingNoise]:
        return timing_noises(self.measuring.extras, [trial.measurement for trial in trials])

    def _assessed(self, trial: Trial, noises: Mapping[int, TimingNoise]) -> AssessedTrial:
        measured = trial.measurement
        if measured is None:
            return AssessedTrial(trial, None)
        noise = noises.get(measured.batch_size)
        bound = self.goal.max_score_loss
        return AssessedTrial(trial, assess(measured, self._beside(measured), bound, noise))

    def _beside(self, measured: Measurement) -> Measurement:
        return self.measuring.baseline("search", measured)

    def _outcome(self, trials: Sequence[Trial], resumed: int) -> NamedOutcome:
        for trial in trials:
            if trial.measurement is not None:  # Its baseline's pairs count for the noise, too.
                self._beside(trial.measurement)
        noises = self._noises(trials)
        named = tuple(
            Named(self._assessed(trial, noises), self.goal, tuple(others))
            for trial, (_, *others) in zip(trials, self.space.distinct, strict=True)
        )
        compared = []
        for one in named[1:]:
            measured = one.assessed.trial.measurement
            if measured is not None:
                compared.append(compare(one, named[0], self._beside(measured)))
        winner = fastest_passing(named)
        beside = None if winner is None else winner.trial.measurement
        outcome = Outcome(
            baseline=self.measuring.baseline(beside=beside),
            winner=winner,
            held_out=None,
            rivals=(),
            trials=tuple(one.assessed for one in named),
            resumed=resumed,
            refuted={},
            stopped=STOPPED,
            settled=True,
            could_win=0,
            seconds=sum(trial.seconds for trial in trials)
            + sum(
                measured.seconds
                for name, measured in self.measuring.extras.items()
                if extras.is_baseline(name)
            ),
        )
        return NamedOutcome(outcome, named, tuple(one for one in compared if one is not None))
