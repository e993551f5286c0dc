"""Validating a winner on held-out prompts: which candidate first, on how many prompts, how surely.

Of many candidates scored on a few prompts, the fastest that seems within the bound is the luckiest.
So candidates are tried in the order of their speed less the cost of the tries that a success will
take; each is scored on as many held-out prompts as it takes to tell, up to a stated most; and one
is a winner once it is within the bound with a probability of `SURE`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import special

from accel_search.core.trial import SURE

Array = NDArray[np.float64]

LIKELY = 0.5
"""Least probability at which one is named where none is validated."""
MOST = 4
"""Most held-out prompts, as a multiple of those that a candidate is first tried on."""
MAX_TRIED = 8
"""Candidates tried before the search settles for one that is likely to be within the bound."""
COST = 0.01
"""Speed, as a fraction, that a try on held-out prompts is worth."""
SHARED = 8.0
"""Prompts' worth of belief in the spread of other candidates' losses beside a candidate's own."""
MOST_SHIFT = 0.5
"""Largest part of the bound by which all candidates are expected to lose more than on the search's
prompts: those tried may be unlucky together, and mild candidates lose little anywhere."""
LARGE = 50.0
"""Logarithm that counts as without end."""
OWN = 0.1
"""Least share of a loss's variance that no other candidate's loss tells of."""


def stages(first: int, most: int) -> tuple[int, ...]:
    """Return the numbers of held-out prompts at which a candidate is judged: doubling, up to all.

    Args:
        first: Prompts of the first stage; 0 where there are none.
        most: All held-out prompts.
    """
    counts = [first] if first else []
    while counts and counts[-1] < most:
        counts.append(min(2 * counts[-1], most))
    return tuple(counts)


@dataclass(frozen=True)
class Scores:
    """Scores of a candidate and of the baseline on the same prompts, in prompt order, `[N]`."""

    baseline: Sequence[float]
    candidate: Sequence[float]


@dataclass(frozen=True)
class Tried:
    """A candidate that was tried on held-out prompts."""

    search: Scores
    held_out: Scores


@dataclass(frozen=True)
class Outlook:
    """What held-out prompts will say of candidates, by all that is known."""

    log_chances: Array
    """Log probability that each passes there, `[N]`."""
    shift: float = 0.0
    """How far within the bound a candidate must be on the search's prompts to pass as likely as
    not."""
    error: float = 0.0
    """Standard deviation of its loss on held-out prompts, around that on the search's."""
    shifts: Array = field(default_factory=lambda: np.zeros(0))
    """`shift` of each one that was scored, in the order of the candidates, then of those tried;
    `shift` itself is that of one unlike all of them."""


