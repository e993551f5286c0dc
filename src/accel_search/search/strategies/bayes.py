"""Optuna's samplers, as a familiar alternative to `guided`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from accel_search.core.assessment import AssessedTrial, Assessment
from accel_search.core.candidate import Candidate
from accel_search.search.strategies.base import History, Proposal, Strategy, Task

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial as Asked

TRIES = 20
"""Suggestions of measured points after which the first unmeasured one is taken."""


class Bayes(Strategy):
    """Let Optuna maximise the speedup with the bounds as constraints, stopping early.

    Parameters are suggested by their place among their values, from mild to harsh. A suggestion
    that coincides with a measured candidate is answered from its trial, and the sampler is asked
    again. A suggestion that a replayed file lacks is replaced by the nearest one in the file.

    Source:
        Optuna 5: `TPESampler` (Watanabe, "Tree-structured Parzen estimator", 2023) and `GPSampler`,
        with `Trial.set_constraint`.
    """

    name = "bayes"
    samplers = ("tpe", "gp")

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._added = 0
        self._open: tuple[Asked | None, Candidate] | None = None

    def ask(self, history: History) -> Proposal | None:
        """Return the next stage of the current candidate, or the sampler's next new suggestion."""
        if race := self.race(history):
            return race
        with _quiet():
            self._add_new_trials(history)
            if len(history.trials) >= len(self.space):
                return None
            if self._open is None:
                self._open = self._suggest(history)
        return None if self._open is None else self.raced(self._open[1])

    @cached_property
    def _study(self) -> Study:
        import optuna

        seed = self.task.seed
        if self.task.sampler == "gp":
            sampler: Any = optuna.samplers.GPSampler(seed=seed, deterministic_objective=True)
        else:
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        return optuna.create_study(direction="maximize", sampler=sampler)

    @cached_property
    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import IntDistribution

        return {
            f"{axis.accelerator.name}.{parameter.name}": IntDistribution(0, len(values) - 1)
            for axis in self.space.axes
            for parameter, values in zip(axis.parameters, axis.values, strict=True)
        }

    def _add_new_trials(self, history: History) -> None:
        """Add what was measured since the last call to the study."""
        import optuna

        for assessed in history.trials[self._added :]:
            if self._open is not None and self._open[1] == assessed.trial.candidate:
                if self._open[0] is not None:
                    self._answer(self._open[0], assessed)
                self._open = None
                continue
            params = self._params(assessed.trial.candidate)
            if params is None:
                continue
            assessment, states = assessed.assessment, optuna.trial.TrialState
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=states.FAIL if assessment is None else states.COMPLETE,
                    value=None if assessment is None else assessment.speedup.value,
                    params=params,
                    distributions=self._distributions,
                    constraints=None if assessment is None else self._broken(assessment),
                )
            )
        self._added = len(history.trials)

    def _suggest(self, history: History) -> tuple[Asked | None, Candidate] | None:
        known = {
            self.space.position(assessed.trial.candidate): assessed for assessed in history.trials
        }
        for _ in range(TRIES):
            asked = self._study.ask(self._distributions)
            position = self.space.position(self._candidate(asked.params))
            if position is not None and position not in known:
                return asked, self.space.candidate_at(position)
            self._answer(asked, known.get(position))
            if position is None and self.space.is_part:
                order = self.space.by_distance(self._candidate(asked.params))
                nearest = next(nearby for nearby in order if nearby not in known)
                return None, self.space.candidate_at(nearest)
            # Else the point is the baseline or impossible.
        candidate = self.first_unmeasured(range(len(self.space)), history)
        return None if candidate is None else (None, candidate)

    def _answer(self, asked: Asked, assessed: AssessedTrial | None) -> None:
        import optuna

        if assessed is None or assessed.assessment is None:
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
            return
        for name, broken in self._broken(assessed.assessment).items():
            asked.set_constraint(name, broken)
        self._study.tell(asked, assessed.assessment.speedup.value)

    def _broken(self, assessment: Assessment) -> dict[str, float]:
        """Return by how much each bound is broken; 0 or less is within."""
        goal = self.task.goal
        broken = {"score_loss": assessment.score_loss.value - goal.max_score_loss}
        if goal.min_psnr is not None:
            broken["psnr"] = goal.min_psnr - (assessment.psnr or 0.0)
        if goal.min_ssim is not None:
            broken["ssim"] = goal.min_ssim - (assessment.ssim or 0.0)
        if goal.max_tail_loss is not None:
            broken["tail_loss"] = (assessment.tail_loss or 0.0) - goal.max_tail_loss
        return broken

    def _candidate(self, places: dict[str, Any]) -> Candidate:
        return Candidate(
            {
                axis.accelerator.name: {
                    parameter.name: values[places[f"{axis.accelerator.name}.{parameter.name}"]]
                    for parameter, values in zip(axis.parameters, axis.values, strict=True)
                }
                for axis in self.space.axes
            }
        )

    def _params(self, candidate: Candidate) -> dict[str, int] | None:
        """Return a candidate's places; None where it is not a point of the space."""
        try:
            return {
                f"{axis.accelerator.name}.{parameter.name}": values.index(
                    candidate[axis.accelerator.name][parameter.name]
                )
                for axis in self.space.axes
                for parameter, values in zip(axis.parameters, axis.values, strict=True)
            }
        except (KeyError, ValueError):
            return None


@contextmanager
def _quiet() -> Iterator[None]:
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
