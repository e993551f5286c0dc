"""The quality model: predict which candidates are within a bound from the few that were scored.

A Gaussian process with a linear and a nonlinear part. Its inputs are each parameter's place from
mild to harsh and the share of UNet calls under each effect. On its scale, 0 is no loss and 1 is the
bound; losses far beyond the bound are compressed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, stats

from accel_search.core.assessment import tail_size
from accel_search.core.trial import Goal, Measurement
from accel_search.search.step_plans import StepPlans

Array = NDArray[np.float64]

Used = Callable[[Measurement, Measurement], Array]
"""Returns, from a candidate's measurement and the baseline's, the loss on each prompt: 0 is none, 1
is the bound."""

LOSSLESS_PSNR = 50.0
"""Decibels at which no difference is visible."""
LEAST_ROOM = 0.005
"""Least loss that counts as 1, where a bound allows almost none."""
SHARED = 3.0
"""Weight of other candidates' spread beside a candidate's own, in prompts."""

PRIOR_SLOPE = 1.5
"""Prior loss of the harshest candidate, in scale units."""
LENGTH = (np.log(0.7), 0.7)
BEND = (0.0, 1.0)
OWN = (np.log(0.2), 0.7)
LINEAR = (np.log(0.5), 1.0)
"""Priors of the logarithms of the length scales, the spread of the nonlinear part, a candidate's
own spread and the slope of the linear part: mean and standard deviation."""
OFFSET = 0.3
"""Weight of the constant in the linear part, beside inputs from 0 to 1."""
NUGGET = 0.05
"""Part of a candidate's shift that others like it do not share."""
REFIT = 1.15
"""Growth of the number of scored candidates at which the parameters are fitted again."""


@dataclass(frozen=True)
class Scored:
    """A candidate that was scored on at least a few prompts."""

    position: int
    value: float
    """Its mean loss; 0 is none, 1 is the bound."""
    sd: float
    """Standard deviation of that, from the prompts it was not scored on."""


def bounds_of(goal: Goal) -> list[Used]:
    """Return the loss function of each bound of a goal: score, and others that are bounded."""

    def loss(own: Measurement, baseline: Measurement) -> Array:
        return _used(_lost(own, baseline), goal.max_score_loss, LEAST_ROOM)

    bounds: list[Used] = [loss]
    if goal.min_psnr is not None:
        most = LOSSLESS_PSNR - goal.min_psnr
        bounds.append(lambda own, _: _used(LOSSLESS_PSNR - np.asarray(own.psnr), most, 1.0))
    if goal.min_ssim is not None:
        room = 1 - goal.min_ssim
        bounds.append(lambda own, _: _used(1 - np.asarray(own.ssim), room, LEAST_ROOM))
    if goal.max_tail_loss is not None:
        allowed = goal.max_tail_loss
        bounds.append(lambda own, base: _used(_tail(_lost(own, base)), allowed, LEAST_ROOM))
    return bounds


def _lost(own: Measurement, baseline: Measurement) -> Array:
    """Return the loss on each prompt; its mean is the score loss."""
    before = np.asarray(baseline.scores[: len(own.scores)])
    return np.asarray((before - np.asarray(own.scores)) / before.mean())


def _tail(lost: Array) -> Array:
    """Return each prompt's part of the loss over the worst tenth; its mean is the tail loss."""
    worst = np.argsort(-lost, kind="stable")[: tail_size(len(lost))]
    tail = np.zeros_like(lost)
    tail[worst] = lost[worst] * len(lost) / len(worst)
    return tail


def _used(lost: Array, most: float, least_room: float) -> Array:
    return np.asarray(1 + (lost - most) / max(most, least_room))


