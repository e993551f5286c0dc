"""Which points of the spaces are one computation."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from typing import Any

import pytest

from accel_search.accelerators import get
from accel_search.accelerators.base import Context
from accel_search.accelerators.compose import apply_candidate
from accel_search.accelerators.computation import candidate_signature
from accel_search.accelerators.tgate import REUSE, STORE, schedule
from accel_search.accelerators.tome import merge_plan
from tests.support.tiny import render, tgate_params, workload

TGATE_SPACE = list(itertools.product(range(5, 20), range(2, 10), range(1, 6), range(1, 4)))
SD15 = {"height": 512, "width": 512, "latent_height": 64, "latent_width": 64}
SDXL = {"height": 1024, "width": 1024, "latent_height": 128, "latent_width": 128}


@pytest.mark.parametrize("steps", [20, 25, 50])
def test_tgate_schedule_is_the_packages(steps: int) -> None:
    from tgate.tgate_utils import tgate_scheduler

    for gate_step, sp, fi, warmup in TGATE_SPACE:
        ours = schedule(steps, gate_step, sp, fi, warmup)
        assert len(ours) == steps
        for step, mode in enumerate(ours):
            cross, own, keep_shape = tgate_scheduler(step, gate_step, sp, fi, warmup)
            assert own == {
                "cache": mode.self_attention == STORE,
                "reuse": mode.self_attention == REUSE,
            }
            assert cross == {
                "cache": mode.cross_attention == STORE,
                "reuse": mode.cross_attention == REUSE,
            }
            assert mode.mean is not keep_shape
            # SD.py: two halves while `step < gate_step`.
            assert mode.half is (step >= gate_step)


@pytest.mark.parametrize(
    ("steps", "alone", "beside"), [(20, 1211, 1347), (25, 1365, 1515), (50, 1365, 1515)]
)
@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_distinct_tgate_schedules(
    steps: int, alone: int, beside: int, guidance_scale: float
) -> None:
    load = workload(steps=steps, guidance_scale=guidance_scale)
    points = [tgate_params(*values) for values in TGATE_SPACE]
    assert len(points) == 1800
    assert len({get("tgate").signature(point, load) for point in points}) == alone
    skipping = Context(skips_modules=True)
    assert len({get("tgate").signature(point, load, skipping) for point in points}) == beside


def test_tgate_points_that_only_differ_beside_deepcache(sd: Any) -> None:
    """A deep module runs at step 2 and 4 only: whether step 2 is kept decides about step 4."""
    points = [{"tgate": tgate_params(6, 3, 1, warmup)} for warmup in (2, 3)]
    deepcache = {"deepcache": {"cache_interval": 2, "cache_branch_id": 0}}
    load = workload(steps=8)

    def image(candidate: dict[str, Any]) -> bytes:
        with apply_candidate(sd, candidate):
            return render(sd, (0,), steps=8).numpy().tobytes()

    assert candidate_signature(points[0], load) == candidate_signature(points[1], load)
    assert image(points[0]) == image(points[1])
    both = [point | deepcache for point in points]
    assert candidate_signature(both[0], load) != candidate_signature(both[1], load)
    assert image(both[0]) != image(both[1])


def test_tgate_signature_has_no_half_without_guidance() -> None:
    point = tgate_params(10, 5, 2, 1)
    guided: Any = get("tgate").signature(point, workload())
    plain: Any = get("tgate").signature(point, workload(guidance_scale=1.0))
    assert [step[2] for step in guided] == [False] * 10 + [True] * 10
    assert not any(step[2] for step in plain)
    assert [step[:2] for step in plain] == [step[:2] for step in guided]
    # Computed at 0, kept at 1, reused to 4; kept anew at 5; the gate's own value reused at 11.
    assert [step[0] for step in guided[:12]] == [
        None, None, 1, 1, 1, None, 5, 5, 5, None, None, 10,
    ]  # fmt: skip


def test_gate_step_has_to_be_before_the_end() -> None:
    tgate = get("tgate")
    gate_step, sp_interval = tgate.parameters[0], tgate.parameters[1]
    assert [v for v in gate_step.values if tgate.allowed(gate_step, v, workload(steps=8))] == [
        7, 6, 5,
    ]  # fmt: skip
    assert tgate.allowed(sp_interval, 9, workload(steps=8))


def test_deepcache() -> None:
    deepcache = get("deepcache")

    def signature(interval: int, branch: int = 0, **changes: Any) -> Hashable | None:
        params = {"cache_interval": interval, "cache_branch_id": branch}
        return deepcache.signature(params, workload(**changes))

    assert signature(5) == (0, tuple(call % 5 == 0 for call in range(20)))
    assert signature(1) is None
    assert signature(2, steps=1) is None
    assert signature(4, steps=4) == signature(5, steps=4) != signature(3, steps=4)
    assert signature(2, 0) != signature(2, 1)
    # A second-order scheduler makes more UNet calls than steps.
    assert signature(2, unet_calls=39) == (0, tuple(call % 2 == 0 for call in range(39)))


def test_tome() -> None:
    tome = get("tome")

    def signature(ratio: float, max_downsample: int, kind: str = "SD") -> Hashable | None:
        size = SDXL if kind == "SDXL" else SD15
        params = {"ratio": ratio, "max_downsample": max_downsample}
        return tome.signature(params, workload(kind, **size))

    assert signature(0.5, 1) == (2048, 0, 0, 0)
    assert signature(0.5, 4) == (2048, 512, 128, 0)
    assert signature(0.5, 2) == signature(0.5, 3)
    assert signature(0.8, 2) == signature(0.9, 2) == signature(0.75, 2) != signature(0.7, 2)
    assert signature(0.5, 1, "SDXL") is None
    assert signature(0.5, 2, "SDXL") == signature(0.5, 3, "SDXL") == (2048, 0)
    assert signature(0.0, 4) is None
    # int(64 * 64 * 0.3), not rounded.
    assert signature(0.3, 1) == (1228, 0, 0, 0)


def test_tome_points_of_the_whole_space() -> None:
    tome = get("tome")
    points = [
        {"ratio": ratio, "max_downsample": deepest}
        for ratio in tome.parameters[0].values
        for deepest in tome.parameters[1].values
    ]
    assert len({tome.signature(point, workload(**SD15)) for point in points}) == 8 * 3
    assert len({tome.signature(point, workload("SDXL", **SDXL)) for point in points}) == 8 * 2 + 1


def test_merge_plan_on_sizes_that_strides_do_not_divide() -> None:
    # 3 × 5 cells of 2 × 2 in 7 × 11 tokens: 15 destinations, at most 62 sources.
    assert merge_plan((7, 11), 77, 0.9, 1) == (11, 7, 62)
    # tomesd takes factor 4 for 3 and the grid of 3 × 4 tokens for 3 × 5.
    assert merge_plan((9, 13), 12, 0.5, 4) is None


def test_candidate_signature() -> None:
    load = workload("SDXL", **SDXL)
    nothing = {"tome": {"ratio": 0.5, "max_downsample": 1}}
    cache = {"deepcache": {"cache_interval": 2, "cache_branch_id": 0}}
    assert candidate_signature({}, load) is None
    assert candidate_signature(nothing, load) is None
    assert candidate_signature(nothing | cache, load) == candidate_signature(cache, load)
    gate = {"tgate": tgate_params(5, 2, 2, 1)}
    assert candidate_signature(gate | cache, load) == candidate_signature(cache | gate, load)
