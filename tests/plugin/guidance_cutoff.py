"""A plug-in: stop classifier-free guidance at a step, as an accelerator that accel-search finds.

It is what a package of its own would hold, with the entry point that its `pyproject.toml` declares:

    [project.entry-points."accel_search.accelerators"]
    cutoff = "guidance_cutoff:GuidanceCutoff"
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from accel_search.accelerators.base import (
    ALONE,
    PLAIN,
    Accelerator,
    Context,
    Effect,
    Parameter,
    StepType,
)
from accel_search.accelerators.patching import Layer, layered
from accel_search.core.candidate import Params
from accel_search.core.workload import Workload


class GuidanceCutoff(Accelerator):
    """Run the UNet on the text half of the guidance batch alone from `cutoff_step` on."""

    name = "cutoff"
    parameters = (
        Parameter("cutoff_step", (6, 5, 4, 3, 2), 1, None, "first step without guidance; smaller "
                  "is faster"),
    )  # fmt: skip
    order = 35

    def signature(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> Hashable | None:
        """Return the step; None where there is no guidance, or no step left to cut."""
        step = int(params["cutoff_step"])
        return step if workload.has_guidance and step < workload.unet_calls else None

    def restarts(self, params: Params) -> frozenset[int]:
        """Return the step at which the batch changes."""
        return frozenset({int(params["cutoff_step"])})

    def step_types(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> tuple[StepType, ...]:
        """Return plain calls, and calls on half the batch from the cut-off on."""
        half = frozenset({Effect("unguided")})
        step = int(params["cutoff_step"])
        return tuple(half if call >= step else PLAIN for call in range(workload.unet_calls))

    def apply(self, pipe: Any, params: Params, clock: Any) -> AbstractContextManager[Any]:
        """Put a layer on the UNet; see `Accelerator.apply`."""
        with ExitStack() as stack:
            stack.enter_context(layered(pipe.unet, _Cut(int(params["cutoff_step"]), clock)))
            stack.enter_context(clock.subscribe(restarts=self.restarts(params)))
            return stack.pop_all()


class _Cut(Layer):
    """Runs the UNet on the text half alone from a step on, and returns its output twice."""

    def __init__(self, step: int, clock: Any) -> None:
        self.step, self.clock = step, clock

    def run(self, unet: Any, /, *args: Any, **kwargs: Any) -> Any:
        import torch

        call, batch = self.clock.call, self.clock.batch
        if self.clock.index < self.step or call is None or not call.is_guided:
            return self.inner(unet, *args, **kwargs)
        output = self.inner(
            unet,
            *(_text_half(value, batch) for value in args),
            **{key: _text_half(value, batch) for key, value in kwargs.items()},
        )
        return (torch.cat([output[0], output[0]]), *output[1:])


def _text_half(value: Any, batch: int) -> Any:
    if isinstance(value, dict):
        return {key: _text_half(item, batch) for key, item in value.items()}
    rows = getattr(value, "shape", (0,))
    return value[batch // 2 :] if len(rows) and rows[0] == batch else value
