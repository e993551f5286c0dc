"""Speedups from the UNet calls within one pipeline call, and how far they may be wrong.

The pace of a host that others share changes between two pipeline calls a second apart, hardly
within one. So each UNet call of a candidate is compared with plain ones of the same pipeline call,
close in time: what the baseline would have taken at that moment. What such a comparison misses (a
plain call amid light ones finds the device cooler, say) is the misfit. Pairs of whole calls tell
how large it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from accel_search.core.step_times import REACH, StepTimes

Array = NDArray[np.float64]

FARTHEST = 2 * REACH
"""Most UNet calls between one and the nearest plain one that it can be compared with."""
SCATTER = 0.02
"""Relative scatter of UNet calls of one type that counts like `PRIOR_FREEDOM` of them."""
PRIOR_FREEDOM = 4.0
"""Degrees of freedom of what is believed before anything is timed."""
MISFITS = np.geomspace(0.001, 0.2, 24)
"""Relative errors of the comparison itself, among which pairs of whole calls choose."""
MISFIT_PRIOR = (math.log(0.01), 0.7)
"""Mean and standard deviation of the logarithm of the misfit, before any pairs."""
BIAS_SD = 0.01
"""Standard deviation of the error that all comparisons share, before any pairs."""


class Within(NamedTuple):
    """What one pipeline call tells of its own speedup."""

    log_speedup: float
    """Logarithm of the baseline's time over the call's own."""
    variance: float
    """Of that, by the scatter of its UNet calls."""


@lru_cache(maxsize=10_000)
def speed_within(times: StepTimes) -> Within | None:
    """Compare the UNet calls of one pipeline call with its plain ones.

    Returns:
        None where plain calls are missing, or too far from others.
    """
    seconds, kinds = np.asarray(times.seconds), np.asarray(times.kinds)
    own = [(float(at), seconds[at]) for at in np.flatnonzero(kinds == 0)]
    # A probe lies between the call that it followed and the next.
    plain = sorted(own + [(at + 0.5, second) for at, second in times.probes])
    if not plain or not len(seconds) or len(kinds) != len(seconds):
        return None
    places, paces = np.array(plain).T
    steps = np.arange(len(seconds))
    if np.abs(steps[:, None] - places).min(axis=1).max() > FARTHEST:
        return None
    pace = np.interp(steps, places, paces)
    overhead = max(times.call - float(seconds.sum()), 0.0)
    relative = seconds / pace
    before = overhead + times.baseline_calls * float(pace.mean())
    after = overhead + float(relative.sum() * pace.mean())
    variance = _scatter(relative, kinds, paces) ** 2 * (1 / len(paces) + 1 / len(seconds))
    return Within(math.log(before / after), variance)


def _scatter(relative: Array, kinds: NDArray[np.int64], paces: Array) -> float:
    """Return the relative scatter of UNet calls of one type, `PRIOR_FREEDOM` of it believed."""
    squares, freedom = PRIOR_FREEDOM * SCATTER**2, PRIOR_FREEDOM
    # Of neighbours among plain calls, so that a drift, which is followed, does not count.
    steps = np.diff(np.log(paces))
    squares, freedom = squares + float((steps**2).sum()) / 2, freedom + len(steps)
    for kind in set(kinds.tolist()) - {0}:
        logarithms = np.log(relative[kinds == kind])
        squares += float(((logarithms - logarithms.mean()) ** 2).sum())
        freedom += len(logarithms) - 1
    return math.sqrt(squares / freedom)


@dataclass(frozen=True)
class Judged:
    """A trial that was timed both ways."""

    step_times: tuple[StepTimes, ...]
    log_speedup: float
    """By pairs of whole calls."""
    variance: float
    """Of that."""


class StepNoise:
    """How far speedups from single UNet calls are wrong: by chance, and by the comparison itself.

    Args:
        trials: The step times of each trial.
        judged: Those that pairs of whole calls were timed of, too.

    Source:
        The misfit by its posterior on a grid, as in `search.strategies.latency_model`: MacKay,
        "Bayesian interpolation" (1992).
    """

    def __init__(
        self, trials: Sequence[tuple[StepTimes, ...]] = (), judged: Sequence[Judged] = ()
    ) -> None:
        squares, freedom = PRIOR_FREEDOM, PRIOR_FREEDOM
        for times in set(trials):
            calls = _calls(times)
            if len(calls) > 1:
                values, variances = np.array(calls).T
                mean = np.average(values, weights=1 / variances)
                squares += float(((values - mean) ** 2 / variances).sum())
                freedom += len(calls) - 1
        self.inflation = max(squares / freedom, 1.0)
        """Variance between calls over that expected from the scatter within them."""
        self._learn([trial for trial in judged if _calls(trial.step_times)])

    def estimate(self, step_times: Sequence[StepTimes]) -> Within | None:
        """Return the log speedup by single UNet calls and its variance, the misfit included.

        Returns:
            None where no call can be compared with plain ones.
        """
        calls = _calls(step_times)
        if not calls:
            return None
        mean, variance = _mean(calls)
        return Within(mean - self.bias, self.inflation * variance + self.misfit**2)

    def _learn(self, judged: Sequence[Judged]) -> None:
        """Learn from trials timed both ways how wrong comparisons are, alike and each by itself."""
        means = [_mean(_calls(trial.step_times)) for trial in judged]
        pairs = list(zip(means, judged, strict=True))
        variances = [trial.variance + self.inflation * mean.variance for mean, trial in pairs]
        apart = [mean.log_speedup - trial.log_speedup for mean, trial in pairs]
        total = np.array(variances)[:, None] + MISFITS**2
        off = np.array(apart)[:, None]
        # The shared error is normal, and so is its posterior under each misfit.
        precision = 1 / BIAS_SD**2 + (1 / total).sum(axis=0)
        bias = (off / total).sum(axis=0) / precision
        evidence = -0.5 * ((np.log(MISFITS) - MISFIT_PRIOR[0]) / MISFIT_PRIOR[1]) ** 2
        evidence -= 0.5 * (np.log(total) + off**2 / total).sum(axis=0)
        evidence += 0.5 * (precision * bias**2 - np.log(precision))
        weights = np.exp(evidence - evidence.max())
        self.bias = float(np.average(bias, weights=weights))
        """Logarithm by which all comparisons are expected to overstate a speedup."""
        squares = MISFITS**2 + 1 / precision + (bias - self.bias) ** 2
        self.misfit = math.sqrt(float(np.average(squares, weights=weights)))
        """Root mean square of the relative error that is left."""


def _calls(step_times: Sequence[StepTimes]) -> list[Within]:
    return [within for times in step_times if (within := speed_within(times)) is not None]


def _mean(calls: Sequence[Within]) -> Within:
    """Return the mean of calls, each weighted by what it tells."""
    values, variances = np.array(calls).T
    weights = 1 / variances
    return Within(float(np.average(values, weights=weights)), float(1 / weights.sum()))
