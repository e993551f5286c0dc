"""Search by a latency and a quality model, without measuring the whole grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from accel_search.core.assessment import AssessedTrial
from accel_search.core.candidate import Candidate
from accel_search.core.early_stopping import stages
from accel_search.core.intervals import CONFIDENCE
from accel_search.core.trial import Measurement
from accel_search.core.validation import worth_of
from accel_search.search.step_plans import StepPlans, plans_in
from accel_search.search.strategies.base import History, Proposal, Strategy, Task
from accel_search.search.strategies.latency_model import (
    LatencyModel,
    expected_gain,
    noise_of,
    noise_of_look,
    runs_of,
)
from accel_search.search.strategies.quality_model import (
    LEAST_ROOM,
    QualityModel,
    Used,
    bounds_of,
    inputs,
    scored,
)

Array = NDArray[np.float64]

CALIBRATION_RUNS = 12
"""Most runs for the latency model alone."""
CALIBRATION_SHARE = 0.35
"""Their largest share of a small space."""
SPEED_SD = 0.02
"""Error of predicted speeds at which calibration ends, unless timing is noisier than that."""
LEAST_GAIN = 0.005
"""Expected further gain of speed, as a fraction, below which a candidate is not worth a trial."""
SAME_SPEED = 0.005
"""Relative difference of speeds that counts as none: timing a few calls cannot resolve it."""
LEAST_CHANCE = 0.01
"""Probability of meeting a requirement below which a candidate is not worth a trial."""
SHORT_RACE = 0.3
"""Approximate share of the prompts at which a bad candidate is stopped."""
FIXED_COST = 0.05
"""Cost of a stage beside its images, in units of a baseline on all prompts."""
SURE = 0.95
"""Probability that counts as certain."""
OPTIMISTIC = float(stats.norm.ppf(SURE))
"""Standard deviations up to the optimistic end of a predicted speed."""


@dataclass(frozen=True)
class Standing:
    """Predictions for every candidate; each array is `[N]`."""

    log_speedup: Array
    """Expected logarithm of the speedup."""
    sd: Array
    """Standard deviation of its error."""
    within: Array
    """Probability of being within the bounds."""
    is_open: NDArray[np.bool_]
    """Candidates that may still be asked for."""
    prompts: NDArray[np.int64]
    """Prompts scored on."""
    best: float
    """Expected logarithm of the winner's speedup, were the search to end now."""