def foresee(
    candidates: Sequence[Scores], tried: Sequence[Tried], bound: float, most: int
) -> Outlook:
    """Predict losses on held-out prompts from those on the search's prompts.

    Losses of two candidates on the same prompts are wrong together, as far as their losses on each
    prompt are correlated. So a candidate that lost more on held-out prompts than on the search's
    tells of the others like it, and in part of all.

    Args:
        candidates: Scores on the search's prompts, as many for each.
        tried: Candidates tried so far.
        bound: Largest loss of score allowed, a fraction.
        most: All held-out prompts; 0 where there are none.

    Source:
        Best linear prediction (kriging): Rasmussen and Williams, "Gaussian Processes for Machine
        Learning" (2006), equation 2.19.
    """
    searched = [*candidates, *(known.search for known in tried)]
    if not searched:
        return Outlook(np.zeros(0))
    linear = [_linearised(scores) for scores in searched]
    losses = np.array([loss for loss, _ in linear])
    deviations = np.array([deviation for _, deviation in linear])
    prompts = deviations.shape[1]
    spreads = _spreads(deviations, losses)
    per_prompt = 1 / prompts + (1 / most if most else 0.0)
    shifts = np.zeros(len(searched))
    variances = spreads**2 * per_prompt
    if tried:
        norms = np.maximum(np.linalg.norm(deviations, axis=1), 1e-12)
        unit = deviations / norms[:, None]
        covariance = unit @ unit.T * np.outer(spreads, spreads)
        rows = slice(len(candidates), None)
        sizes = np.array([len(known.held_out.candidate) for known in tried])
        # The held-out prompts of one are the first of another's.
        among = covariance[rows, rows] * (1 / prompts + 1 / np.maximum.outer(sizes, sizes))
        among[np.diag_indices(len(tried))] *= 1 + OWN
        across = covariance[:, rows] * per_prompt
        after = np.array([_linearised(known.held_out)[0] for known in tried])
        weights = np.linalg.solve(among + 1e-12 * np.eye(len(tried)), across.T)
        shifts = (after - losses[rows]) @ weights
        variances = np.maximum(variances - (across.T * weights).sum(axis=0), OWN * variances)
    errors = np.maximum(np.sqrt(variances), 1e-9)
    # To pass, a candidate has to be this far within the bound.
    margins = special.ndtri(SURE) * spreads / math.sqrt(most) if most else np.zeros(len(spreads))
    chances = special.log_ndtr((bound - losses - shifts - margins) / errors)[: len(candidates)]
    shift = min(float(shifts.mean()), MOST_SHIFT * bound) + float(margins.mean())
    error = float(np.sqrt(variances.mean()))
    return Outlook(np.asarray(chances), shift, error, shifts + margins)


def priority(log_speedup: float | Array, log_chance: float | Array) -> Array:
    """Return the log speedup for which one would stop rather than try a candidate; of each of many.

    Trying in the order of this is best where each try has a cost and one ends at the first success.

    Source:
        Reservation prices: Weitzman, "Optimal search for the best alternative" (1979).
    """
    tries = np.exp(np.minimum(-log_chance, LARGE))
    return np.asarray(log_speedup - COST * tries)


def worth_of(candidates: Sequence[tuple[float, float]], otherwise: float) -> float:
    """Return the expected log speedup of trying candidates by priority until one passes.

    Args:
        candidates: Log speedup, and log probability of passing, of each.
        otherwise: What is left if none passes.
    """
    worth = otherwise
    order = sorted(candidates, key=lambda known: priority(*known), reverse=True)
    for log_speedup, log_chance in reversed(order[:MAX_TRIED]):
        chance = math.exp(log_chance)
        worth = chance * max(log_speedup, otherwise) + (1 - chance) * worth
    return worth


def reach_of(
    candidates: Sequence[tuple[float, float]], log_speedups: Array, log_chances: Array
) -> Array:
    """Return the probability that others would be tried: that all before them fail, `[N]`.

    Args:
        candidates: Log speedup, and log probability of passing, of each that may be tried now.
        log_speedups: Of the others, `[N]`.
        log_chances: Of the others, `[N]`.
    """
    order = sorted(candidates, key=lambda known: priority(*known), reverse=True)[:MAX_TRIED]
    fails = np.cumprod([1.0, *(-math.expm1(log_chance) for _, log_chance in order)])
    fails[MAX_TRIED:] = 0.0
    before = np.searchsorted(
        [-priority(*known) for known in order], -priority(log_speedups, log_chances)
    )
    return np.asarray(fails[before])


def _spreads(deviations: Array, losses: Array) -> Array:
    """Return each candidate's spread over prompts, which leans on that of all: `[N]`.

    A single prompt does not tell it: it is taken to be as large as the loss.
    """
    free = deviations.shape[1] - 1
    own = deviations.var(axis=1, ddof=1) if free else losses**2
    return np.asarray(np.sqrt((free * own + SHARED * float(np.median(own))) / (free + SHARED)))


def _linearised(scores: Scores) -> tuple[float, Array]:
    """Return the relative loss of mean score, and each prompt's deviation from it."""
    before, after = np.asarray(scores.baseline, float), np.asarray(scores.candidate, float)
    loss = 1 - float(after.mean() / before.mean())
    return loss, ((1 - loss) * before - after) / before.mean()
