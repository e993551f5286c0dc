"""DeepCache: reuse the UNet's deep features in all but every n-th step."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from accel_search.accelerators.base import (
    ALONE,
    PLAIN,
    Accelerator,
    Company,
    Effect,
    Parameter,
    StepType,
)
from accel_search.accelerators.patching import attribute
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

    Under T-GATE the interval is counted anew from the steps that it marks as restarts, as
    tgate's own `TgateSDDeepCacheLoader` does.

    Source:
        Ma et al., "DeepCache: Accelerating Diffusion Models for Free", CVPR 2024, section 3.3
        (uniform interval); DeepCache 0.1.1, `DeepCacheSDHelper`. Deviations, none of which
        changes an image that the package gets right: steps are counted and not looked up by
        timestep; of the modules that a partial step skips only the outermost are wrapped, so
        less is kept.
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
        self, params: Params, workload: Workload, company: Company = ALONE
    ) -> Hashable | None:
        """Return the branch and the full steps; None when every step is full."""
        full = _full_calls(params, workload, company)
        return None if all(full) else (params["cache_branch_id"], full)

    def skipped_calls(
        self, params: Params, workload: Workload, company: Company = ALONE
    ) -> frozenset[int]:
        """Return the partial steps."""
        full = _full_calls(params, workload, company)
        return frozenset(call for call, each in enumerate(full) if not each)

    def step_types(
        self, params: Params, workload: Workload, company: Company = ALONE
    ) -> tuple[StepType, ...]:
        """Return a plain call for every full step, and a partial one at the branch between."""
        partial = frozenset({Effect(f"partial at branch {params['cache_branch_id']}")})
        return tuple(PLAIN if full else partial for full in _full_calls(params, workload, company))

    @contextmanager
    def apply(self, pipe: Any, params: Params, clock: StepClock) -> Iterator[None]:
        """Wrap the modules that partial steps skip; see `Accelerator.apply`.

        Raises:
            AcceleratorError: The UNet has no branch `cache_branch_id`.
        """
        interval, branch = int(params["cache_interval"]), int(params["cache_branch_id"])
        modules = skipped_modules(pipe.unet, branch)
        if interval == 1:
            yield
            return

        cache = _Cache()

        def on_step() -> None:
            cache.partial = not is_full(clock.index, clock.phase_start, interval)

        with ExitStack() as stack:
            for key, module in enumerate(modules):
                forward = _cached(module.forward, key, cache)
                stack.enter_context(attribute(module, "forward", forward))
            # Last, so that it is undone first and clears what the wrappers kept.
            stack.enter_context(clock.subscribe(on_step=on_step, on_end=cache.outputs.clear))
            yield


def is_full(call: int, start: int, interval: int) -> bool:
    """Tell whether a UNet call runs the whole UNet, the interval being counted from `start`."""
    return (call - start) % interval == 0


def _full_calls(params: Params, workload: Workload, company: Company) -> tuple[bool, ...]:
    full, start = [], 0
    for call in range(workload.unet_calls):
        start = call if call in company.restarts else start
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
    found: list[Any] = []
    for level, down in enumerate(unet.down_blocks):
        if level > block or (level == block and layer == 0):
            found.append(down)
        elif level == block:
            found += list(getattr(down, "attentions", ()))[layer:]
            found += list(down.resnets)[layer:]
            # The downsampler is the layer after the last resnet.
            if len(down.resnets) >= layer:
                found += list(down.downsamplers or ())
    if unet.mid_block is not None:
        found.append(unet.mid_block)
    for position, up in enumerate(unet.up_blocks):
        level = depth - 1 - position
        if level > block:
            found.append(up)
        elif level == block:
            # Layers of an up block count from its end: its last one takes branch 0.
            kept = layer + 1
            found += list(getattr(up, "attentions", ()))[:-kept]
            found += list(up.resnets)[:-kept]
    return found


class _Cache:
    """What the wrapped modules returned in the latest full step."""

    def __init__(self) -> None:
        self.partial = False
        self.outputs: dict[int, Any] = {}


def _cached(forward: Any, key: int, cache: _Cache) -> Any:
    outputs = cache.outputs

    def cached_forward(*args: Any, **kwargs: Any) -> Any:
        if cache.partial:
            return outputs[key]
        output = outputs[key] = forward(*args, **kwargs)
        return output

    return cached_forward