class Guided(Strategy):
    """Measure the candidate with the largest expected gain of speed for the time it takes.

    A few short, informative runs calibrate the latency model, and their scores the quality model.
    Then the candidate with the largest expected gain per second goes to its next stage: gain by the
    latency model × probability of being within the bounds by the quality model. Both learn from
    every stage. The search ends when no candidate is expected to gain more than `LEAST_GAIN`: those
    left are slower even at the optimistic end, or lose too much.

    Source:
        Expected improvement under a constraint that is learnt too: Gardner et al., "Bayesian
        optimization with inequality constraints" (2014); per unit of cost: Snoek et al., "Practical
        Bayesian optimization of machine learning algorithms" (2012), section 3.2.
    """

    name = "guided"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._known: dict[Candidate, int | None] = {}
        self._latest: tuple[History, Standing] | None = None

    def ask(self, history: History) -> Proposal | None:
        """Return the next stage of the candidate that is worth most, None if none is worth it."""
        if not len(self.space):
            return None
        standing = self._standing(history)
        if (position := self._calibration(history, standing)) is not None:
            return self.raced(self.space.candidate_at(position))
        return self._best_look(standing, self._is_worthy(standing))

    def finish(self, history: History) -> Proposal | None:
        """Return the next stage of the started candidate that is worth most."""
        if not len(self.space):
            return None
        standing = self._standing(history)
        return self._best_look(standing, self._is_worthy(standing) & (standing.prompts > 0))

    def _best_look(self, standing: Standing, worthy: NDArray[np.bool_]) -> Proposal | None:
        if not worthy.any():
            return None
        worth = np.where(worthy, self._gain(standing) / self._cost(standing), -1.0)
        position = int(np.argmax(worth))
        candidate = self.space.candidate_at(position)
        if standing.within[position] >= SURE:
            return Proposal(candidate, self.task.prompts)
        # The first stage is for calibration; it decides little.
        ends = stages(self.task.prompts, self.task.chunk)
        least = ends[0] if len(ends) > 1 else 0
        return self.raced(candidate, max(int(standing.prompts[position]), least))

    def speedup_of(self, assessed: AssessedTrial, history: History) -> float:
        """Return the speedup by the latency model and the candidate's own timings together.

        The own timings alone would prefer the luckiest of many nearly equal candidates.
        """
        position = self._position(assessed.trial.candidate)
        if position is None or assessed.assessment is None:
            return 0.0
        return math.exp(float(self._standing(history).log_speedup[position]))

    def why_done(self, history: History) -> str:
        """Return why no candidate is left that is worth a trial."""
        if not len(self.space):
            return super().why_done(history)
        standing = self._standing(history)
        left = standing.is_open & (standing.prompts == 0)
        slow = left & self._is_too_slow(standing)
        lossy = left & ~slow & (standing.within < 1 - SURE)
        others = int((left & ~slow & ~lossy).sum())
        if not left.any():
            return super().why_done(history)
        parts = [
            f"{int(slow.sum()):,} are too slow even at the optimistic end of the prediction",
            f"{int(lossy.sum()):,} lose too much with a probability over {100 * SURE:.0f} %",
            f"{others:,} would gain too little to be worth a trial",
        ]
        counted = [part for part in parts if not part.startswith("0 ")]
        return f"of the {int(left.sum()):,} candidates not measured, " + ", ".join(counted)

    def could_win(self, history: History) -> int:
        """Return how many candidates are still worth a trial."""
        if not len(self.space):
            return 0
        return int(self._is_worthy(self._standing(history)).sum())

    @cached_property
    def _plans(self) -> StepPlans:
        return plans_in(self.space)

    @cached_property
    def _latency(self) -> LatencyModel:
        return LatencyModel(self._plans)

    @cached_property
    def _bounds(self) -> list[tuple[QualityModel, Used]]:
        points = inputs(self.space.coordinates(), self._plans)
        return [(QualityModel(points), used) for used in bounds_of(self.task.goal)]

    @property
    def _room(self) -> float:
        """Loss of score that counts as 1."""
        return max(self.task.goal.max_score_loss, LEAST_ROOM)

    def _position(self, candidate: Candidate) -> int | None:
        if candidate not in self._known:
            self._known[candidate] = self.space.position(candidate)
        return self._known[candidate]

    def _standing(self, history: History) -> Standing:
        # A tuple: a caller may go on with its list.
        state = replace(history, trials=tuple(history.trials))
        if self._latest is None or self._latest[0] != state:
            self._latest = state, self._judge(history)
        return self._latest[1]

    def _judge(self, history: History) -> Standing:
        """Fit both models to the history and predict every candidate."""
        located = [
            (position, assessed)
            for assessed in history.trials
            if (position := self._position(assessed.trial.candidate)) is not None
        ]
        measured = [
            (position, assessed.trial.measurement)
            for position, assessed in located
            if assessed.trial.measurement is not None
        ]
        log_speedup, sd = self._latency.speeds(runs_of(measured, self._noise(history)))
        within = np.ones(len(self.space))
        for place, (model, used) in enumerate(self._bounds):
            known = scored(measured, history.baseline, used)
            # The score is the first bound; the others have no outlook.
            shift, error = (0.0, 0.0) if place else (history.shift, history.error)
            within *= model.within(known, shift / self._room, error / self._room)
        is_open = np.ones(len(self.space), dtype=bool)
        prompts = np.zeros(len(self.space), dtype=np.int64)
        meeting: list[tuple[float, float]] = []
        for position, assessed in located:
            is_open[position] = assessed.is_open
            if assessed.assessment is None:
                continue
            prompts[position] = assessed.assessment.prompts
            log_chance = history.log_chances.get(assessed.trial.candidate)
            if log_chance is not None:
                meeting.append((float(log_speedup[position]), log_chance))
        best = worth_of(meeting, self._least_gain(history))
        return Standing(log_speedup, sd, within, is_open, prompts, best)

    def _least_gain(self, history: History) -> float:
        """Return the logarithm of the least speedup that will count as a gain.

        It uses a spread that a few disturbed calls do not move. With the noise floor of an
        assessment, one disturbed baseline could make every candidate seem not worth a trial.
        """
        timed = [history.baseline, *(assessed.trial.measurement for assessed in history.trials)]
        pairs = max(
            len(measurement.baseline_seconds_per_image)
            for measurement in timed
            if measurement is not None
        )
        z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
        by_pairs = self._noise(history) / math.sqrt(max(pairs, 1))
        return z * min(by_pairs, self._noise_of_look(history))

    def _noise(self, history: History) -> float:
        """Return the standard deviation of the log ratio of one pair of calls."""
        return noise_of(history.baseline, _measured(history))

    def _noise_of_look(self, history: History) -> float:
        return noise_of_look(_measured(history), self._noise(history))

    def _calibration(self, history: History, standing: Standing) -> int | None:
        """Return the next run for the latency model, None if it is accurate enough."""
        size = len(self.space)
        runs = sum(assessed.assessment is not None for assessed in history.trials)
        if runs >= min(CALIBRATION_RUNS, math.ceil(CALIBRATION_SHARE * size)):
            return None
        fresh = np.flatnonzero(standing.is_open & (standing.prompts == 0))
        noise = self._noise_of_look(history)
        enough = max(SPEED_SD, noise / 2, 1.5 * self._latency.misfit)
        if not len(fresh) or (runs and np.quantile(standing.sd, 0.9) <= enough):
            return None
        return self._latency.most_informative(fresh, noise, np.arange(size))

    def _is_worthy(self, standing: Standing) -> NDArray[np.bool_]:
        least = LEAST_GAIN if self.task.goal.min_speedup is None else LEAST_CHANCE
        return np.asarray(standing.is_open & (self._gain(standing) >= least))

    def _gain(self, standing: Standing) -> Array:
        """Return what each candidate is worth, `[N]`.

        Without a required speedup, the expected gain over the best one in logarithms, less
        `SAME_SPEED`; with one, the probability of meeting it.
        """
        required = self.task.goal.min_speedup
        if required is not None:
            ahead = (standing.log_speedup - math.log(required)) / standing.sd
            return np.asarray(standing.within * stats.norm.cdf(ahead))
        beaten = standing.best + SAME_SPEED
        return standing.within * expected_gain(standing.log_speedup, standing.sd, beaten)

    def _cost(self, standing: Standing) -> Array:
        """Return the cost of deciding on each candidate, in units of a baseline on all prompts."""
        left = 1 - standing.prompts / self.task.prompts
        lost = np.minimum(np.maximum(SHORT_RACE - (1 - left), SHORT_RACE / 4), left)
        share = standing.within * left + (1 - standing.within) * lost
        return np.asarray(share * np.exp(-standing.log_speedup) + FIXED_COST)

    def _is_too_slow(self, standing: Standing) -> NDArray[np.bool_]:
        required = self.task.goal.min_speedup
        least = standing.best if required is None else math.log(required)
        return np.asarray(standing.log_speedup + OPTIMISTIC * standing.sd <= least)


def _measured(history: History) -> list[Measurement]:
    measured = [assessed.trial.measurement for assessed in history.trials]
    return [measurement for measurement in measured if measurement is not None]
