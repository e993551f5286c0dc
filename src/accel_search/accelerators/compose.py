"""Apply a whole candidate, several accelerators at once, to a pipeline and take it off again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from accel_search.accelerators import get
from accel_search.accelerators.base import Accelerator
from accel_search.accelerators.clock import StepClock
from accel_search.accelerators.patching import check_pipeline
from accel_search.core.candidate import Params
from accel_search.errors import AcceleratorError, ConfigurationError

# Kept here, not on the pipeline, so that marking leaves no trace in `vars()`. It holds UNets
# because they are what is patched, and two pipelines may share one.
_accelerated: weakref.WeakSet[Any] = weakref.WeakSet()


@contextmanager
def apply_candidate(pipe: Any, candidate: Mapping[str, Params]) -> Iterator[None]:
    """Accelerate `pipe` for the length of a `with` block; an empty candidate changes nothing.

    The order of the mapping does not matter: accelerators nest by their `order` and are undone
    last in, first out, also when the body raises. Inside, the pipeline is called as always, any
    number of times, with any number of steps. The scheduler that the pipeline has on entry is
    the one that is watched: exchange it outside.

    Args:
        pipe: A diffusers pipeline with a UNet2DConditionModel, of SD or SDXL type, that batches
            guidance as [unconditional, text].
        candidate: Accelerator name -> parameter name -> value, every parameter given.

    Raises:
        AcceleratorError: The pipeline cannot be patched, or is accelerated already.
        ConfigurationError: An accelerator, a parameter or a value is not known or allowed.
    """
    chosen = [(get(name), params) for name, params in candidate.items()]
    for accelerator, params in chosen:
        check_params(accelerator, params)
    chosen.sort(key=lambda pair: (pair[0].order, pair[0].name))
    check_pipeline(pipe)
    unet = pipe.unet
    if unet in _accelerated:
        raise AcceleratorError(
            f"this {type(pipe).__name__} is accelerated already: leave the first `with` block "
            "before entering another"
        )
    clock = StepClock()
    with ExitStack() as stack:
        _accelerated.add(unet)
        stack.callback(_accelerated.discard, unet)
        for accelerator, params in chosen:
            stack.enter_context(accelerator.apply(pipe, params, clock))
        if chosen:
            stack.enter_context(clock.install(pipe))
        yield


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
