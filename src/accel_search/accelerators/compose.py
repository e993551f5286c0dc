"""Apply a whole candidate, several accelerators at once, to a pipeline and take it off again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from accel_search.accelerators import get
from accel_search.accelerators.base import check_params
from accel_search.accelerators.clock import StepClock
from accel_search.accelerators.patching import Layer, check_pipeline, layered, layers_of
from accel_search.core.candidate import Params
from accel_search.errors import AcceleratorError

# Kept here, so that an empty candidate leaves no trace in `vars()`. It holds UNets because they are
# what is patched, and two pipelines may share one.
_accelerated: weakref.WeakSet[Any] = weakref.WeakSet()


class Patch:
    """A candidate applied to a pipeline, until `remove`; not bound to the life of this object.

    Of the pipeline only weak references are kept: one that is dropped is freed, accelerated or not.

    Args:
        pipe: As in `apply_candidate`.
        candidate: As in `apply_candidate`.
        implementation: As in `apply_candidate`.

    Raises:
        AcceleratorError: As `apply_candidate`.
        ConfigurationError: As `apply_candidate`.
    """

    def __init__(
        self, pipe: Any, candidate: Mapping[str, Params], implementation: str = "own"
    ) -> None:
        chosen = [(get(name), params) for name, params in candidate.items()]
        for accelerator, params in chosen:
            check_params(accelerator, params)
        chosen.sort(key=lambda pair: (pair[0].order, pair[0].name))
        check_pipeline(pipe)
        if pipe.unet in _accelerated:
            raise AcceleratorError(
                f"this {type(pipe).__name__} is accelerated already: remove() what was applied "
                "first, or call accel_search.restore(pipe)"
            )
        self._clock = StepClock()
        with ExitStack() as stack:
            _accelerated.add(pipe.unet)
            stack.callback(_forget, weakref.ref(pipe.unet))
            if implementation == "package":
                from accel_search.accelerators.packages import apply_packages

                stack.enter_context(apply_packages(pipe, candidate))
            else:
                for accelerator, params in chosen:
                    stack.enter_context(accelerator.apply(pipe, params, self._clock))
            if chosen:
                if implementation == "own":
                    stack.enter_context(self._clock.install(pipe))
                for owner in (pipe, pipe.unet):
                    stack.enter_context(layered(owner, _Mark(self)))
            self._stack = stack.pop_all()

    def on_remove(self, callback: Callable[[], None]) -> None:
        """Call `callback` when this has been removed; it must keep no reference to the pipeline."""
        self._stack.push(lambda *_: callback())

    def remove(self) -> None:
        """Take off what was applied, and nothing else; a second call does nothing.

        Raises:
            AcceleratorError: Another thread is in a call of the pipeline.
        """
        self._clock.check_idle()
        self._stack.close()


class _Mark(Layer):
    """Does nothing; it marks a pipeline's patch, and keeps it as long as the pipeline lives."""

    def __init__(self, patch: Patch) -> None:
        self.patch = patch


def _forget(unet: weakref.ref[Any]) -> None:
    if (owner := unet()) is not None:
        _accelerated.discard(owner)


def remove_from(pipe: Any) -> None:
    """Remove what is applied to a pipeline, or to the UNet that it shares with another, if any."""
    unet = getattr(pipe, "unet", None)
    owners = (pipe, *([] if unet is None else [unet]))
    marks = [layer for owner in owners for layer in layers_of(owner) if isinstance(layer, _Mark)]
    for mark in marks:
        mark.patch.remove()
    if not marks and unet is not None:
        _accelerated.discard(unet)  # An empty candidate, which leaves no mark.


@contextmanager
def apply_candidate(
    pipe: Any, candidate: Mapping[str, Params], implementation: str = "own"
) -> Iterator[None]:
    """Accelerate `pipe` for the length of a `with` block; an empty candidate changes nothing.

    The order of the mapping does not matter: accelerators nest by their `order`. Inside, the
    pipeline is called as always, any number of times, with any number of steps.

    Args:
        pipe: A diffusers pipeline with a UNet2DConditionModel, of SD or SDXL type.
        candidate: Accelerator name -> parameter name -> value, every parameter given.
        implementation: `own`, or `package` for the packages of the accelerators' authors.

    Raises:
        AcceleratorError: The pipeline cannot be patched, or is accelerated already.
        ConfigurationError: An accelerator, a parameter or a value is not known or allowed.
    """
    patch = Patch(pipe, candidate, implementation)
    try:
        yield
    finally:
        patch.remove()
