"""The conformance table: every combination × pipeline × scheduler, printed after the tests.

Each cell renders at a step count and a batch size of its own, 20 and 25 steps and 1 and 2 images in
turn, some 50 steps and 5 images; `-m full` goes through all of them in every cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from accel_search.accelerators.compose import apply_candidate
from tests.support.tiny import (
    KINDS,
    SCHEDULERS,
    STEPS,
    assert_same,
    difference,
    make_scheduler,
    render,
    snapshot,
    tgate_params,
    upstream,
)

DEEPCACHE: dict[str, Any] = {"deepcache": {"cache_interval": 3, "cache_branch_id": 1}}
TOME: dict[str, Any] = {"tome": {"ratio": 0.5, "max_downsample": 2}}
TGATE: dict[str, Any] = {"tgate": tgate_params(10, 5, 3, 2)}
COMBINATIONS = [
    DEEPCACHE,
    TOME,
    TGATE,
    {"steps": {"num_inference_steps": 12}},
    DEEPCACHE | TGATE,
    DEEPCACHE | TOME,
    TGATE | TOME,
    DEEPCACHE | TGATE | TOME,
]
NO_UPSTREAM = ({"tgate", "tome"}, {"deepcache", "tgate", "tome"})
"""Combinations that the packages get wrong or cannot make: nothing to be equal to."""
SIZES = [(20, 2), (25, 1), (20, 1), (20, 1), (25, 2), (20, 1)]
"""Step counts and images a call."""
LARGE = {(0, 1): (50, 1), (4, 2): (20, 5), (4, 3): (50, 1)}
"""Row and column of the cells that take long; all the others at these sizes with `-m full`."""

PLAIN: dict[tuple[str, str], tuple[Any, torch.Tensor]] = {}
"""Schedulers, each of which has been through a bare call, and the latents of that call."""

CELLS = [
    (candidate, kind, scheduler, *LARGE.get((row, column), SIZES[(row + column) % len(SIZES)]))
    for row, candidate in enumerate(COMBINATIONS)
    for column, (kind, scheduler) in enumerate(itertools.product(KINDS, SCHEDULERS))
]


def name_of(candidate: dict[str, Any]) -> str:
    return "+".join(sorted(candidate))


def largest_difference(
    pipe: Any, kind: str, scheduler: str, candidate: dict[str, Any], steps: int, images: int
) -> float | None:
    """Return how far our latents are from the package's; None where there is none to compare."""
    if set(candidate) in NO_UPSTREAM:
        return None
    batch = tuple(range(images))
    with apply_candidate(pipe, candidate):
        ours = render(pipe, batch, steps)
    if "steps" in candidate:
        fewer = candidate["steps"]["num_inference_steps"]
        return difference(ours, render(pipe, batch, fewer))
    return difference(ours, upstream(kind, scheduler, candidate, steps, batch))


def bare(pipe: Any, kind: str, scheduler: str) -> torch.Tensor:
    """Give the pipeline its scheduler, and return the latents of a bare call."""
    # A new scheduler would get its first attributes in the call that is looked at.
    if (kind, scheduler) not in PLAIN:
        pipe.scheduler = make_scheduler(scheduler)
        PLAIN[kind, scheduler] = pipe.scheduler, render(pipe, (0,), steps=STEPS)
    pipe.scheduler, latents = PLAIN[kind, scheduler]
    return latents


@pytest.mark.parametrize(
    ("candidate", "kind", "scheduler", "steps", "images"),
    CELLS,
    ids=[f"{name_of(cell[0])}-{'-'.join(map(str, cell[1:]))}" for cell in CELLS],
)
def test_cell(
    candidate: dict[str, Any],
    kind: str,
    scheduler: str,
    steps: int,
    images: int,
    pipes: dict[str, Any],
    record_property: Callable[[str, object], None],
) -> None:
    """Exact, reversible and deterministic, at one cell of the table."""
    pipe = pipes[kind]
    plain = bare(pipe, kind, scheduler)
    gap = largest_difference(pipe, kind, scheduler, candidate, steps, images)
    before = snapshot(pipe)
    with apply_candidate(pipe, candidate):
        first, second = render(pipe, (0,), steps=STEPS), render(pipe, (0,), steps=STEPS)
    assert_same(before, snapshot(pipe))
    is_back = torch.equal(render(pipe, (0,), steps=STEPS), plain)
    is_deterministic = torch.equal(first, second)
    record_property(
        "conformance",
        {
            "row": name_of(candidate),
            "column": (kind, scheduler),
            "difference": gap,
            "reversible": is_back,
            "deterministic": is_deterministic,
            "size": f"{steps} × {images}",
        },
    )
    assert gap in (None, 0.0)
    assert is_back and is_deterministic


@pytest.mark.full
@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("steps", [20, 25, 50])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("candidate", COMBINATIONS[:6], ids=name_of)
def test_exact_everywhere(
    candidate: dict[str, Any],
    kind: str,
    scheduler: str,
    steps: int,
    images: int,
    pipes: dict[str, Any],
) -> None:
    pipe = pipes[kind]
    pipe.scheduler = make_scheduler(scheduler)
    assert largest_difference(pipe, kind, scheduler, candidate, steps, images) == 0
