"""What an accelerator is: a parameter space, and a reversible way to apply one point of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from accel_search.records import Params, Value, Workload

if TYPE_CHECKING:
    from accel_search.accelerators.clock import StepClock


@dataclass(frozen=True)
class Parameter:
    """One parameter of an accelerator."""

    name: str
    """Name in the accelerator's own library, e.g. `cache_interval`."""
    values: tuple[Value, ...]
    """Values searched by default, mildest (best picture) first."""
    minimum: Value
    """Least value that the accelerator accepts."""
    maximum: Value | None
    """Greatest value that the accelerator accepts; None where there is no limit."""
    help: str
    """One line: what it does and which direction is faster."""


class Accelerator(ABC):
    """A parameter space and a reversible way to apply one point of it to a pipeline.

    A new accelerator is one new file in this folder that defines one subclass; the
    conformance suite in `tests/accelerators/` picks it up. Importing that file must not
    import torch: `apply` imports what it needs.
    """

    name: ClassVar[str]
    """Name on the command line and in result files."""
    parameters: ClassVar[tuple[Parameter, ...]]
    """The parameter space, in the order in which grid search varies it, slowest first."""
    order: ClassVar[int]
    """Position in the nest of patches: lower is applied first, so sits closer to the UNet's
    own code; undone last."""

    def allowed(self, parameter: Parameter, value: Value, workload: Workload) -> bool:
        """Tell whether `value` means anything for this workload (e.g. gate_step < steps)."""
        return True

    @abstractmethod
    def signature(self, params: Params, workload: Workload) -> Hashable | None:
        """Return what identifies the computation that `params` stand for on `workload`.

        Two points with equal signatures make the same images in the same time and are
        measured once. None means that nothing is changed: the point is the baseline.
        """

    def signature_beside(
        self, params: Params, workload: Workload, others: frozenset[str]
    ) -> Hashable | None:
        """Return the signature of `params` where the accelerators named `others` act as well.

        To be overridden where points that coincide alone can differ in company.
        """
        return self.signature(params, workload)

    @abstractmethod
    def apply(self, pipe: Any, params: Params, clock: StepClock) -> AbstractContextManager[None]:
        """Apply `params` to `pipe` for the length of a `with` block.

        On exit, also when the body raises, `vars()` of every module of the pipeline, its
        hooks, attention processors and scheduler are as before, and no tensor is held.

        Args:
            pipe: A diffusers pipeline with a `unet` (SD or SDXL type).
            params: One point of the space, every parameter given.
            clock: Counts the denoising steps of the pipeline call in progress; shared by
                all accelerators that are applied together.

        Raises:
            AcceleratorError: The pipeline's UNet is not of a kind that this can patch.
        """
