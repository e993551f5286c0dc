"""Fewer steps: the baseline of every accelerator, and combined with any of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Hashable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from accel_search.accelerators.base import (
    ALONE,
    PLAIN,
    Accelerator,
    Context,
    Parameter,
    StepType,
)
from accel_search.accelerators.patching import Layer, layered

if TYPE_CHECKING:
    from accel_search.accelerators.clock import StepClock
    from accel_search.core.candidate import Params, Value
    from accel_search.core.workload import Workload


class Steps(Accelerator):
    """Make at most `num_inference_steps` denoising steps, whatever the pipeline is asked for.

    A call that gives timesteps or sigmas of its own keeps them.

    Source:
        diffusers 0.42: every pipeline of its takes `num_inference_steps`.
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
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> Hashable | None:
        """Return the steps; None where they are no fewer than the workload's."""
        steps = int(params["num_inference_steps"])
        return steps if steps < workload.steps else None

    def workload_under(self, params: Params, workload: Workload) -> Workload:
        """Return the workload with fewer steps, and the UNet calls that those make."""
        steps = min(int(params["num_inference_steps"]), workload.steps)
        return replace(workload, steps=steps, unet_calls=_calls(steps, workload))

    def step_types(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> tuple[StepType, ...]:
        """Return plain calls: only their number changes, and the workload holds that."""
        return (PLAIN,) * workload.unet_calls

    def apply(self, pipe: Any, params: Params, clock: StepClock) -> AbstractContextManager[Any]:
        """Ask the pipeline for fewer steps; see `Accelerator.apply`."""
        return layered(pipe, _FewerSteps(int(params["num_inference_steps"])))


def _calls(steps: int, workload: Workload) -> int:
    """Return the UNet calls of fewer steps.

    A scheduler makes one or two in each step, and some one more or one less in all. From an image
    on, the first steps are left out.
    """
    share = workload.strength
    made = int(max(steps, math.ceil(1 / share)) * share)
    before = max(int(workload.steps * share), 1)
    each = max(round(workload.unet_calls / before), 1)
    return min(max(each * made + workload.unet_calls - each * before, 1), workload.unet_calls)


class _FewerSteps(Layer):
    """Calls a pipeline with at most `most` steps."""

    def __init__(self, most: int) -> None:
        self.most = most

    def run(self, pipe: Any, /, *args: Any, **kwargs: Any) -> Any:
        call = _signature(type(pipe)).bind(pipe, *args, **kwargs)
        call.apply_defaults()
        arguments = call.arguments
        asked = arguments.get("num_inference_steps")
        if asked is None or any(arguments.get(own) is not None for own in ("timesteps", "sigmas")):
            return self.inner(pipe, *args, **kwargs)
        # Image-to-image and a refiner make a share of the steps: one at least has to be left.
        share = (arguments.get("strength") or 1) * (arguments.get("denoising_end") or 1)
        most = max(self.most, math.ceil(1 / share))
        arguments["num_inference_steps"] = min(asked, most)
        return self.inner(*call.args, **call.kwargs)


def _signature(pipeline: type) -> inspect.Signature:
    """Return the signature of a pipeline's call; a subclass may but hand its arguments on."""
    signatures = [inspect.signature(cls.__call__) for cls in pipeline.__mro__[:-1]
                  if "__call__" in vars(cls)]  # fmt: skip
    own = signatures[0]
    return next((call for call in signatures if "num_inference_steps" in call.parameters), own)
