"""Compile the UNet region by region, so that accelerators still patch what lies between."""

from __future__ import annotations

from typing import Any

RECOMPILE_LIMIT = 1024
"""Graphs of one function that torch may keep; its own limit, 8, is less than T-GATE alone needs:
each kind of block × what is computed or reused in it × full or half batch is a graph."""


def compile_unet(pipe: Any, kernel: str | None = None) -> None:
    """Compile the transformer blocks of a pipeline's UNet, each kind once, for as long as it lives.

    Accelerators can be applied to it and removed as to any other. The first call of a new shape, or
    under settings that were not applied before, compiles, which takes from seconds to minutes.

    Shapes are never generalised: a graph that fits two batch sizes would take the place of the
    baseline's own, and round differently.

    Args:
        pipe: A diffusers pipeline with a `UNet2DConditionModel`.
        kernel: What `attention.use_kernel` was told of it; None where it was told nothing.

    Source:
        diffusers 0.42, `ModelMixin.compile_repeated_blocks` (regional compilation).
    """
    import torch._dynamo

    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    config.accumulated_recompile_limit = max(
        config.accumulated_recompile_limit, 16 * RECOMPILE_LIMIT
    )
    options = None if kernel is None else _graphs_of(kernel)
    pipe.unet.compile_repeated_blocks(fullgraph=True, dynamic=False, options=options)


def _graphs_of(kernel: str) -> dict[str, Any]:
    """Return options of the compiler under which one attention kernel's graphs are its own.

    Which kernel computes attention is decided as a graph is made, but by that torch tells apart
    neither the graphs in memory nor those on disk: one of another kernel would be run. By the
    compiler's options it tells both apart, and this one changes nothing that is compiled: it is a
    tag for graphs in which a function of that name is called.

    Source:
        torch 2.11 and 2.15: `_TorchCompileInductorWrapper.__eq__` (in memory), and
        `FxGraphHashDetails` of `torch._inductor.codecache` (on disk).
    """
    return {"unsafe_marked_cacheable_functions": {"accel_search.attention_kernel": kernel}}


def graphs_compiled() -> int:
    """Return how many graphs this process has compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def is_compile_error(error: BaseException) -> bool:
    """Tell whether an error came from torch's compiler, not from the code that is compiled."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
