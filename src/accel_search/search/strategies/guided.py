"""Speed from a model, quality learnt where it matters: the answer without the grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from accel_search.core.assessment import AssessedTrial
from accel_search.core.candidate import Candidate
from accel_search.core.early_stopping import rungs
from accel_search.core.intervals import CONFIDENCE
from accel_search.search.step_plans import StepPlans, plans_in
from accel_search.search.strategies.base import History, Proposal, Strategy, Task
from accel_search.search.strategies.latency_model import (
    LatencyModel,
    expected_gain,
    noise_of,
    run_of,
)
from accel_search.search.strategies.quality_model import (
    QualityModel,
    Used,
    bounds_of,
    inputs,
    scored,
)

Array = NDArray[np.float64]

CALIBRATION_RUNS = 12
"""Most runs that serve the latency model alone."""
CALIBRATION_SHARE = 0.35
"""Most of a small space that they may be of it."""
SPEED_SD = 0.02
"""Error of predicted speeds at which calibration ends, unless timing is noisier than that."""
LEAST_GAIN = 0.0001
"""Expected further gain of speed, as a fraction, below which a candidate is not worth a trial."""
SAME_SPEED = 0.005
"""Relative difference of speeds that is no gain: the timing of a few calls cannot tell it."""
LEAST_CHANCE = 0.01
"""Probability of meeting a requirement below which a candidate is not worth a trial."""
SHORT_RACE = 0.3
"""Share of its prompts at which a race that is lost ends, about."""
FIXED_COST = 0.05
"""What a look costs beside its images, in units of a baseline on all prompts."""
SURE = 0.95
"""Probability at which something is taken for granted."""
OPTIMISTIC = float(stats.norm.ppf(SURE))
"""Standard deviations up to the optimistic end of a predicted speed."""


@dataclass(frozen=True)
class Standing:
    """What is known of every candidate; each array is `[N]`."""

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
    """Logarithm of the speedup of the fastest candidate found within the bounds; without one, that
    of the least speedup that counts as a gain."""


class Guided(Strategy):
    """Measure where the most further speed is to be expected for the time it takes.

    A few short runs, chosen to tell most, calibrate the latency model; the same runs' scores begin
    the quality model. Then the candidate with the greatest expected gain over the best found, per
    second, is raced: gain by the latency model × probability of being within the bounds by the
    quality model. Both learn from every look. It ends when no candidate is expected to gain more
    than `LEAST_GAIN`: those left are slower even at the optimistic end, or lose too much.

    Source:
        Expected improvement under a constraint that is learnt too: Gardner et al., "Bayesian
        optimization with inequality constraints" (2014); per unit of cost: Snoek et al., "Practical
        Bayesian optimization of machine learning algorithms" (2012), section 3.2.
    """

    name = "guided"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._known: dict[Candidate, int | None] = {}
        self._latest: tuple[tuple[int, int, int], Standing] | None = None

    def ask(self, history: History) -> Proposal | None:
        """Return the next look at the candidate that is worth most, None if none is worth it."""
        if not len(self.space):
            return None
        standing = self._standing(history)
        if (position := self._calibration(history, standing)) is not None:
            return self.raced(self.space.candidate_at(position))
        return self._best_look(standing, self._is_worthy(standing))

    def finish(self, history: History) -> Proposal | None:
        """Return the next look at the candidate that is worth most of those that are begun."""
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
        # The first look is for calibration; it decides next to nothing.
        looks = rungs(self.task.prompts, self.task.chunk)
        least = looks[0] if len(looks) > 1 else 0
        return self.raced(candidate, max(int(standing.prompts[position]), least))

    def speedup_of(self, each: AssessedTrial, history: History) -> float:
        """Return the speedup by the latency model and the candidate's own timings together.

        Of many that are nearly equal, the one whose few timings are the best was lucky.
        """
        position = self._position(each.trial.candidate)
        if position is None or each.assessment is None:
            return 0.0
        return math.exp(float(self._standing(history).log_speedup[position]))

    def why_done(self, history: History) -> str:
        """Say why no candidate is left that is worth a trial."""
        if not len(self.space):
            return super().why_done(history)
        standing = self._standing(history)
        left = standing.is_open & (standing.prompts == 0)
        slow = left & self._is_too_slow(standing)
        lossy = left & ~slow & (standing.within < 1 - SURE)
        others = int((left & ~slow & ~lossy).sum())
        if not left.any():
            return "every distinct candidate was measured"
        parts = [
            f"{int(slow.sum()):,} are too slow even at the optimistic end of the prediction",
            f"{int(lossy.sum()):,} lose too much with over {SURE:.0%} probability",
            f"{others:,} promise too little to be worth a trial",
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

    def _position(self, candidate: Candidate) -> int | None:
        if candidate not in self._known:
            self._known[candidate] = self.space.position(candidate)
        return self._known[candidate]

    def _standing(self, history: History) -> Standing:
        looks = sum(each.assessment.prompts for each in history.trials if each.assessment)
        state = (len(history.trials), looks, len(history.refuted))
        if self._latest is None or self._latest[0] != state:
            self._latest = state, self._judge(history)
        return self._latest[1]

    def _judge(self, history: History) -> Standing:
        """Fit both models to the history and say what they make of every candidate."""
        located = [
            (position, each)
            for each in history.trials
            if (position := self._position(each.trial.candidate)) is not None
        ]
        measured = [
            (position, each.trial.measurement)
            for position, each in located
            if each.trial.measurement is not None
        ]
        noise = self._noise(history)
        runs = [run_of(position, each, noise) for position, each in measured]
        log_speedup, sd = self._latency.speeds(runs)
        within = np.ones(len(self.space))
        for model, used in self._bounds:
            within *= model.within(scored(measured, history.baseline, used))
        is_open = np.ones(len(self.space), dtype=bool)
        prompts = np.zeros(len(self.space), dtype=np.int64)
        best: list[float] = []
        for position, each in located:
            is_open[position] = each.is_open
            if each.assessment is None:
                continue
            prompts[position] = each.assessment.prompts
            refuted = each.trial.candidate in history.refuted
            if each.is_feasible(self.task.goal) and not refuted:
                best.append(float(log_speedup[position]))
        least = self._least_gain(history)
        return Standing(log_speedup, sd, within, is_open, prompts, max(best, default=least))

    def _least_gain(self, history: History) -> float:
        """Return the logarithm of the least speedup that will count as a gain.

        By the spread that a few disturbed calls do not move: an assessment's noise floor may be
        wide of one that hit the baseline, until there are pairs that contradict it, and none would
        be made where nothing is worth a trial.
        """
        timed = [history.baseline, *(each.trial.measurement for each in history.trials)]
        pairs = max(len(each.baseline_seconds_per_image) for each in timed if each is not None)
        z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
        return z * self._noise(history) / math.sqrt(max(pairs, 1))

    def _noise(self, history: History) -> float:
        measured = [each.trial.measurement for each in history.trials]
        known = [each for each in measured if each is not None]
        return noise_of(history.baseline, known)

    def _calibration(self, history: History, standing: Standing) -> int | None:
        """Return the next run that serves the latency model, None if it knows enough."""
        size = len(self.space)
        runs = sum(each.assessment is not None for each in history.trials)
        if runs >= min(CALIBRATION_RUNS, math.ceil(CALIBRATION_SHARE * size)):
            return None
        fresh = np.flatnonzero(standing.is_open & (standing.prompts == 0))
        noise = self._noise(history)
        enough = max(SPEED_SD, noise / 2, 1.5 * self._latency.misfit)
        if not len(fresh) or (runs and np.quantile(standing.sd, 0.9) <= enough):
            return None
        return self._latency.most_informative(fresh, noise, np.arange(size))

    def _is_worthy(self, standing: Standing) -> NDArray[np.bool_]:
        least = LEAST_GAIN if self.task.goal.min_speedup is None else LEAST_CHANCE
        return np.asarray(standing.is_open & (self._gain(standing) >= least))

    def _gain(self, standing: Standing) -> Array:
        """Return what each candidate is worth, `[N]`.

        Without a required speedup, the expected further gain over the best found, beyond what is
        the same speed, as a difference of logarithms; with one, the probability of meeting it.
        """
        required = self.task.goal.min_speedup
        if required is not None:
            ahead = (standing.log_speedup - math.log(required)) / standing.sd
            return np.asarray(standing.within * stats.norm.cdf(ahead))
        beaten = standing.best + SAME_SPEED
        return standing.within * expected_gain(standing.log_speedup, standing.sd, beaten)

    def _cost(self, standing: Standing) -> Array:
        """Return what finding out about each takes, in units of a baseline on all prompts."""
        left = 1 - standing.prompts / self.task.prompts
        lost = np.minimum(np.maximum(SHORT_RACE - (1 - left), SHORT_RACE / 4), left)
        share = standing.within * left + (1 - standing.within) * lost
        return np.asarray(share * np.exp(-standing.log_speedup) + FIXED_COST)

    def _is_too_slow(self, standing: Standing) -> NDArray[np.bool_]:
        required = self.task.goal.min_speedup
        least = standing.best if required is None else math.log(required)
        return np.asarray(standing.log_speedup + OPTIMISTIC * standing.sd <= least)
