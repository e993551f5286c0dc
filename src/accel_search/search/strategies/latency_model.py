"""The latency model: predict the time of any candidate from the times of a few.

A pipeline call takes a fixed overhead (text encoder, decoder) plus the sum of its UNet calls, and
the time of a UNet call depends on its step type. In units of the baseline's time, a candidate that
makes `n_k` calls of type `k` takes

    c + (1 - c) / N * sum_k n_k exp(v_k)

where `N` is the baseline's number of calls and a plain call has `v = 0`. `v_k` is the sum of each
effect alone (linear and, where its amount varies, quadratic), of each pair of effects, and of a
small term of the type's own. Each coefficient has a normal prior, a narrow one for pairs: a type
that was never measured is predicted from its effects, with the uncertainty that follows.

What a candidate deviates by from that is the misfit. Candidates with the same parameters share a
part of it: where the model is wrong about one value of a parameter, a few runs with it mend that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from accel_search.search.step_plans import StepPlans

Array = NDArray[np.float64]

OVERHEAD = (-2.4, 0.7)
"""Prior mean and standard deviation of the logit of the overhead's share: mostly 4 to 15 %. It
matters only where numbers of calls differ."""
EFFECT_SD = 2.0
"""Prior standard deviation of an effect on the logarithm of a UNet call's time: what skips modules
can leave a tenth of it, and a narrower prior would expect all such candidates too slow."""
PAIR_SD = 0.1
"""Prior standard deviation of the interaction of two effects."""
TYPE_SD = 0.03
"""Prior standard deviation of a step type's own term."""
MISFITS = np.geomspace(0.002, 0.1, 18)
"""Relative errors of the model itself, of which the runs select one."""
MISFIT_PRIOR = (math.log(0.012), 0.6)
"""Prior mean and standard deviation of the logarithm of the misfit."""
SHARED = 0.5
"""Part of the misfit that candidates with the same parameters share, squared."""
FREEDOM = 4.0
"""Degrees of freedom of the errors: disturbed runs get a low weight."""
CHUNK = 20_000
"""Candidates predicted at a time, to bound memory."""
POOL = 1_000
"""Most candidates among which the next calibration run is sought."""


@dataclass(frozen=True)
class Run:
    """One measured candidate."""

    position: int
    """Its index in the plans."""
    log_time: float
    """Logarithm of its time in units of the baseline's, timed side by side."""
    noise: float
    """Standard deviation of that by timing alone."""


@dataclass(frozen=True)
class Contrast:
    """By how much two step types differ."""

    types: tuple[int, int]
    """Their indices in the plans."""
    log_ratio: float
    """Logarithm of the time of the first, in units of the second's."""
    noise: float
    """Standard deviation of that."""


def expected_gain(log_speedup: Array, sd: Array, beaten: float) -> Array:
    """Return the expected gain of each candidate over a speedup, in logarithms, `[N]`.

    Args:
        log_speedup: Expected logarithms of the speedups, `[N]`.
        sd: Standard deviations of their errors, `[N]`.
        beaten: Logarithm of the speedup to beat.

    Source:
        Expected improvement: Jones et al., "Efficient global optimization of expensive black-box
        functions" (1998).
    """
    ahead = (log_speedup - beaten) / sd
    return np.asarray(sd * (stats.norm.pdf(ahead) + ahead * stats.norm.cdf(ahead)))


@dataclass(frozen=True)
class Prediction:
    """Times of many candidates."""

    log_time: Array
    """Logarithm of the time in units of the baseline's, `[N]`; -log_time is that of the speedup."""
    sd: Array
    """Standard deviation of its error, the model's misfit included, `[N]`."""


@dataclass(frozen=True)
class _Evidence:
    """What a model is fitted to: `R` runs, then `K` contrasts."""

    counts: Array
    """UNet calls of each type in each run, `[R, types]`."""
    alike: Array
    """What the runs' candidates have in common, `[R, levels]`."""
    log_times: Array
    """`[R]`"""
    contrasts: Array
    """Derivatives of the contrasts by the coefficients, `[K, D]`."""
    log_ratios: Array
    """`[K]`"""
    noise: Array
    """Standard deviations, `[R + K]`."""
    strays: Array
    """Part of the squared misfit that each has for itself, `[R + K]`: none within a call."""


