"""Fewer steps: the rival of every accelerator, and a companion to each."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from accel_search.accelerators.base import (
    ALONE,
    PLAIN,
    Accelerator,
    Company,
    Parameter,
    StepType,
)
from accel_search.accelerators.patching import attribute

if TYPE_CHECKING:
    from accel_search.accelerators.clock import StepClock
    from accel_search.core.candidate import Params, Value
    from accel_search.core.workload import Workload


class Steps(Accelerator):
    """Make at most `num_inference_steps` denoising steps, whatever the pipeline is asked for.

    A call that gives timesteps or sigmas of its own keeps them.

    Source:
        diffusers 0.42: pipelines ask the scheduler for steps by `set_timesteps`; image-to-image
        then keeps a share of them, which `get_timesteps` counts.
    """

    name = "steps"
    parameters = (
        Parameter("num_inference_steps", tuple(range(49, 3, -1)), 1, None,
                  "denoising steps; smaller is faster"),
    )  # fmt: skip
    order = 0

    def allowed(self, parameter: Parameter, value: Value, workload: Workload) -> bool:
        """Tell whether it is fewer steps than the workload's."""
        return value < workload.steps

    def signature(
        self, params: Params, workload: Workload, company: Company = ALONE
    ) -> Hashable | None:
        """Return the steps; None where they are no fewer than the workload's."""
        steps = int(params["num_inference_steps"])
        return steps if steps < workload.steps else None

    def workload_under(self, params: Params, workload: Workload) -> Workload:
        """Return the workload with fewer steps, and UNet calls in proportion."""
        steps = min(int(params["num_inference_steps"]), workload.steps)
        calls = round(workload.unet_calls * steps / workload.steps)
        return replace(workload, steps=steps, unet_calls=calls)

    def step_types(
        self, params: Params, workload: Workload, company: Company = ALONE
    ) -> tuple[StepType, ...]:
        """Return plain calls: only their number changes, and the workload holds that."""
        return (PLAIN,) * workload.unet_calls

    @contextmanager
    def apply(self, pipe: Any, params: Params, clock: StepClock) -> Iterator[None]:
        """Hand the scheduler fewer steps; see `Accelerator.apply`."""
        most = int(params["num_inference_steps"])
        set_timesteps = pipe.scheduler.set_timesteps
        get_timesteps: Any = getattr(pipe, "get_timesteps", None)

        @functools.wraps(set_timesteps)
        def fewer(num_inference_steps: int | None = None, *args: Any, **kwargs: Any) -> Any:
            if num_inference_steps is not None:
                num_inference_steps = min(num_inference_steps, most)
            return set_timesteps(num_inference_steps, *args, **kwargs)

        def share(num_inference_steps: int, *args: Any, **kwargs: Any) -> Any:
            return get_timesteps(min(num_inference_steps, most), *args, **kwargs)

        with ExitStack() as stack:
            stack.enter_context(attribute(pipe.scheduler, "set_timesteps", fewer))
            if get_timesteps is not None:
                stack.enter_context(attribute(pipe, "get_timesteps", share))
            yield
