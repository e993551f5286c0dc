"""Time each UNet call of a pipeline call, with plain calls in between to compare it with."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from accel_search.accelerators.patching import Layer
from accel_search.core.step_times import StepTimes
from accel_search.errors import first_line
from accel_search.runtime.devices import synchronize
from accel_search.runtime.memory import PeakMeter


def plain_twin(unet: Any) -> Any:
    """Return a UNet with the weights of another, which is to be patched, and none of its patches.

    It takes no memory of its own on the device: parameters and buffers are shared.

    Args:
        unet: As the baseline runs it.
    """
    tensors = itertools.chain(unet.parameters(), unet.buffers())
    return copy.deepcopy(unet, {id(tensor): tensor for tensor in tensors})


def has_hooks(unet: Any) -> bool:
    """Return whether hooks move or cast the weights of a module, for which a twin's would fight."""
    names = ("_hf_hook", "_diffusers_hook")  # Of accelerate, and of diffusers' group offloading.
    return any(hasattr(module, name) for module in unet.modules() for name in names)


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


class StepTimer(Layer):
    """Times every UNet call; after some of them makes a plain one, and drops its output.

    On a GPU, events on its stream take the times, so that nothing waits. The exception is after a
    plain call of a candidate whose kernels are computed sooner than the host launches them: its
    successor must not profit from kernels that were launched while the plain one was computed.

    Args:
        device: Device that computes.
        probed: Indices of the UNet calls that a plain one follows.
        twin: Makes the plain calls; None where there are none.
        peak: Watches the memory of the pipeline call, of which plain calls are no part.
    """

    def __init__(
        self,
        device: torch.device,
        probed: Collection[int] = (),
        twin: Any = None,
        peak: PeakMeter | None = None,
    ) -> None:
        self._device = device
        self._probed = frozenset(probed)
        self._twin = twin
        self._peak = peak
        self.failure: str | None = None
        """Why a plain call failed, after which none is made any more."""
        self.start()

    def start(self) -> None:
        """Forget the UNet calls so far: another pipeline call begins."""
        self._calls: list[tuple[Any, Any]] = []
        self._probes: dict[int, tuple[Any, Any]] = {}

    def run(self, unet: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call the UNet as if it were not timed."""
        index = len(self._calls)
        is_probed = index in self._probed and self.failure is None
        # The UNet takes the residuals of adapters off the lists that it is given.
        again = {name: _copied(value) for name, value in kwargs.items()} if is_probed else {}
        start = self._mark()
        output = self.inner(unet, *args, **kwargs)
        self._calls.append((start, self._mark()))
        if is_probed:
            is_waiting = self._device.type == "cuda" and start.query()
            with nullcontext() if self._peak is None else self._peak.pause():
                self._probe(index, args, again)
            if is_waiting:
                synchronize(self._device)
        return output

    def _probe(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        start = self._mark()
        try:
            self._twin(*args, **kwargs)
        except Exception as error:
            # The candidate is not to blame: what it keeps and a plain call together may not fit the
            # device, where each alone does.
            self.failure = first_line(error)
        else:
            self._probes[index] = start, self._mark()

    def times(
        self, seconds: float, images: int, kinds: Sequence[int], baseline_calls: int
    ) -> StepTimes | None:
        """Return the times of the pipeline call that has ended, and of which the device is done.

        Args:
            seconds: Wall seconds of the whole call, probes left out.
            images: Images that it made.
            kinds: Number of the step type of each UNet call; 0 is a plain one.
            baseline_calls: UNet calls of the baseline.

        Returns:
            None where another number of UNet calls was made.
        """
        if len(kinds) != len(self._calls):
            return None
        return StepTimes(
            call=seconds / images,
            seconds=tuple(self._between(*call) / images for call in self._calls),
            kinds=tuple(kinds),
            baseline_calls=baseline_calls,
            probes=tuple((at, self._between(*call) / images) for at, call in self._probes.items()),
        )

    def probing_seconds(self) -> float:
        """Return how much longer plain calls made the pipeline call that has ended."""
        return sum(self._between(self._calls[at][1], end) for at, (_, end) in self._probes.items())

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        if self._device.type != "cuda":
            return float(end - start)
        return float(start.elapsed_time(end)) / 1000
