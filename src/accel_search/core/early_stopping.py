"""Early stopping: score a candidate in stages and give it up once its loss is clearly too large.

A candidate is scored on a few prompts, then on twice as many, and so on to all of them. After each
stage but the last it is given up if it is clear by then that its loss over all prompts will be
beyond the bound. Several stages give chance several occasions, so the error budget for giving up a
candidate that is within the bound is divided among them, by their prompts. A candidate passes only
on all prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from accel_search.core.intervals import USUAL_SKEWNESS, skewness_of

FALSE_REJECTION = 0.025
"""Greatest probability, over all stages, of giving up a candidate that is within the bound."""

EARLY_STAGES = 5
"""Most stages before the last one."""

UNSEEN_GAINS = 0.4
"""Part by which the limit is stricter for a unit of skewness that is missing."""

SEEN_GAINS = 4.0
"""The same for a unit of skewness to the left, over the root of the number of prompts."""


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
        Techniques", 1977, section 2.6), at an error divided among the stages, each of which has
        half the next one's (Bonferroni; Lan and DeMets, "Discrete sequential boundaries for
        clinical trials", 1983, for spending an error over stages). The limit is stricter where the
        losses are skewed to the left, or may be, as in `score_loss`. Where few prompts gain much,
        all others lose nearly alike and the stages so far hold none of the few, nothing shows it,
        and the candidate is given up: recorded candidates that lose over 0.5 % are not like that
        (tests/core/test_early_stopping.py), and `hides_gains` watches for it.
    """
    short = (1 - bound) * np.asarray(baseline, float) - np.asarray(candidate, float)
    count = len(short)
    if count < 3 or count >= prompts:
        return False
    mean = float(short.mean())
    spread = float(short.std(ddof=1)) * math.sqrt((1 - count / prompts) / count)
    limit = float(stats.t.ppf(1 - FALSE_REJECTION * count / prompts, count - 1))
    skewness = skewness_of(short - mean)
    seen = -SEEN_GAINS * skewness / math.sqrt(count)
    limit *= 1 + max(seen, UNSEEN_GAINS * (USUAL_SKEWNESS - abs(skewness)), 0.0)
    # Losses that are all alike and exactly at the bound differ from it by rounding alone.
    return mean - limit * spread > 1e-9 * abs(float(np.mean(baseline)))


def hides_gains(baseline: Sequence[float], candidates: Sequence[Sequence[float]]) -> bool:
    """Return whether losses are of the shape on which `is_lost` errs: few prompts gain much.

    Where one prompt in ten gains much, over 80 % of candidates scored on 32 prompts look like that;
    of six recorded ones together, at most 1 % of T-GATE's and 16 % of DeepCache's do
    (tests/core/test_early_stopping.py).

    Args:
        baseline: Scores of all prompts of the search, `[N]`.
        candidates: Scores of the candidates that were scored on all of them, `[N]` each.
    """
    before = np.asarray(baseline, float)
    skewness = []
    for scores in candidates:
        short = before - np.asarray(scores, float)
        skewness.append(skewness_of(short - short.mean()))
    return bool(skewness) and float(np.median(skewness)) < -USUAL_SKEWNESS
