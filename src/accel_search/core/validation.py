"""Validating a winner on held-out prompts: which candidate first, on how many prompts, how surely.

Of many candidates scored on a few prompts, the fastest that seems within the bound is the luckiest.
So candidates are tried in the order of their speed times the probability that they truly are within
it; each is scored on as many held-out prompts as it takes to tell, up to a stated most; and one is
a winner once it is within the bound with a probability of `SURE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

SURE = 0.95
"""Probability of being within the bound at which a candidate is validated."""
LIKELY = 0.5
"""Least probability at which one is named where none is validated."""
HOPELESS = 0.3
"""Probability below which no further prompts are spent on a candidate."""
MOST = 4
"""Most held-out prompts, as a multiple of those that a candidate is first tried on."""
MAX_TRIED = 8
"""Candidates tried before the search settles for one that is likely to be within the bound."""
SHARED = 8.0
"""Prompts' worth of belief in the spread of other candidates' losses beside a candidate's own."""


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


def log_chances(candidates: Sequence[Scores], tried: Sequence[Tried], bound: float) -> Array:
    """Return the log probability that each candidate truly is within the bound, `[N]`.

    By its own scores on the search's prompts. Losses of several candidates on the same prompts go
    together: where those that were tried lost more on held-out prompts than on the search's, so
    will the others, and they are moved by as much of the difference as is no chance.

    Args:
        candidates: Scores on the search's prompts.
        tried: Candidates tried so far.
        bound: Largest loss of score allowed, a fraction.
    """
    if not candidates:
        return np.zeros(0)
    losses, errors = _losses_of(candidates)
    moved = 0.0
    if tried:
        before, before_errors = _losses_of([each.search for each in tried])
        after, after_errors = _losses_of([each.held_out for each in tried])
        weights = 1 / np.maximum(before_errors**2 + after_errors**2, 1e-12)
        own = 1 / max(float(np.median(errors)) ** 2, 1e-12)
        moved = float((weights * (after - before)).sum() / (weights.sum() + own))
    return np.asarray(special.log_ndtr((bound - losses - moved) / np.maximum(errors, 1e-9)))


def _losses_of(candidates: Sequence[Scores]) -> tuple[Array, Array]:
    """Return the loss of each and its standard error, which leans on that of all: `[N]` each."""
    pairs = [_linearised(scores.baseline, scores.candidate) for scores in candidates]
    counts = np.array([len(deviations) for _, deviations in pairs], float)
    own = np.array([dev.var(ddof=1) if len(dev) > 1 else 0.0 for _, dev in pairs])
    free = counts - 1
    variances = (free * own + SHARED * float(np.median(own))) / (free + SHARED)
    return np.array([loss for loss, _ in pairs]), np.sqrt(variances / counts)


def _linearised(baseline: Sequence[float], candidate: Sequence[float]) -> tuple[float, Array]:
    """Return the relative loss of mean score, and each prompt's deviation from it."""
    before, after = np.asarray(baseline, float), np.asarray(candidate, float)
    loss = 1 - float(after.mean() / before.mean())
    return loss, ((1 - loss) * before - after) / before.mean()
