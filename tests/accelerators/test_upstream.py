"""Images equal, bit for bit, those that the packages make: points and edges of each space.

Schedulers, step counts and batch sizes are gone through in test_table.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from accel_search.accelerators.compose import apply_candidate
from tests.support.tiny import KINDS, difference, make_scheduler, render, tgate_params, upstream


def deepcache(interval: int, branch: int) -> dict[str, Any]:
    return {"deepcache": {"cache_interval": interval, "cache_branch_id": branch}}


def tgate(*values: int) -> dict[str, Any]:
    return {"tgate": tgate_params(*values)}


def tome(ratio: float, max_downsample: int) -> dict[str, Any]:
    return {"tome": {"ratio": ratio, "max_downsample": max_downsample}}


def assert_equals_upstream(
    pipe: Any, kind: str, scheduler: str, candidate: dict[str, Any], **options: Any
) -> None:
    pipe.scheduler = make_scheduler(scheduler)
    with apply_candidate(pipe, candidate):
        ours = render(pipe, **options)
    assert difference(ours, upstream(kind, scheduler, candidate, **options)) == 0


# 11 is SD's last branch, 8 SDXL's.
DEEPCACHE_POINTS = [
    *(("SD", interval, 0) for interval in (2, 4, 5)),
    *(("SD", 3, branch) for branch in range(12)),
    *(("SDXL", 3, branch) for branch in range(9)),
]


@pytest.mark.parametrize(("kind", "interval", "branch"), DEEPCACHE_POINTS)
def test_every_deepcache_branch(
    kind: str, interval: int, branch: int, pipes: dict[str, Any]
) -> None:
    steps = interval + 2  # Full, partial to the end of the interval, full, partial.
    assert_equals_upstream(
        pipes[kind], kind, "DDIMScheduler", deepcache(interval, branch), steps=steps
    )


@pytest.mark.full
@pytest.mark.parametrize(
    "candidate",
    [
        tgate(5, 3, 3, 3),
        deepcache(2, 0) | tgate(8, 3, 1, 3),
        deepcache(4, 4) | tgate(6, 3, 2, 3),
        deepcache(2, 4) | tome(0.5, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_more_points(kind: str, candidate: dict[str, Any], pipes: dict[str, Any]) -> None:
    assert_equals_upstream(pipes[kind], kind, "DDIMScheduler", candidate, steps=12)


@pytest.mark.parametrize(("ratio", "max_downsample"), [(0.1, 4), (0.7, 1), (0.9, 3)])
def test_tome(ratio: float, max_downsample: int, pipes: dict[str, Any]) -> None:
    assert_equals_upstream(pipes["SD"], "SD", "DDIMScheduler", tome(ratio, max_downsample), steps=3)


@pytest.mark.parametrize("values", [(1, 2, 2, 0), (2, 2, 1, 3), (7, 9, 5, 1), (3, 2, 2, 1)])
def test_tgate_at_the_edges(values: tuple[int, ...], pipes: dict[str, Any]) -> None:
    assert_equals_upstream(pipes["SDXL"], "SDXL", "DDIMScheduler", tgate(*values), steps=8)


def test_tgate_with_guidance_rescale(pipes: dict[str, Any]) -> None:
    """After the gate upstream leaves the rescaling out; ours multiplies by a ratio of 1 and adds
    two parts of one value, which rounds. SDXL's latents here are of size 10."""
    pipe, candidate = pipes["SDXL"], tgate(5, 3, 2, 1)
    pipe.scheduler = make_scheduler("DDIMScheduler")
    with apply_candidate(pipe, candidate):
        ours = render(pipe, steps=8, guidance_rescale=0.7)
    theirs = upstream("SDXL", "DDIMScheduler", candidate, steps=8, guidance_rescale=0.7)
    assert 0 < difference(ours, theirs) < 1e-4


def test_deepcache_without_guidance(pipes: dict[str, Any]) -> None:
    assert_equals_upstream(
        pipes["SD"], "SD", "DDIMScheduler", deepcache(3, 0), steps=8, guidance_scale=1.0
    )
