"""Racing: how many prompts a candidate is scored on before it may be given up.

A candidate is scored on a few prompts, then on twice as many, and so on to all of them; after each
look but the last it is given up if it is clear by then that its loss over all prompts will be
beyond the bound. Looking several times gives chance several occasions, so the budget for wrongly
giving up a candidate that is within the bound is spread over the looks. An early look never says
that a candidate passes: that takes all prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

FALSE_REJECTION = 0.025
"""Greatest probability, over all looks, of giving up a candidate that is within the bound."""

LOOKS = 5
"""Most looks before the last one: each may spend a fifth of `FALSE_REJECTION`."""


def rungs(prompts: int, chunk: int) -> tuple[int, ...]:
    """Return the numbers of prompts at which a race is looked at, ascending, the last being all.

    Args:
        prompts: Prompts that a candidate is fully scored on.
        chunk: Prompts that can be scored at a time; every rung but the last is a multiple.
    """
    rungs = [prompts]
    while len(rungs) <= LOOKS:
        half = rungs[-1] / 2
        # Rounded to whole chunks, at least one; a rung that would not be smaller is none.
        rung = max(1, round(half / chunk)) * chunk
        if rung >= rungs[-1]:
            break
        rungs.append(rung)
    return tuple(reversed(rungs))


def next_rung(prompts: int, chunk: int, scored: int) -> int:
    """Return the number of prompts at which a race that stands at `scored` is looked at next."""
    return next(rung for rung in rungs(prompts, chunk) if rung > scored)


def is_lost(
    baseline: Sequence[float], candidate: Sequence[float], bound: float, prompts: int
) -> bool:
    """Return whether a loss is beyond the bound, as far as an early look may say so.

    Args:
        baseline: Scores of the first `[n]` prompts, fewer than `prompts`.
        candidate: Scores of the same prompts, `[n]`.
        bound: Largest loss of score allowed, a fraction.
        prompts: Prompts that a candidate is fully scored on.

    Source:
        A one-sided t interval of the mean of candidate − (1 − bound) × baseline, whose sign is
        the verdict, for the mean over all prompts: drawn without replacement (Cochran, "Sampling
        Techniques", 1977, section 2.6), at an error divided by the number of looks (Bonferroni;
        Lan and DeMets, "Discrete sequential boundaries for clinical trials", 1983, for spending an
        error over looks). Losses are skewed to the right, which makes this interval's lower end
        conservative.
    """
    short = (1 - bound) * np.asarray(baseline, float) - np.asarray(candidate, float)
    count = len(short)
    if count < 3 or count >= prompts:
        return False
    spread = float(short.std(ddof=1)) * math.sqrt((1 - count / prompts) / count)
    limit = float(stats.t.ppf(1 - FALSE_REJECTION / LOOKS, count - 1))
    # Losses that are all alike and exactly at the bound differ from it by rounding alone.
    return float(short.mean()) - limit * spread > 1e-9 * abs(float(np.mean(baseline)))
