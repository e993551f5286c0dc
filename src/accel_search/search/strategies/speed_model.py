"""The speeds of a space by all timings so far: the latency model, fed with measurements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from accel_search.accelerators.computation import describe_steps
from accel_search.core.step_times import StepTimes
from accel_search.core.step_timing import compare
from accel_search.core.timing_noise import paired_log_ratios, step_noise, timing_spread
from accel_search.core.trial import Measurement
from accel_search.search.space import JointSpace
from accel_search.search.step_plans import plans_in
from accel_search.search.strategies.latency_model import Contrast, LatencyModel, Run

Array = NDArray[np.float64]

LEAST_NOISE = 0.003
"""Least relative error of a timing."""
CONTRAST_SD = 0.01
"""Standard deviation of the ratio of two step types from one pipeline call to another, beside what
the scatter of UNet calls explains."""


class SpeedModel:
    """Predicts the speed of every candidate of a space.

    Args:
        space: The candidates.
    """

    def __init__(self, space: JointSpace) -> None:
        self.plans = plans_in(space)
        """Step plans of the candidates, in the order of the space."""
        self._alike = likeness(space.coordinates())
        self.latency = LatencyModel(self.plans, self._alike)
        self._space = space
        self._numbers = {step: number for number, step in enumerate(self.plans.types)}
        self._types: dict[int, list[int]] = {}

    def speeds(
        self, measured: Sequence[tuple[int, Measurement]], noise: float
    ) -> tuple[Array, Array]:
        """Fit the model to measurements and predict all candidates.

        Args:
            measured: Position of each candidate, with its measurement.
            noise: Standard deviation of the log ratio of one pair of calls.

        Returns:
            Expected logarithm of each speedup and the standard deviation of its error, `[N]`.
        """
        return self.latency.speeds(runs_of(measured, noise), self._contrasts(measured))

    def has_unmet(self, positions: Sequence[int]) -> NDArray[np.bool_]:
        """Return whether each candidate has a parameter's value that none of these has, `[N]`."""
        met = self._alike[list(positions)].any(axis=0)
        return np.asarray((self._alike[:, ~met] > 0).any(axis=1))

    def _contrasts(self, measured: Sequence[tuple[int, Measurement]]) -> list[Contrast]:
        """Return by how much the times of step types differ within single pipeline calls.

        Runs tell the sum of a call's steps, these how it is made up: nothing is said twice.
        """
        known: dict[tuple[int, int], list[tuple[float, float]]] = {}
        for position, measurement in measured:
            for times in _first_told(measurement):
                for pair, log_ratio, variance in _apart(times, self._types_of(position)):
                    known.setdefault(pair, []).append((log_ratio, variance))
        contrasts = []
        for pair, told in known.items():
            ratios, variances = np.array(told).T
            mean = float(np.average(ratios, weights=1 / variances))
            contrasts.append(Contrast(pair, mean, float((1 / variances).sum() ** -0.5)))
        return contrasts

    def _types_of(self, position: int) -> list[int]:
        """Return the type of each UNet call of a candidate; none where they are unknown."""
        workload = self._space.workload
        if position not in self._types and workload is not None:
            steps = describe_steps(self._space.candidate_at(position), workload)
            numbers = [self._numbers[step] for step in steps if step in self._numbers]
            self._types[position] = numbers if len(numbers) == len(steps) else []
        return self._types.get(position, [])


def noise_of(baseline: Measurement, measured: Sequence[Measurement]) -> float:
    """Return the standard deviation of the log ratio of one pair of calls."""
    return max(timing_spread(baseline, measured), LEAST_NOISE)


def noise_of_look(measured: Sequence[Measurement], noise: float) -> float:
    """Return the standard deviation of the log speedup of a candidate timed by one call.

    Args:
        measured: Candidates so far.
        noise: Standard deviation of the log ratio of one pair of calls.
    """
    steps = step_noise(measured, noise)
    estimates = [steps.estimate(_first_told(measurement)) for measurement in measured]
    variances = [estimate.variance for estimate in estimates if estimate is not None]
    if not variances:
        return noise  # It is timed by a pair.
    return min(noise, max(float(np.sqrt(np.median(variances))), LEAST_NOISE))


def runs_of(measured: Sequence[tuple[int, Measurement]], noise: float) -> list[Run]:
    """Return measurements as runs, by whole calls and single UNet calls together.

    Args:
        measured: Position of each candidate, with its measurement.
        noise: Standard deviation of the log ratio of one pair of calls.
    """
    steps = step_noise([measurement for _, measurement in measured], noise)
    runs = []
    for position, measurement in measured:
        known = []
        if len(ratios := paired_log_ratios(measurement)):
            known.append((float(ratios.mean()), noise**2 / len(ratios)))
        if (within := steps.estimate(measurement.step_times)) is not None:
            known.append(within)
        if known:
            means, variances = np.array(known).T
            weights = 1 / variances
            log_speedup = float(np.average(means, weights=weights))
            # Where the two disagree, one of them is wrong, and it is unknown which.
            apart = float((weights * (means - log_speedup) ** 2).sum())
            runs.append(Run(position, -log_speedup, math.sqrt(max(1.0, apart) / weights.sum())))
    return runs


def likeness(coordinates: Array) -> Array:
    """Return what candidates have in common: the product of two rows is their part of it.

    Args:
        coordinates: Place of each parameter among its values, `[N, parameters]`.

    Returns:
        A column for each value of each parameter that varies, `[N, levels]`.
    """
    columns = []
    for places in coordinates.T:
        levels = np.unique(places)
        if len(levels) > 1:
            columns.append((places[:, None] == levels).astype(float))
    if not columns:
        return np.zeros((len(coordinates), 0))
    return np.concatenate(columns, axis=1) / math.sqrt(len(columns))


def _first_told(measurement: Measurement) -> tuple[StepTimes, ...]:
    """Return the first call whose UNet calls tell a speedup; those of pairs have no probes."""
    told = (times for times in measurement.step_times if compare(times) is not None)
    return tuple(itertools.islice(told, 1))


def _apart(
    times: StepTimes, types: Sequence[int]
) -> Iterator[tuple[tuple[int, int], float, float]]:
    """Yield by how much each step type of a call differs from its commonest one, plain ones aside.

    Yields:
        Both types, the logarithm of the ratio of their times, and the variance of that.
    """
    compared = compare(times)
    if compared is None or len(types) != len(times.seconds):
        return  # Other UNet calls were made than described.
    groups: dict[int, list[float]] = {}
    for number, log_time in zip(types, np.log(compared.relative).tolist(), strict=True):
        if number:  # A plain call is the unit of the others.
            groups.setdefault(number, []).append(log_time)
    commonest = max(groups, key=lambda number: len(groups[number]), default=0)
    for number, log_times in groups.items():
        if number != commonest:
            others = groups[commonest]
            share = 1 / len(log_times) + 1 / len(others)
            variance = compared.scatter**2 * share + CONTRAST_SD**2
            yield (number, commonest), fmean(log_times) - fmean(others), variance
