"""Offloading to and from a real device, before and after a pipeline is accelerated."""

from __future__ import annotations

import gc
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from accel_search import accelerate, restore  # noqa: E402
from tests.support.candidates import CANDIDATES  # noqa: E402
from tests.support.situations import no_group_offload, no_offload  # noqa: E402
from tests.support.tiny import KINDS, STEPS, make_pipe, render  # noqa: E402

pytestmark = pytest.mark.gpu


def group(kind: str, stream: bool) -> Any:
    def make(pipe: Any) -> None:
        groups = {} if kind == "leaf_level" else {"num_blocks_per_group": 1}
        pipe.unet.enable_group_offload(
            torch.device("cuda"), offload_type=kind, use_stream=stream, **groups
        )

    return make


OFFLOADS: dict[str, tuple[Any, Any]] = {
    "model": (lambda pipe: pipe.enable_model_cpu_offload(), no_offload),
    "sequential": (lambda pipe: pipe.enable_sequential_cpu_offload(), no_offload),
    "leaf group": (group("leaf_level", False), no_group_offload),
    "leaf group, stream": (group("leaf_level", True), no_group_offload),
    "block group": (group("block_level", False), no_group_offload),
    "block group, stream": (group("block_level", True), no_group_offload),
}


def picture(pipe: Any) -> torch.Tensor:
    return render(pipe, (0,), steps=STEPS).float().cpu()


@pytest.mark.parametrize("name", CANDIDATES)
@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("kind", KINDS)
def test_offloading_in_any_order(kind: str, offload: str, name: str) -> None:
    make, unmake = OFFLOADS[offload]
    pipe = make_pipe(kind).to("cuda")
    plain = picture(pipe)
    with accelerate(pipe, CANDIDATES[name]):
        expected = picture(pipe)
    # Off the GPU, as a pipeline is when it is to be offloaded.
    accelerate(pipe.to("cpu"), CANDIDATES[name])
    make(pipe)
    for _ in range(2):
        assert torch.equal(picture(pipe), expected)
    restore(pipe)
    for _ in range(2):
        assert torch.equal(picture(pipe), plain)
    accelerate(pipe, CANDIDATES[name])
    assert torch.equal(picture(pipe), expected)
    unmake(pipe)
    pipe.to("cuda")
    assert torch.equal(picture(pipe), expected)
    restore(pipe)
    assert torch.equal(picture(pipe), plain)


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_pipeline_that_is_dropped_gives_its_memory_back_at_once(name: str) -> None:
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    pipe = make_pipe().to("cuda")
    accelerate(pipe, CANDIDATES[name])
    picture(pipe)
    gc.collect()
    gc.disable()
    try:
        del pipe
        assert torch.cuda.memory_allocated() == before
    finally:
        gc.enable()
