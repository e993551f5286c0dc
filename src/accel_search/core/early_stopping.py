"""Early stopping: score a candidate in stages and give it up once its loss is clearly too large.

A candidate is scored on a few prompts, then on twice as many, and so on to all of them. After each
stage but the last it is given up if it is clear by then that its loss over all prompts will be
beyond the bound. Several stages give chance several occasions, so the error budget for giving up a
candidate that is within the bound is divided among them. A candidate passes only on all prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

FALSE_REJECTION = 0.025
"""Greatest probability, over all stages, of giving up a candidate that is within the bound."""

EARLY_STAGES = 5
"""Most stages before the last one: each may spend a fifth of `FALSE_REJECTION`."""


def stages(prompts: int, chunk: int) -> tuple[int, ...]:
    """Return the number of prompts scored by the end of each stage, ascending to all of them.

    Args:
        prompts: Prompts that a candidate is fully scored on.
        chunk: Prompts that can be scored at a time; every stage but the last is a multiple.
    """
    stages = [prompts]
    while len(stages) <= EARLY_STAGES:
        half = stages[-1] / 2
        # Rounded to whole chunks, at least one.
        stage = max(1, round(half / chunk)) * chunk
        if stage >= stages[-1]:
            break
        stages.append(stage)
    return tuple(reversed(stages))


def next_stage(prompts: int, chunk: int, scored: int) -> int:
    """Return the number of prompts at which the stage after `scored` prompts ends."""
    return next(stage for stage in stages(prompts, chunk) if stage > scored)


def is_lost(
    baseline: Sequence[float], candidate: Sequence[float], bound: float, prompts: int
) -> bool:
    """Return whether a loss is clearly beyond the bound after an early stage.

    Args:
        baseline: Scores of the first `[n]` prompts, fewer than `prompts`.
        candidate: Scores of the same prompts, `[n]`.
        bound: Largest loss of score allowed, a fraction.
        prompts: Prompts that a candidate is fully scored on.

    Source:
        A one-sided t interval of the mean of candidate − (1 − bound) × baseline, whose sign is
        the verdict, for the mean over all prompts: drawn without replacement (Cochran, "Sampling
        Techniques", 1977, section 2.6), at an error divided by the number of stages (Bonferroni;
        Lan and DeMets, "Discrete sequential boundaries for clinical trials", 1983, for spending an
        error over stages). Losses are skewed to the right, which makes this interval's lower end
        conservative.
    """
    short = (1 - bound) * np.asarray(baseline, float) - np.asarray(candidate, float)
    count = len(short)
    if count < 3 or count >= prompts:
        return False
    spread = float(short.std(ddof=1)) * math.sqrt((1 - count / prompts) / count)
    limit = float(stats.t.ppf(1 - FALSE_REJECTION / EARLY_STAGES, count - 1))
    # Losses that are all alike and exactly at the bound differ from it by rounding alone.
    return float(short.mean()) - limit * spread > 1e-9 * abs(float(np.mean(baseline)))
