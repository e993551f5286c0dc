"""A plug-in that changes nothing: every point of it is the bare pipeline under another name."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager
from typing import Any

from accel_search.accelerators.base import ALONE, Accelerator, Context, Parameter
from accel_search.accelerators.patching import Layer, layered
from accel_search.core.candidate import Params
from accel_search.core.workload import Workload


class Nothing(Accelerator):
    """Be applied, called and taken off like any other, and leave each UNet call as it is."""

    name = "nothing"
    parameters = (Parameter("copy", tuple(range(1, 9)), 1, None, "of no effect"),)
    order = 45

    def signature(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> Hashable | None:
        """Return the parameter: each copy is measured, as if it were a computation of its own."""
        return int(params["copy"])

    def apply(self, pipe: Any, params: Params, clock: Any) -> AbstractContextManager[Any]:
        """Put a layer on the UNet that hands its calls on; see `Accelerator.apply`."""
        return layered(pipe.unet, Layer())
