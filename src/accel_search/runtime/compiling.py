"""Compile the UNet by regions, so that accelerators can still patch what is between them."""

from __future__ import annotations

from typing import Any

from accel_search.errors import ConfigurationError

RECOMPILE_LIMIT = 1024
"""Graphs per function that torch may keep. Its default of 8 is too few for T-GATE: one graph per
kind of block × reuse pattern × batch size."""


def compile_unet(pipe: Any, kernel: str | None = None) -> None:
    """Compile the transformer blocks of a pipeline's UNet.

    Accelerators can be applied and removed as before. The first call of a new shape or of new
    settings compiles, which takes seconds to minutes.

    Shapes are never generalised: a graph for two batch sizes would replace the baseline's own and
    round differently.

    Args:
        pipe: A diffusers pipeline with a `UNet2DConditionModel`.
        kernel: The argument of `attention.use_kernel`, if it was called.

    Raises:
        ConfigurationError: diffusers or torch is too old for it.

    Source:
        diffusers 0.42, `ModelMixin.compile_repeated_blocks` (regional compilation).
    """
    import diffusers
    import torch._dynamo

    if not (
        hasattr(pipe.unet, "compile_repeated_blocks")
        and hasattr(torch._dynamo.config, "recompile_limit")
    ):
        raise ConfigurationError(
            f"--compile: diffusers {diffusers.__version__} or torch {torch.__version__} cannot "
            "compile the blocks of a UNet one by one: install newer versions, or leave it out"
        )
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    config.accumulated_recompile_limit = max(
        config.accumulated_recompile_limit, 16 * RECOMPILE_LIMIT
    )
    options = None if kernel is None else _graphs_of(kernel)
    pipe.unet.compile_repeated_blocks(fullgraph=True, dynamic=False, options=options)


def _graphs_of(kernel: str) -> dict[str, Any]:
    """Return compiler options that keep the graphs of one attention kernel apart from others'.

    A graph fixes the kernel, but torch's caches in memory and on disk ignore that and would return
    a graph of another kernel. They do distinguish the compiler's options. This one tags graphs and
    has no effect on what is compiled.

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
    """Return whether an error came from torch's compiler, not from the compiled code."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
