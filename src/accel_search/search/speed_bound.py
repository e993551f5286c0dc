"""Find the fastest candidate of a space, regardless of quality, in a few runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from accel_search.core.outcome import SpeedBound
from accel_search.core.timing_noise import TimingNoise, is_timed, pairs_beside_steps, speedup
from accel_search.core.trial import Failure, Measurement, Trial, commonest, describe_failures
from accel_search.errors import NothingMeasured
from accel_search.search.evaluator import Evaluator
from accel_search.search.events import Observer
from accel_search.search.space import ALL_BASELINE, JointSpace
from accel_search.search.stored_evaluator import StoredEvaluator
from accel_search.search.strategies.latency_model import expected_gain
from accel_search.search.strategies.speed_model import SpeedModel, noise_of, noise_of_look
from accel_search.search.watchdog import Watchdog
from accel_search.storage.trials_db import TrialStore

Array = NDArray[np.float64]

MAX_RUNS = 12
"""Most candidates to time before the fastest is timed again; about half is usually enough."""
SAME_SPEED = 0.01
"""Relative difference of speeds that counts as none: a bound has a margin of ten times that."""
LEAST_GAIN = 0.002
"""Expected further gain, as a fraction, below which another candidate is not worth a run."""
NOISE_SHARE = 0.1
"""The same as a share of the noise of one timing; the larger of the two counts."""
OPTIMISTIC = 2.0
"""Standard deviations up to an optimistic speed, used while nothing is timed."""


class SpeedBoundSearch:
    """Search for the fastest candidate, next the one with the largest expected gain.

    The latency model's prior suggests the first candidate; every run then shows what its step types
    cost. Timings that a search stored in the same study count too.

    Args:
        evaluator: Times candidates, with or without scores.
        space: The candidates.
        store: Stores every run; candidates already in it are not timed again.
        observer: Receives the events.
        pairs: Baseline calls beside a candidate's first timing, where its UNet calls do not tell;
            the fastest gets `evaluator.pairs` in the end, unless its images are scored.
        watchdog: Ends a measurement that hangs; None waits for it.
        max_trials: Most candidates to begin, those stored included; None is no limit.

    Source:
        Expected improvement: Jones et al., "Efficient global optimization of expensive black-box
        functions" (1998), with the latency model in place of a Gaussian process.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        space: JointSpace,
        store: TrialStore,
        observer: Observer,
        pairs: int,
        watchdog: Watchdog | None = None,
        max_trials: int | None = None,
    ) -> None:
        self._evaluator = evaluator
        self._space = space
        self._store = store
        self._observer = observer
        self._pairs = pairs
        self._measuring = StoredEvaluator(evaluator, store, watchdog)
        self._max_trials = max_trials
        self._standing = _Standing(len(space))

    def run(self) -> SpeedBound:
        """Time candidates until none is expected to be faster than the fastest.

        Raises:
            NothingMeasured: Every candidate failed, or every point is the baseline.
            ConfigurationError: The baseline pipeline fails.
            ContaminationError: An accelerator left the pipeline changed.
            OutOfMemoryError: The workload does not fit even at batch size 1.
        """
        if not len(self._space):
            raise NothingMeasured(
                f"{ALL_BASELINE}: nothing to time of {' + '.join(self._space.targets)}"
            )
        baseline = self._measuring.baseline()
        self._observer.on_baseline(baseline)
        self._measuring.check_after_hang()
        standing = self._standing
        for trial in self._store.trials():
            standing.take(self._space.position(trial.candidate), trial)
        standing.forget_other_sizes(baseline.batch_size)
        for _ in range(MAX_RUNS):
            position = self._most_promising(baseline, standing.may_be_timed(self._max_trials))
            if position is None:
                break
            baseline = self._time(position, self._pairs_of_next(), baseline)
        settled = self._most_promising(baseline, ~standing.is_known) is None
        # The fastest by a few calls may not be the fastest by all of them.
        while (best := self._to_be_timed_again(baseline)) is not None:
            baseline = self._time(*best, baseline)
        self._measuring.check()
        return self._outcome(baseline, settled)

    @cached_property
    def _model(self) -> SpeedModel:
        return SpeedModel(self._space)

    def _outcome(self, baseline: Measurement, settled: bool) -> SpeedBound:
        standing = self._standing
        if not standing.measured:
            message = f"no candidate could be measured: {describe_failures(standing.failures)}"
            raise NothingMeasured(message, commonest(standing.failures).kind, baseline.seconds)
        best = self._fastest(baseline)
        measurement = standing.measured[best]
        noise = standing.timing_noise(baseline)
        spent = [failure.seconds for failure in standing.failures]
        spent += [measured.seconds for measured in standing.measured.values()]
        return SpeedBound(
            candidate=self._space.candidate_at(best),
            measurement=measurement,
            speedup=speedup(measurement, noise),
            noise_floor=noise.floor_of(measurement),
            baseline=baseline,
            timed=len(standing.measured),
            failed=len(standing.failures),
            settled=settled,
            seconds=baseline.seconds + sum(spent),
        )

    def _most_promising(self, baseline: Measurement, fresh: NDArray[np.bool_]) -> int | None:
        """Return the position of the candidate to time next, None if none is worth it.

        Args:
            baseline: The baseline's.
            fresh: Whether each candidate may be chosen, `[N]`.
        """
        standing = self._standing
        if not fresh.any():
            return None
        log_speedup, sd = self._speeds(baseline)
        if not standing.measured:
            return int(np.argmax(np.where(fresh, log_speedup + OPTIMISTIC * sd, -np.inf)))
        best = max(log_speedup[position] for position in standing.measured)
        gain = np.where(fresh, expected_gain(log_speedup, sd, best + SAME_SPEED), 0.0)
        noise = noise_of_look(list(standing.measured.values()), self._noise(baseline))
        least = max(LEAST_GAIN, NOISE_SHARE * noise)
        return int(np.argmax(gain)) if gain.max() >= least else None

    def _to_be_timed_again(self, baseline: Measurement) -> tuple[int, int] | None:
        """Return the fastest and the number of pairs it lacks, None where it lacks none."""
        measured = self._standing.measured
        if not measured:
            return None
        best = self._fastest(baseline)
        missing = self._evaluator.pairs - len(measured[best].baseline_seconds_per_image)
        # Prompts that were scored cannot be measured again.
        return None if missing <= 0 or measured[best].scores else (best, missing)

    def _fastest(self, baseline: Measurement) -> int:
        log_speedup, _ = self._speeds(baseline)
        return max(self._standing.measured, key=lambda position: float(log_speedup[position]))

    def _pairs_of_next(self) -> int:
        if not self._evaluator.times_steps:
            return self._pairs
        measured = list(self._standing.measured.values())
        return pairs_beside_steps(measured, None, self._pairs)

    def _noise(self, baseline: Measurement) -> float:
        return noise_of(baseline, list(self._standing.measured.values()))

    def _speeds(self, baseline: Measurement) -> tuple[Array, Array]:
        measured = list(self._standing.measured.items())
        return self._model.speeds(measured, self._noise(baseline))

    def _time(self, position: int, pairs: int, baseline: Measurement) -> Measurement:
        """Time a candidate once more and store it; return the baseline of its batch size."""
        candidate = self._space.candidate_at(position)
        self._observer.on_start(candidate)
        before = self._standing.measured.get(position)
        chunk = min(self._evaluator.chunk, self._evaluator.prompt_count)
        trial = self._measuring.trial(candidate, range(chunk), pairs, before)
        measured = trial.measurement
        if measured is not None and measured.batch_size != baseline.batch_size:
            baseline = self._measuring.baseline(beside=measured)  # It was halved on the way.
            self._standing.forget_other_sizes(measured.batch_size)
        self._standing.take(position, trial)
        self._store.add(trial, None)
        noise = self._standing.timing_noise(baseline)
        measured_speedup = None if measured is None else speedup(measured, noise)
        self._observer.on_timed(trial, measured_speedup)
        if trial.failure is not None:
            self._measuring.check()  # If it broke the pipeline, the next one is not to blame.
        return baseline


