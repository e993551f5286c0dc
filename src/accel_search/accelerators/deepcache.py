"""DeepCache: reuse the UNet's deep features in all but every n-th step."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from accel_search.accelerators.base import (
    ALONE,
    PLAIN,
    Accelerator,
    Context,
    Effect,
    Parameter,
    StepType,
)
from accel_search.accelerators.kept import Kept
from accel_search.accelerators.patching import Layer, layered
from accel_search.errors import AcceleratorError

if TYPE_CHECKING:
    from accel_search.accelerators.clock import StepClock
    from accel_search.core.candidate import Params
    from accel_search.core.workload import Workload

# `cache_branch_id` counts three layers a down block (two resnets and the downsampler), whatever
# the UNet has; the package fixes it so.
LAYERS_PER_BLOCK = 3


class DeepCache(Accelerator):
    """Run the whole UNet every `cache_interval` steps, and only its shallow part in between.

    Under T-GATE the interval is counted again from the steps that it marks as restarts, as
    tgate's own `TgateSDDeepCacheLoader` does.

    Source:
        Ma et al., "DeepCache: Accelerating Diffusion Models for Free", CVPR 2024, section 3.3
        (uniform interval); DeepCache 0.1.1, `DeepCacheSDHelper`. Deviations, none of which
        changes an image that the package gets right: steps are counted and not looked up by
        timestep; of the modules that a partial step skips only the outermost are wrapped, so
        less is kept; where the batch changes in the middle of a call, as where a callback ends
        guidance, the interval starts again; under FreeU, which changes features in place, copies
        are kept (the package's are scaled again at every partial step).
    """

    name = "deepcache"
    parameters = (
        Parameter("cache_interval", (2, 3, 4, 5), 1, None, "run the whole UNet every n-th step; "
                  "larger is faster"),
        Parameter("cache_branch_id", (3, 2, 1, 0), 0, None, "skip connection at which a partial "
                  "step leaves the UNet (block × 3 + layer); smaller is faster"),
    )  # fmt: skip
    order = 10

    skips_modules = True

    def signature(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> Hashable | None:
        """Return the branch and the full steps; None when every step is full."""
        full = _full_calls(params, workload, context)
        return None if all(full) else (params["cache_branch_id"], full)

    def skipped_calls(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> frozenset[int]:
        """Return the partial steps."""
        full = _full_calls(params, workload, context)
        return frozenset(call for call, each in enumerate(full) if not each)

    def step_types(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> tuple[StepType, ...]:
        """Return a plain call for every full step, and a partial one at the branch between."""
        partial = frozenset({Effect(f"partial at branch {params['cache_branch_id']}")})
        return tuple(PLAIN if full else partial for full in _full_calls(params, workload, context))

    def apply(self, pipe: Any, params: Params, clock: StepClock) -> AbstractContextManager[Any]:
        """Put a layer on the modules that partial steps skip; see `Accelerator.apply`.

        Raises:
            AcceleratorError: The UNet has no branch `cache_branch_id`.
        """
        interval, branch = int(params["cache_interval"]), int(params["cache_branch_id"])
        modules = skipped_modules(pipe.unet, branch)
        state = _State()
        layers = [_Skipped(state) for _ in modules]

        def on_step() -> None:
            state.is_on = True
            state.is_partial = not is_full(clock.index, clock.phase_start, interval)

        def on_end() -> None:
            state.is_on = state.is_partial = False
            for layer in layers:
                layer.kept.drop()

        with ExitStack() as stack:
            if interval > 1:
                for module, layer in zip(modules, layers, strict=True):
                    stack.enter_context(layered(module, layer))
                stack.enter_context(clock.subscribe(on_step=on_step, on_end=on_end))
            return stack.pop_all()


def is_full(call: int, start: int, interval: int) -> bool:
    """Tell whether a UNet call runs the whole UNet, the interval being counted from `start`."""
    return (call - start) % interval == 0


def _full_calls(params: Params, workload: Workload, context: Context) -> tuple[bool, ...]:
    full, start = [], 0
    for call in range(workload.unet_calls):
        start = call if call in context.restarts else start
        full.append(is_full(call, start, int(params["cache_interval"])))
    return tuple(full)


def skipped_modules(unet: Any, branch: int) -> list[Any]:
    """Return the outermost modules of `unet` that a partial step does not run.

    Raises:
        AcceleratorError: The UNet has no such branch.
    """
    block, layer = divmod(branch, LAYERS_PER_BLOCK)
    depth = len(unet.down_blocks)
    if block >= depth:
        raise AcceleratorError(
            f"deepcache: cache_branch_id is {branch}, and this UNet has {depth} down blocks: "
            f"give at most {depth * LAYERS_PER_BLOCK - 1}"
        )
    modules: list[Any] = []
    for level, down in enumerate(unet.down_blocks):
        if level > block or (level == block and layer == 0):
            modules.append(down)
        elif level == block:
            modules += list(getattr(down, "attentions", ()))[layer:]
            modules += list(down.resnets)[layer:]
            # The downsampler is the layer after the last resnet.
            if len(down.resnets) >= layer:
                modules += list(down.downsamplers or ())
    if unet.mid_block is not None:
        modules.append(unet.mid_block)
    for position, up in enumerate(unet.up_blocks):
        level = depth - 1 - position
        if level > block:
            modules.append(up)
        elif level == block:
            # Layers of an up block count from its end: its last one takes branch 0.
            kept = layer + 1
            modules += list(getattr(up, "attentions", ()))[:-kept]
            modules += list(up.resnets)[:-kept]
    return modules


class _State:
    """What the layers of one application share."""

    is_on = False
    """Whether a pipeline call is in progress."""
    is_partial = False


class _Skipped(Layer):
    """Runs a module in full steps, and returns what it returned in the latest in partial ones."""

    def __init__(self, state: _State) -> None:
        self.state = state
        self.kept = Kept()

    def run(self, module: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self.state.is_partial:
            return self.kept.get()
        output = self.inner(module, *args, **kwargs)
        if self.state.is_on:
            self.kept.store(output)
        return output
