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
BIASES = np.linspace(-0.06, 0.06, 61)
"""Such errors, among which pairs of whole calls choose."""
DISTURBED, DISTURBANCE = 0.1, 0.3
"""Probability that a trial's pairs were disturbed, and the standard deviation of what that does."""


class Within(NamedTuple):
    """What one pipeline call tells of its own speedup."""

    log_speedup: float
    """Logarithm of the baseline's time over the call's own."""
    variance: float
    """Of that, by the scatter of its UNet calls."""


class Compared(NamedTuple):
    """The UNet calls of one pipeline call beside its plain ones."""

    relative: Array
    """Time of each, in units of a plain call's at that moment, `[calls]`."""
    scatter: float
    """Relative scatter of UNet calls of one type."""
    plain: int
    """Plain calls timed, those made for comparison alone among them."""
    overhead: float
    """What the pipeline call takes beside its UNet calls, in units of a plain one."""


@lru_cache(maxsize=10_000)
def compare(times: StepTimes) -> Compared | None:
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
    relative, mean = seconds / pace, float(pace.mean())
    overhead = max(times.call - sum(times.seconds), 0.0) / mean
    return Compared(relative, _scatter(relative, kinds, paces), len(paces), overhead)


def speed_within(times: StepTimes) -> Within | None:
    """Return what the UNet calls of one pipeline call tell of its speedup.

    Returns:
        None where `compare` tells nothing.
    """
    known = compare(times)
    if known is None:
        return None
    before = known.overhead + times.baseline_calls
    after = known.overhead + float(known.relative.sum())
    variance = known.scatter**2 * (1 / known.plain + 1 / len(known.relative))
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
        "Bayesian interpolation" (1992). Disturbed pairs as a wide component: Box and Tiao, "A
        Bayesian approach to some outlier problems" (1968).
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
        """Learn from trials timed both ways how wrong comparisons are, alike and each by itself.

        Some pairs are disturbed: what only one of them says counts for little.
        """
        bias, misfit = BIASES[:, None], MISFITS[None, :]
        evidence = -0.5 * (bias / BIAS_SD) ** 2
        evidence = evidence - 0.5 * ((np.log(misfit) - MISFIT_PRIOR[0]) / MISFIT_PRIOR[1]) ** 2
        for trial in judged:
            mean = _mean(_calls(trial.step_times))
            variance = trial.variance + self.inflation * mean.variance + misfit**2
            off = mean.log_speedup - trial.log_speedup - bias
            usual = np.log1p(-DISTURBED) + _log_density(off, variance)
            disturbed = np.log(DISTURBED) + _log_density(off, variance + DISTURBANCE**2)
            evidence = evidence + np.logaddexp(usual, disturbed)
        weights = np.exp(evidence - evidence.max())
        weights /= weights.sum()
        self.bias = float((weights * bias).sum())
        """Logarithm by which all comparisons are expected to overstate a speedup."""
        self.misfit = math.sqrt(float((weights * (misfit**2 + (bias - self.bias) ** 2)).sum()))
        """Root mean square of the relative error that is left."""


def _log_density(off: Array, variance: Array) -> Array:
    """Return the normal log density of a deviation, but for a constant."""
    return np.asarray(-0.5 * (np.log(variance) + off**2 / variance))


def _calls(step_times: Sequence[StepTimes]) -> list[Within]:
    return [within for times in step_times if (within := speed_within(times)) is not None]


def _mean(calls: Sequence[Within]) -> Within:
    """Return the mean of calls, each weighted by what it tells."""
    values, variances = np.array(calls).T
    weights = 1 / variances
    return Within(float(np.average(values, weights=weights)), float(1 / weights.sum()))