@dataclass
class _Standing:
    """What is known of each position of a space."""

    size: int
    measured: dict[int, Measurement] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.is_known = np.zeros(self.size, dtype=bool)
        self.is_begun = np.zeros(self.size, dtype=bool)
        """Also those whose timing was dropped since."""

    def take(self, position: int | None, trial: Trial) -> None:
        """Take a trial into account, unless it is outside this space."""
        if position is None:
            return
        self.is_known[position] = self.is_begun[position] = True
        if trial.failure is not None:
            self.failures.append(trial.failure)
            self.measured.pop(position, None)
        elif trial.measurement is not None and is_timed(trial.measurement):
            self.measured[position] = trial.measurement

    def may_be_timed(self, most: int | None) -> NDArray[np.bool_]:
        """Return whether each candidate may be timed next, where at most so many may begin."""
        fresh = ~self.is_known
        return fresh if most is None or self.is_begun.sum() < most else fresh & self.is_begun

    def timing_noise(self, baseline: Measurement) -> TimingNoise:
        """Return the timing noise by all pairs of the baseline's batch size."""
        return TimingNoise([baseline], list(self.measured.values()))

    def forget_other_sizes(self, batch_size: int) -> None:
        """Drop timings at another batch size: a ratio needs equal sizes."""
        for position, measurement in list(self.measured.items()):
            if measurement.batch_size != batch_size:
                del self.measured[position]
                self.is_known[position] = False
