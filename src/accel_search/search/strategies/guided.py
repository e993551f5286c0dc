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
from accel_search.core.intervals import CONFIDENCE
from accel_search.core.trial import Measurement
from accel_search.core.validation import LARGE, reach_of, worth_of
from accel_search.search.strategies.base import History, Proposal, Strategy, Task
from accel_search.search.strategies.latency_model import FREEDOM, expected_gain
from accel_search.search.strategies.quality_model import (
    LEAST_ROOM,
    QualityModel,
    Used,
    bounds_of,
    inputs,
    scored,
)
from accel_search.search.strategies.speed_model import SpeedModel, noise_of, noise_of_look

Array = NDArray[np.float64]

CALIBRATION_RUNS = 12
"""Most runs for the latency model alone."""
CALIBRATION_SHARE = 0.35
"""Their largest share of a small space."""
SPEED_SD = 0.02
"""Error of predicted speeds at which calibration ends, unless timing is noisier than that."""
UNMET_SD = 0.05
"""Error of predicted speeds, as far as a parameter's value may do what the latency model does not
know of, until a candidate with it was tried."""
HOPE = 1.5
"""Standard deviations above its predicted speed at which a candidate is taken when asked whether it
would be tried on held-out prompts: a family faster than its steps tell is predicted too slow."""
LEAST_GAIN = 0.01
"""Expected further gain of speed, as a fraction, that is worth the time of the baseline on all
prompts: a candidate that promises less for its time is not worth a trial."""
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
OPTIMISTIC = float(stats.t.ppf(SURE, FREEDOM))
"""Standard deviations up to the optimistic end of a predicted speed, whose errors are Student's."""


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
    reached: Array
    """Probability that a candidate would be tried on held-out prompts, by what was measured."""


class Guided(Strategy):
    """Measure the candidate with the largest expected gain of speed for the time it takes.

    A few short, informative runs calibrate the latency model, and their scores the quality model.
    Then the candidate with the largest expected gain per second goes to its next stage: gain by the
    latency model × probability of passing on held-out prompts by the quality model. The first stage
    is one call, which tells its speed; both models learn from every stage. The search ends when no
    candidate promises `LEAST_GAIN` for what it costs: those left are slower even at the optimistic
    end, or lose too much.

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
        candidate, scored = self.space.candidate_at(position), int(standing.prompts[position])
        # The first call tells its speed, at a small part of the cost, and little of its loss.
        if scored > self.task.chunk and standing.within[position] >= SURE:
            return Proposal(candidate, self.task.prompts)
        return self.raced(candidate, scored)

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
            f"{_are(slow)} too slow even at the optimistic end of the prediction",
            f"{_are(lossy)} likely to lose too much (over {100 * SURE:.0f} %)",
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
    def _speed(self) -> SpeedModel:
        return SpeedModel(self.space)

    @cached_property
    def _bounds(self) -> list[tuple[QualityModel, Used]]:
        points = inputs(self.space.coordinates(), self._speed.plans)
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
        log_speedup, sd = self._speed.speeds(measured, self._noise(history))
        # What failed was met too: others with its values are not tried for that alone.
        sd = np.hypot(sd, UNMET_SD * self._speed.has_unmet([position for position, _ in located]))
        within = np.ones(len(self.space))
        for place, (model, used) in enumerate(self._bounds):
            known = scored(measured, history.baseline, used)
            if place:  # The score is the first bound; the others have no outlook.
                within *= model.within(known)
            else:
                shift = self._shift(history, model)
                within *= model.within(known, shift / self._room, history.error / self._room)
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
        log_chances = np.log(np.maximum(within, math.exp(-LARGE)))
        reached = reach_of(meeting, log_speedup + HOPE * sd, log_chances)
        return Standing(log_speedup, sd, within, is_open, prompts, best, reached)

    def _shift(self, history: History, model: QualityModel) -> Array:
        """Return how far within the bound each candidate must be to pass on held-out prompts."""
        known = {
            position: shift
            for candidate, shift in history.shifts.items()
            if (position := self._position(candidate)) is not None
        }
        return model.spread_out(list(known), list(known.values()), history.shift)

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
        enough = max(SPEED_SD, noise / 2, 1.5 * self._speed.latency.misfit)
        if not len(fresh) or (runs and np.quantile(standing.sd, 0.9) <= enough):
            return None
        return self._speed.latency.most_informative(fresh, noise, np.arange(size))

    def _is_worthy(self, standing: Standing) -> NDArray[np.bool_]:
        if self.task.goal.min_speedup is None:
            is_worthy = self._gain(standing) >= LEAST_GAIN * self._cost(standing)
        else:
            is_worthy = self._gain(standing) >= LEAST_CHANCE
        return np.asarray(standing.is_open & is_worthy)

    def _gain(self, standing: Standing) -> Array:
        """Return what each candidate is worth, `[N]`.

        Without a required speedup, the expected gain over the best one in logarithms, less
        `SAME_SPEED`; with one, the probability of meeting it.
        """
        if self.task.goal.min_speedup is not None:
            return np.asarray(standing.within * self._faster(standing))
        gain = expected_gain(standing.log_speedup, standing.sd, self._beaten(standing))
        return np.asarray(standing.within * standing.reached * gain)

    def _beaten(self, standing: Standing) -> float:
        """Return the logarithm of the speed that a candidate has to have."""
        required = self.task.goal.min_speedup
        return standing.best + SAME_SPEED if required is None else math.log(required)

    def _faster(self, standing: Standing) -> Array:
        """Return the probability that each candidate is as fast as it has to be, `[N]`."""
        return np.asarray(
            stats.norm.cdf((standing.log_speedup - self._beaten(standing)) / standing.sd)
        )

    def _cost(self, standing: Standing) -> Array:
        """Return the cost of deciding on each candidate, in units of a baseline on all prompts."""
        left = 1 - standing.prompts / self.task.prompts
        lost = np.minimum(np.maximum(SHORT_RACE - (1 - left), SHORT_RACE / 4), left)
        share = standing.within * left + (1 - standing.within) * lost
        # Of those not started, the slow ones are given up once the first stage tells their speed.
        first = np.minimum(self.task.chunk / self.task.prompts, share)
        begun = first + self._faster(standing) * (share - first)
        share = np.where(standing.prompts > 0, share, begun)
        return np.asarray(share * np.exp(-standing.log_speedup) + FIXED_COST)

    def _is_too_slow(self, standing: Standing) -> NDArray[np.bool_]:
        required = self.task.goal.min_speedup
        least = standing.best if required is None else math.log(required)
        return np.asarray(standing.log_speedup + OPTIMISTIC * standing.sd <= least)


def _are(candidates: NDArray[np.bool_]) -> str:
    count = int(candidates.sum())
    return f"{count:,} {'is' if count == 1 else 'are'}"


def _measured(history: History) -> list[Measurement]:
    measured = [assessed.trial.measurement for assessed in history.trials]
    return [measurement for measurement in measured if measurement is not None]
