"""Plan which prompts go into which pipeline call and which calls are timed. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PROBED_CALLS = 2
"""Most calls of one measurement in which plain UNet calls are made for comparison."""


@dataclass(frozen=True)
class Batch:
    """The prompts of one pipeline call."""

    prompts: tuple[int, ...]
    """Indices into the part's prompts."""
    scored: int
    """How many of the images, from the front, are scored; the rest fill up the batch."""
    timed: bool
    """Whether it has the full size, so that its time is comparable."""


def plan_batches(prompts: range, batch_size: int) -> list[Batch]:
    """Cut prompts into batches.

    A smaller batch at the end is scored and never timed. If a part has fewer prompts than one
    batch, they are repeated to fill it.

    Args:
        prompts: Consecutive indices into a part's prompts.
        batch_size: Images per call.
    """
    if prompts.start == 0 and 0 < len(prompts) < batch_size:
        members = tuple(prompts[i % len(prompts)] for i in range(batch_size))
        return [Batch(members, len(prompts), timed=True)]
    batches = []
    for start in range(0, len(prompts), batch_size):
        members = tuple(prompts[start : start + batch_size])
        batches.append(Batch(members, len(members), timed=len(members) == batch_size))
    return batches


@dataclass(frozen=True)
class Step:
    """One batch in the order of measuring."""

    batch: Batch
    is_new: bool
    """Whether its images are still to be scored."""
    paired: bool
    """Whether the baseline is timed beside it."""
    baseline_first: bool
    """Order within a pair; it alternates so that neither side always has the warmer device."""
    probed: bool = False
    """Whether plain UNet calls are made in between, to compare the candidate's own with."""


def plan_steps(
    batches: list[Batch], pairs: int, turn: int = 0, probes: range = range(0)
) -> Iterator[Step]:
    """Yield the batches in the order of measuring.

    Full batches come first, the first `pairs` of them paired and those after them probed; they are
    repeated if there are fewer than asked for. Batches of another size come last, unpaired.

    Args:
        batches: As returned by `plan_batches`.
        pairs: Baseline calls to time beside the candidate's.
        turn: Pairs timed before these, whose alternation goes on.
        probes: From the least number of full batches to probe up to the most.
    """
    full = [batch for batch in batches if batch.timed]
    for call in range(max(len(full), pairs + probes.start) if full else 0):
        baseline_first = (turn + call) % 2 == 0
        is_probed = pairs <= call < pairs + probes.stop
        yield Step(
            full[call % len(full)], call < len(full), call < pairs, baseline_first, is_probed
        )
    for batch in batches:
        if not batch.timed:
            yield Step(batch, True, False, False)