class LatencyModel:
    """Predicts the time of step plans.

    Args:
        plans: Those of all candidates, measured or not.
        alike: The product of two rows says what part of the shared misfit two candidates share,
            `[N, levels]`; None where nothing is known of it.

    Source:
        Gaussian prior and likelihood, linearised about the mode (Gauss-Newton, Laplace); errors
        of Student's t by reweighting (Lange et al., "Robust statistical modeling using the t
        distribution", 1989); the misfit by the evidence (MacKay, "Bayesian interpolation", 1992).
    """

    def __init__(self, plans: StepPlans, alike: Array | None = None) -> None:
        self._plans = plans
        self._alike = np.zeros((len(plans), 0)) if alike is None else alike
        self._own = 1 - SHARED if self._alike.shape[1] else 1.0
        self._features, spreads = _features(plans)
        # Coefficient 0 is the logit of the overhead's share; the next ones give v, and those from
        # _end on what candidates that are alike deviate by.
        self._end = 1 + len(spreads)
        self._mean = np.zeros(self._end + self._alike.shape[1])
        self._mean[0] = OVERHEAD[0]
        self._variance = np.zeros(len(self._mean))
        self._variance[: self._end] = np.square([OVERHEAD[1], *spreads])
        self._forget()

    def _forget(self) -> None:
        self._mode = self._mean.copy()
        self._rows: Array = np.empty((0, len(self._mean)))
        self._gain: Array = np.empty((0, 0))
        self._choose(math.exp(MISFIT_PRIOR[0]))

    def _choose(self, misfit: float) -> None:
        self.misfit = misfit
        """Relative error of the model itself."""
        self._variance[self._end :] = SHARED * misfit**2

    def fit(self, runs: Sequence[Run], contrasts: Sequence[Contrast] = ()) -> None:
        """Fit the model to these runs alone, and to what is known of step types."""
        self._forget()
        if not runs:
            return
        given = self._evidence(runs, contrasts)
        weights = np.ones(len(given.noise))
        for _ in range(25):
            before = self._mode
            value, rows = self._linearised(given.counts, given.alike)
            target = np.append(given.log_times - value + rows @ self._mode, given.log_ratios)
            rows = np.concatenate([rows, given.contrasts])
            self._choose(self._most_likely_misfit(rows, target, given, weights))
            variances = (given.noise**2 + given.strays * self.misfit**2) / weights
            carried = rows * self._variance
            gain = np.asarray(np.linalg.inv(carried @ rows.T + np.diag(variances)), np.float64)
            mode = self._mean + carried.T @ gain @ (target - rows @ self._mean)
            # At most 1 at a time: exp is far from linear beyond that.
            step = mode - before
            moved = np.append(self._features @ step[1 : self._end], step[0])
            largest = max(1.0, float(np.abs(moved).max()))
            self._mode = before + step / largest
            self._rows, self._gain = rows, gain
            squares = self._residuals(given) ** 2 / (given.noise**2 + given.strays * self.misfit**2)
            weights = (FREEDOM + 1) / (FREEDOM + squares)
            if np.abs(self._mode - before).max() < 1e-6:
                break

    def _evidence(self, runs: Sequence[Run], contrasts: Sequence[Contrast]) -> _Evidence:
        positions = np.array([run.position for run in runs])
        between = np.zeros((len(contrasts), len(self._mean)))
        for row, contrast in zip(between, contrasts, strict=True):
            first, second = contrast.types
            row[1 : self._end] = self._features[first] - self._features[second]
        return _Evidence(
            counts=self._plans.counts[positions].toarray(),
            alike=self._alike[positions],
            log_times=np.array([run.log_time for run in runs]),
            contrasts=between,
            log_ratios=np.array([contrast.log_ratio for contrast in contrasts]),
            noise=np.array([run.noise for run in runs] + [known.noise for known in contrasts]),
            strays=np.repeat([self._own, 0.0], [len(runs), len(contrasts)]),
        )

    def _residuals(self, given: _Evidence) -> Array:
        by_runs = given.log_times - self._linearised(given.counts, given.alike)[0]
        return np.append(by_runs, given.log_ratios - given.contrasts @ self._mode)

    @property
    def step_log_times(self) -> Array:
        """Logarithm of the time of each step type, in units of a plain one's, `[types]`."""
        return np.asarray(self._features @ self._mode[1 : self._end])

    def predict(self) -> Prediction:
        """Predict the time of every plan."""
        values, spreads = [], []
        for start in range(0, len(self._plans), CHUNK):
            part = slice(start, start + CHUNK)
            value, rows = self._linearised(self._plans.counts[part], self._alike[part])
            values.append(value)
            spreads.append(np.sqrt(self._variances(rows) + self._own * self.misfit**2))
        return Prediction(np.concatenate(values), np.concatenate(spreads))

    def speeds(
        self, runs: Sequence[Run], contrasts: Sequence[Contrast] = ()
    ) -> tuple[Array, Array]:
        """Fit what is known and predict all candidates, measured ones by their own timings too.

        Returns:
            Expected logarithm of each speedup and the standard deviation of its error, `[N]`.
        """
        self.fit(runs, contrasts)
        predicted = self.predict()
        log_speedup, sd = -predicted.log_time, predicted.sd.copy()
        for run in runs:
            # The candidate's own timing corrects the misfit of the model.
            own = self._own * self.misfit**2
            kept = own / (own + run.noise**2)
            log_speedup[run.position] -= kept * (run.log_time + log_speedup[run.position])
            rest = sd[run.position] ** 2 - kept * own
            sd[run.position] = math.sqrt(max(rest, 0.0))
        return log_speedup, np.maximum(sd, 1e-6)

    def most_informative(
        self, positions: NDArray[np.int64], noise: float, wanted: NDArray[np.int64] | None = None
    ) -> int:
        """Return the candidate whose run would reduce the uncertainty most.

        Args:
            positions: Candidates that may be run.
            noise: Standard deviation of one run's log time.
            wanted: Candidates to predict well; None is `positions`.
        """
        wanted = positions if wanted is None else wanted
        thinned = positions[:: max(1, len(positions) // POOL)]
        aims = wanted[:: max(1, len(wanted) // POOL)]
        _, rows = self._linearised(self._plans.counts[thinned], self._alike[thinned])
        _, others = self._linearised(self._plans.counts[aims], self._alike[aims])
        shared = self._covariances(others, rows)
        learnt = (shared**2).sum(axis=0) / (self._variances(rows) + noise**2 + self.misfit**2)
        return int(thinned[np.argmax(learnt)])

    def _linearised(self, counts: Array | sparse.csr_array, alike: Array) -> tuple[Array, Array]:
        """Return log times and their derivatives by the coefficients, `[N]` and `[N, D]`.

        Args:
            counts: UNet calls of each type, `[N, types]`.
            alike: As of the model, of the same candidates.
        """
        overhead = 1 / (1 + math.exp(-self._mode[0]))
        times = np.exp(self.step_log_times) / self._plans.baseline_calls
        unet = np.asarray(counts @ times)
        total = overhead + (1 - overhead) * unet
        by_feature = np.asarray(counts @ (times[:, None] * self._features))
        by_feature *= (1 - overhead) / total[:, None]
        by_overhead = overhead * (1 - overhead) * (1 - unet) / total
        strayed = alike @ self._mode[self._end :]
        return np.log(total) + strayed, np.concatenate(
            [by_overhead[:, None], by_feature, alike], axis=1
        )

    def _variances(self, rows: Array) -> Array:
        """Return the posterior variance for each row of derivatives."""
        prior = (rows**2) @ self._variance
        if not len(self._rows):
            return np.asarray(prior)
        shared = (rows * self._variance) @ self._rows.T
        return np.asarray(np.maximum(prior - ((shared @ self._gain) * shared).sum(axis=1), 0.0))

    def _covariances(self, rows: Array, others: Array) -> Array:
        prior = (rows * self._variance) @ others.T
        if not len(self._rows):
            return np.asarray(prior)
        seen = self._variance * self._rows
        return np.asarray(prior - (rows @ seen.T) @ self._gain @ (seen @ others.T))

    def _most_likely_misfit(
        self, rows: Array, target: Array, given: _Evidence, weights: Array
    ) -> float:
        """Return the misfit that makes the evidence most likely."""
        effects, alike = rows[:, : self._end], rows[:, self._end :]
        explained = (effects * self._variance[: self._end]) @ effects.T
        error = target - rows @ self._mean
        squared = MISFITS[:, None] ** 2
        variances = (given.noise**2 + given.strays * squared) / weights
        covariances = explained + squared[:, :, None] * SHARED * (alike @ alike.T)
        covariances = covariances + variances[:, :, None] * np.eye(len(rows))
        # One factor per misfit; the determinant of a covariance is the square of its factor's.
        factors = np.linalg.cholesky(covariances)
        logarithms = 2 * np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
        squares = np.linalg.solve(covariances, np.tile(error[:, None], (len(MISFITS), 1, 1)))
        evidence = -0.5 * (logarithms + squares[:, :, 0] @ error)
        evidence -= 0.5 * ((np.log(MISFITS) - MISFIT_PRIOR[0]) / MISFIT_PRIOR[1]) ** 2
        return float(MISFITS[np.argmax(evidence)])


def _features(plans: StepPlans) -> tuple[Array, Array]:
    """Return the features of each step type, `[types, D]`, and their prior spreads, `[D]`."""
    amounts = [{effect.name: effect.amount for effect in step} for step in plans.types]
    names = sorted({name for step in amounts for name in step})
    columns: dict[tuple[str, ...], Array] = {}
    spreads: list[float] = []

    def add(key: tuple[str, ...], values: Sequence[float], spread: float) -> None:
        if any(values):
            columns[key] = np.array(values)
            spreads.append(spread)

    for name in names:
        here = [step.get(name, 0.0) for step in amounts]
        add((name,), here, EFFECT_SD)
        if len({amount for amount in here if amount}) > 1:
            add((name, "squared"), [amount**2 for amount in here], EFFECT_SD)
    for first, second in itertools.combinations(names, 2):
        both = [step.get(first, 0.0) * step.get(second, 0.0) for step in amounts]
        add((first, second), both, PAIR_SD)
    for number, step in enumerate(amounts):
        if step:
            own = np.zeros(len(amounts))
            own[number] = 1.0
            add(("type", str(number)), own.tolist(), TYPE_SD)
    if not columns:
        return np.zeros((len(amounts), 0)), np.zeros(0)
    return np.stack(list(columns.values()), axis=1), np.array(spreads)
