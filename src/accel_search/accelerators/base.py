"""What an accelerator is: a parameter space, and a reversible way to apply one point of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from accel_search.core.candidate import Params, Value
from accel_search.core.workload import Workload
from accel_search.errors import ConfigurationError

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


class Effect(NamedTuple):
    """One thing an accelerator does in one UNet call that changes how long the call takes."""

    name: str
    """Short and the same wherever the same is done, e.g. `self-attention reused`."""
    amount: float = 1.0
    """How much of it, 0 to 1, where that is a matter of degree: the share of tokens merged."""


StepType = frozenset[Effect]
"""All that is done in one UNet call; the empty set is a plain call. Calls of one type take
about the same time, so a pipeline call takes a fixed overhead and the sum of its step types."""

PLAIN: StepType = frozenset()


@dataclass(frozen=True)
class Context:
    """What the other accelerators of a candidate do, as far as it bears on one of them."""

    restarts: frozenset[int] = frozenset()
    """UNet calls at which caches restart."""
    skips_modules: bool = False
    """Whether one of them leaves out modules in some calls."""
    skipped: frozenset[int] = frozenset()
    """The calls in which modules are left out; known to `step_types` alone."""


ALONE = Context()


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

    skips_modules: ClassVar[bool] = False
    """Whether modules of the UNet are left out in some calls, so that what another accelerator
    keeps in them is of an earlier one."""

    def why_no_gain(self, attention: str | None) -> str:
        """Return why it may gain nothing, and where it does; printed where nothing of it is faster.

        Args:
            attention: What computes attention, as `Provenance.attention_backend` has it, e.g.
                `native (flash)`; None where that is not known.

        Returns:
            A clause that goes on after a colon, without a full stop; empty where nothing is known.
        """
        return ""

    def note(self, workload: Workload) -> str:
        """Return what there is to know of it on a workload before it is measured.

        Returns:
            The rest of a sentence that its name begins, without a full stop; empty for nothing.
        """
        return ""

    def allowed(self, parameter: Parameter, value: Value, workload: Workload) -> bool:
        """Return whether `value` means anything for this workload (e.g. gate_step < steps)."""
        return True

    @abstractmethod
    def signature(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> Hashable | None:
        """Return what identifies the computation that `params` stand for on `workload`.

        Two points with equal signatures make the same images in the same time and are
        measured once. None means that nothing is changed: the point is the baseline.

        Args:
            params: One point of the space.
            workload: As the other accelerators leave it (`workload_under`).
            context: What the other accelerators of the candidate do; points that coincide
                alone can differ there, and the other way round.
        """

    def workload_under(self, params: Params, workload: Workload) -> Workload:
        """Return the workload as the other accelerators meet it, e.g. with fewer UNet calls."""
        return workload

    def restarts(self, params: Params) -> frozenset[int]:
        """Return the UNet calls at which the other accelerators' caches have to restart.

        `apply` hands them to `StepClock.subscribe`.
        """
        return frozenset()

    def skipped_calls(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> frozenset[int]:
        """Return the UNet calls in which modules are left out (`skips_modules`)."""
        return frozenset()

    def step_types(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> tuple[StepType, ...]:
        """Describe what is done in each UNet call, as far as it changes the call's time.

        Unless overridden, all calls under one signature are one type of their own, of which
        nothing is known until it is measured.

        Args:
            params: One point of the space.
            workload: As the other accelerators leave it (`workload_under`).
            context: What the other accelerators of the candidate do.

        Returns:
            A step type for each of `workload.unet_calls` calls, effect names without the
            accelerator's.
        """
        if self.signature(params, workload, context) is None:
            return (PLAIN,) * workload.unet_calls
        name = ",".join(f"{key}={value}" for key, value in sorted(params.items()))
        return (frozenset({Effect(name)}),) * workload.unet_calls

    @abstractmethod
    def apply(self, pipe: Any, params: Params, clock: StepClock) -> AbstractContextManager[Any]:
        """Apply `params` to `pipe`, until the block that is returned is left.

        On exit what it put on is taken off, in any order with other changes, and nothing else:
        `vars()` of every module of the pipeline, its hooks, attention processors and scheduler are
        as before, and no tensor is held. `patching.layered` does that; it keeps no reference to
        the pipeline, which is to be freed when it is dropped, accelerated or not.

        Args:
            pipe: A diffusers pipeline with a `unet` (SD or SDXL type).
            params: One point of the space, every parameter given.
            clock: Counts the denoising steps of the pipeline call in progress; shared by
                all accelerators that are applied together.

        Raises:
            AcceleratorError: The pipeline's UNet is not of a kind that this can patch.
        """


def check_params(accelerator: Accelerator, params: Params) -> None:
    """Raise ConfigurationError unless `params` gives each parameter a value that is accepted."""
    known = {parameter.name: parameter for parameter in accelerator.parameters}
    if params.keys() != known.keys():
        raise ConfigurationError(
            f"{accelerator.name}: got the parameters {', '.join(sorted(params)) or 'none'}; "
            f"give exactly {', '.join(known)}"
        )
    for name, value in params.items():
        parameter = known[name]
        whole = isinstance(parameter.minimum, int)
        upper = parameter.maximum
        if (
            isinstance(value, bool)
            or not isinstance(value, int if whole else (int, float))
            or not value >= parameter.minimum  # Written so that NaN is refused.
            or (upper is not None and not value <= upper)
        ):
            kind = "a whole number" if whole else "a number"
            bounds = f"of at least {parameter.minimum}"
            if upper is not None:
                bounds = f"from {parameter.minimum} to {upper}"
            raise ConfigurationError(
                f"{accelerator.name}: {name} is {value!r}; give {kind} {bounds}"
            )
