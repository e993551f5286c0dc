"""How fast a space can be, quality aside: its fastest candidate, in a handful of runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from accel_search.core.outcome import SpeedBound
from accel_search.core.timing_noise import TimingNoise, speedup
from accel_search.core.trial import Failure, Measurement, Trial, commonest, said_of
from accel_search.errors import NothingMeasured
from accel_search.search.evaluator import Evaluator
from accel_search.search.events import Observer
from accel_search.search.space import ALL_BARE, JointSpace
from accel_search.search.step_plans import plans_in
from accel_search.search.stored_evaluator import StoredEvaluator
from accel_search.search.strategies.latency_model import (
    LatencyModel,
    expected_gain,
    noise_of,
    run_of,
)
from accel_search.search.watchdog import Watchdog
from accel_search.storage.trials_db import TrialStore

Array = NDArray[np.float64]

MAX_RUNS = 12
"""Most candidates that are timed on the way; a space of step types needs about half of them."""
SAME_SPEED = 0.01
"""Relative difference of speeds that is no gain: a bound has a margin of ten times that."""
LEAST_GAIN = 0.002
"""Expected further gain, as a fraction, below which another candidate is not worth a run."""
NOISE_SHARE = 0.1
"""The same as a share of the noise of one timing, where that is more."""
OPTIMISTIC = 2.0
"""Standard deviations up to what an unknown candidate may reach, while nothing is timed."""


class SpeedBoundSearch:
    """Looks for the fastest candidate: the one of which the latency model promises most is next.

    With nothing timed, a candidate may be as fast as the model's prior allows; every run tells what
    its step types cost, and the model the rest. What a search over the same study has timed counts.

    Args:
        evaluator: Times candidates, and scores them or not.
        space: What is searched.
        store: Keeps every run; what it already holds is not timed again.
        listener: Is told what happens.
        pairs: Baseline calls beside a candidate's first timing; the fastest gets `evaluator.pairs`.
            Fewer than those can be made up for only where nothing is scored.
        watchdog: Ends what hangs; None lets it hang.

    Source:
        Expected improvement: Jones et al., "Efficient global optimization of expensive black-box
        functions" (1998), with the latency model in place of a Gaussian process.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        space: JointSpace,
        store: TrialStore,
        listener: Observer,
        pairs: int,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._evaluator = evaluator
        self._space = space
        self._store = store
        self._listener = listener
        self._pairs = pairs
        self._measuring = StoredEvaluator(evaluator, store, watchdog)
        self._standing = _Standing(len(space))

    def run(self) -> SpeedBound:
        """Time candidates until none promises to be faster than the fastest.

        Raises:
            NothingMeasured: Every candidate failed, or there is none: every point is the baseline.
            ConfigurationError: The bare pipeline fails.
            ContaminationError: An accelerator left the pipeline changed.
            OutOfMemoryError: The workload does not fit even at batch size 1.
        """
        if not len(self._space):
            raise NothingMeasured(
                f"{ALL_BARE}: nothing to time of {' + '.join(self._space.targets)}"
            )
        baseline = self._measuring.baseline()
        self._listener.on_baseline(baseline)
        self._measuring.check_after_hang()
        standing = self._standing
        for trial in self._store.trials():
            standing.take(self._space.position(trial.candidate), trial)
        standing.forget_other_sizes(baseline.batch_size)
        runs = 0
        while (position := self._most_promising(baseline)) is not None and runs < MAX_RUNS:
            runs += 1
            baseline = self._time(position, self._pairs, baseline)
        # What was the fastest by a few calls may not be by all of them.
        while (best := self._to_be_timed_again(baseline)) is not None:
            baseline = self._time(*best, baseline)
        self._measuring.check()
        return self._outcome(baseline, settled=position is None)

    @cached_property
    def _model(self) -> LatencyModel:
        return LatencyModel(plans_in(self._space))

    def _outcome(self, baseline: Measurement, settled: bool) -> SpeedBound:
        standing = self._standing
        if not standing.measured:
            said = f"no candidate could be measured: {said_of(standing.failures)}"
            raise NothingMeasured(said, commonest(standing.failures).kind, baseline.seconds)
        best = self._fastest(baseline)
        found = standing.measured[best]
        noise = standing.timing_noise(baseline)
        kept = [each.seconds for each in standing.measured.values()]
        return SpeedBound(
            candidate=self._space.candidate_at(best),
            measurement=found,
            speedup=speedup(found, noise),
            noise_floor=noise.floor(len(found.baseline_seconds_per_image)),
            baseline=baseline,
            timed=len(standing.measured),
            failed=len(standing.failures),
            settled=settled,
            seconds=baseline.seconds + sum(kept) + sum(each.seconds for each in standing.failures),
        )

    def _most_promising(self, baseline: Measurement) -> int | None:
        """Return which candidate is worth timing next, None if none is."""
        standing = self._standing
        fresh = ~standing.is_known
        if not fresh.any():
            return None
        log_speedup, sd = self._speeds(baseline)
        if not standing.measured:
            return int(np.argmax(np.where(fresh, log_speedup + OPTIMISTIC * sd, -np.inf)))
        best = max(log_speedup[position] for position in standing.measured)
        gain = np.where(fresh, expected_gain(log_speedup, sd, best + SAME_SPEED), 0.0)
        least = max(LEAST_GAIN, NOISE_SHARE * self._noise(baseline))
        return int(np.argmax(gain)) if gain.max() >= least else None

    def _to_be_timed_again(self, baseline: Measurement) -> tuple[int, int] | None:
        """Return the fastest and how many pairs it lacks, None where it lacks none."""
        measured = self._standing.measured
        if not measured:
            return None
        best = self._fastest(baseline)
        missing = self._evaluator.pairs - len(measured[best].baseline_seconds_per_image)
        # The prompts that it was scored on cannot be scored a second time.
        return None if missing <= 0 or measured[best].scores else (best, missing)

    def _fastest(self, baseline: Measurement) -> int:
        log_speedup, _ = self._speeds(baseline)
        return max(self._standing.measured, key=lambda position: float(log_speedup[position]))

    def _noise(self, baseline: Measurement) -> float:
        return noise_of(baseline, list(self._standing.measured.values()))

    def _speeds(self, baseline: Measurement) -> tuple[Array, Array]:
        measured, noise = self._standing.measured, self._noise(baseline)
        return self._model.speeds([run_of(at, each, noise) for at, each in measured.items()])

    def _time(self, position: int, pairs: int, baseline: Measurement) -> Measurement:
        """Time a candidate once more and store it; return the baseline of its batch size."""
        candidate = self._space.candidate_at(position)
        self._listener.on_start(candidate)
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
        found = None if measured is None else speedup(measured, noise)
        self._listener.on_timed(trial, found)
        if trial.failure is not None:
            self._measuring.check()  # As in a search: the next one must not be blamed for it.
        return baseline


@dataclass
class _Standing:
    """What is known of each position of a space."""

    size: int
    measured: dict[int, Measurement] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.is_known = np.zeros(self.size, dtype=bool)

    def take(self, position: int | None, trial: Trial) -> None:
        """Take a trial into account; one of no position of this space is none of it."""
        if position is None:
            return
        self.is_known[position] = True
        if trial.failure is not None:
            self.failures.append(trial.failure)
            self.measured.pop(position, None)
        elif trial.measurement is not None and trial.measurement.baseline_seconds_per_image:
            self.measured[position] = trial.measurement

    def timing_noise(self, baseline: Measurement) -> TimingNoise:
        """Return how far pairs differ by chance, by all of the baseline's batch size."""
        return TimingNoise([baseline], list(self.measured.values()))

    def forget_other_sizes(self, batch_size: int) -> None:
        """Drop what was timed at another batch size: no ratio is of two sizes."""
        for position, each in list(self.measured.items()):
            if each.batch_size != batch_size:
                del self.measured[position]
                self.is_known[position] = False
