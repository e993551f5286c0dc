"""Score images, and tell a failing scorer from failing images."""

from __future__ import annotations

import math

import torch

from accel_search.errors import AccelSearchError, first_line
from accel_search.runtime.measuring.calls import Accounting
from accel_search.runtime.measuring.timing import timed
from accel_search.runtime.memory import is_out_of_memory
from accel_search.runtime.scoring.clip import ClipScorer


def try_to_score(
    scorer: ClipScorer,
    device: torch.device,
    accounting: Accounting,
    images: torch.Tensor,
    texts: list[str],
) -> tuple[list[float], str | None]:
    """Return scores and what is wrong with them, None if nothing is.

    Args:
        scorer: Scores the images.
        device: Where it does.
        accounting: Counts the seconds.
        images: `[B, 3, H, W]`, 0..1.
        texts: One per image.
    """
    try:
        scores, seconds = timed(lambda: scorer.score(images, texts), device)
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, AccelSearchError):
            raise
        return [], f"raised {first_line(error)}"
    accounting.scoring_seconds += seconds
    if len(scores) != len(texts):
        return scores, f"returned {len(scores)} scores for {len(texts)} images"
    odd = next((score for score in scores if not math.isfinite(score)), None)
    return scores, None if odd is None else f"returned {odd} as a score"