def scored(
    measured: Sequence[tuple[int, Measurement]], baseline: Measurement, used: Used
) -> list[Scored]:
    """Return each measured candidate's mean loss and its uncertainty.

    Args:
        measured: Positions and measurements, on all prompts or the first of them.
        baseline: The baseline's, on all prompts.
        used: Loss function of the bound.
    """
    values = [used(measurement, baseline) for _, measurement in measured]
    counts = np.array([len(losses) for losses in values])
    # A single prompt does not tell the spread: it is taken to be as large as the loss.
    squares = [losses.var(ddof=1) if len(losses) > 1 else losses.mean() ** 2 for losses in values]
    spreads = np.array(squares)
    # The spread of a few prompts is uncertain, and they may all lose less than others do: mix it
    # with the typical one of candidates that were scored on more.
    typical = float(np.median(spreads[counts >= counts.max() / 2])) if values else 0.0
    spreads = ((counts - 1) * spreads + SHARED * typical) / (counts - 1 + SHARED)
    errors = np.sqrt(spreads * (1 - counts / len(baseline.scores)) / np.maximum(counts, 1))
    means = np.array([losses.mean() for losses in values])
    whole = [known for _, known in measured if len(known.scores) == len(baseline.scores)]
    losses_of_whole = np.array([used(known, baseline).mean() for known in whole])
    for count in set(counts.tolist()) - {len(baseline.scores)} if whole else ():
        # All were scored on the same prompts: where the first of them lose less than all do, they
        # do of every candidate.
        first = [used(_first(known, count), baseline).mean() for known in whole]
        missed = losses_of_whole - np.array(first)
        here = counts == count
        means[here] += missed.sum() / (len(whole) + 1)
        squares = (SHARED * errors[here] ** 2 + len(whole) * missed.var()) / (SHARED + len(whole))
        errors[here] = np.sqrt(squares)
    return [
        Scored(position, float(mean), float(error))
        for (position, _), mean, error in zip(measured, means, errors, strict=True)
    ]


def _first(measurement: Measurement, count: int) -> Measurement:
    """Return a measurement as it was after its first prompts."""
    names = ("scores", "psnr", "ssim")
    return replace(measurement, **{name: getattr(measurement, name)[:count] for name in names})


def inputs(coordinates: Array, plans: StepPlans) -> Array:
    """Return the model's inputs for each candidate, `[N, D]`, from 0 to 1.

    Args:
        coordinates: Place of each parameter among its values, `[N, parameters]`.
        plans: Step plans of the same candidates.
    """
    names = sorted({effect.name for step in plans.types for effect in step})
    amounts = np.zeros((len(plans.types), len(names)))
    for row, step in enumerate(plans.types):
        for effect in step:
            amounts[row, names.index(effect.name)] = effect.amount
    shares = (plans.counts @ amounts) / plans.baseline_calls
    columns = np.concatenate([coordinates, shares], axis=1)
    least, most = columns.min(axis=0), columns.max(axis=0)
    varies = most > least
    return np.asarray((columns[:, varies] - least[varies]) / (most - least)[varies])


def to_scale(values: Array) -> Array:
    """Compress values far beyond the bound; 1 becomes about 0.88."""
    return np.asarray(np.arcsinh(values))


class QualityModel:
    """Predicts how likely each candidate is within the bound.

    Args:
        points: As `inputs` returned them, `[N, D]`.

    Source:
        Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), algorithm 2.1;
        Matérn kernel of order 5/2, a length scale for each input; maximum a posteriori.
    """

    def __init__(self, points: Array) -> None:
        self._points = points
        self._mean = PRIOR_SLOPE * points.mean(axis=1) if points.shape[1] else np.zeros(len(points))
        count = points.shape[1]
        self._center = np.array([*[LENGTH[0]] * count, BEND[0], OWN[0], LINEAR[0]])
        self._width = np.array([*[LENGTH[1]] * count, BEND[1], OWN[1], LINEAR[1]])
        self._theta = self._center.copy()
        self._fitted = 0

    def within(
        self, scored: Sequence[Scored], shift: Array | float = 0.0, error: float = 0.0
    ) -> Array:
        """Return the probability that each candidate is within the bound, `[N]`.

        Args:
            scored: Candidates that were scored.
            shift: How far within the bound each has to be to be so on other prompts too, as likely
                as not, `[N]`; 1 is the bound.
            error: Standard deviation of its loss there, in the same unit.
        """
        mean, sd = self.posterior(scored)
        own = stats.norm.cdf((np.arcsinh(1.0) - mean) / sd)
        if not np.any(shift) and not error:
            return np.asarray(own)
        limit = 1 - shift
        slope = 1 / np.sqrt(1 + limit**2)  # Of the scale.
        total = np.sqrt(sd**2 + (slope * error) ** 2)
        return np.asarray(np.minimum(own, stats.norm.cdf((np.arcsinh(limit) - mean) / total)))

    def spread_out(self, rows: Sequence[int], values: Sequence[float], mean: float) -> Array:
        """Return what is known of some candidates for each, by how alike they are, `[N]`.

        Args:
            rows: Positions of those of which it is known, `[K]`.
            values: What is known of them, `[K]`.
            mean: What holds where none is alike.
        """
        if not rows:
            return np.full(len(self._points), mean)
        points = self._points[rows]
        among = self._bend(points, points) + NUGGET * np.eye(len(rows))
        weights = linalg.solve(among, np.asarray(values) - mean, assume_a="pos")
        return np.asarray(mean + self._bend(self._points, points) @ weights)

    def posterior(self, scored: Sequence[Scored]) -> tuple[Array, Array]:
        """Return the mean and standard deviation of each candidate's value, on the scale, `[N]`."""
        points = self._points
        prior_sd = np.sqrt(self._own_variance(points))
        if not scored:
            return self._mean, prior_sd
        rows = np.array([candidate.position for candidate in scored])
        raw = np.array([candidate.value for candidate in scored])
        # Errors shrink with the scale; a wide one reaches down to where it shrinks less.
        sds = np.array([candidate.sd for candidate in scored])
        noise = to_scale(np.abs(raw)) - to_scale(np.abs(raw) - sds)
        error = to_scale(raw) - self._mean[rows]
        if len(scored) > REFIT * self._fitted:
            self._fit(points[rows], error, noise)
            self._fitted = len(scored)
        own = np.exp(2 * self._theta[-2])
        factor = linalg.cholesky(self._noisy(points[rows], noise, self._theta), lower=True)
        weights = linalg.cho_solve((factor, True), error)
        across = self._kernel(points, points[rows], self._theta)
        # A candidate's own term correlates with its own samples only.
        across[rows, np.arange(len(rows))] += own
        mean = self._mean + across @ weights
        explained = linalg.solve_triangular(factor, across.T, lower=True)
        variance = self._own_variance(points) - (explained**2).sum(axis=0)
        return mean, np.sqrt(np.maximum(variance, 1e-9))

    def _fit(self, points: Array, error: Array, noise: Array) -> None:
        def loss(theta: Array) -> float:
            try:
                factor = linalg.cholesky(self._noisy(points, noise, theta), lower=True)
            except linalg.LinAlgError:
                return 1e10
            half = linalg.solve_triangular(factor, error, lower=True)
            prior = (((theta - self._center) / self._width) ** 2).sum()
            return float(0.5 * (half @ half + prior) + np.log(np.diag(factor)).sum())

        bounds = [(-4.0, 3.0)] * len(self._center)
        self._theta = optimize.minimize(
            loss, self._theta, method="L-BFGS-B", bounds=bounds, options={"maxiter": 30}
        ).x

    def _noisy(self, points: Array, noise: Array, theta: Array) -> Array:
        own = np.exp(2 * theta[-2]) + 1e-9
        return np.asarray(self._kernel(points, points, theta) + np.diag(noise**2 + own))

    def _bend(self, left: Array, right: Array) -> Array:
        """Return how alike candidates are, from 0 to 1."""
        return _matern(left, right, np.exp(self._theta[:-3]))

    def _kernel(self, left: Array, right: Array, theta: Array) -> Array:
        bend = np.exp(2 * theta[-3]) * _matern(left, right, np.exp(theta[:-3]))
        return np.asarray(bend + np.exp(2 * theta[-1]) * (left @ right.T + OFFSET))

    def _own_variance(self, points: Array) -> Array:
        theta = self._theta
        linear = np.exp(2 * theta[-1]) * ((points**2).sum(axis=1) + OFFSET)
        return np.asarray(np.exp(2 * theta[-3]) + np.exp(2 * theta[-2]) + linear)


def _matern(left: Array, right: Array, scale: Array) -> Array:
    scaled_left, scaled_right = left / scale, right / scale
    squares = (
        (scaled_left**2).sum(1)[:, None]
        + (scaled_right**2).sum(1)[None]
        - 2 * scaled_left @ scaled_right.T
    )
    distance = np.sqrt(5 * np.maximum(squares, 0.0))
    return np.asarray((1 + distance + distance**2 / 3) * np.exp(-distance))
