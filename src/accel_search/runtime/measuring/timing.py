"""Wall time of a call, with the device synchronised on both sides."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from accel_search.runtime.devices import synchronize

T = TypeVar("T")


def timed(call: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Run `call` and return its result with the wall seconds it took.

    A collection of garbage in the middle would be charged to whoever happened to trigger it,
    so the collector is paused meanwhile.

    Args:
        call: Its kernels may still be running when it returns.
        device: Device that it computes on.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        synchronize(device)
        start = time.perf_counter()
        result = call()
        synchronize(device)
        return result, time.perf_counter() - start
    finally:
        if collecting:
            gc.enable()


WARM_UP_STEPS_ON_CPU = 2
"""Denoising steps of a warm-up call on the CPU."""


def warm_up_steps(device: torch.device, steps: int) -> int:
    """Return the denoising steps of the call made before a configuration is first timed.

    On a GPU it is a whole call: kernels are chosen and memory is allocated for shapes that may
    come up first in the last step (T-GATE's halved batch), and a call is short beside a trial.
    On the CPU, where a call is dear and little is cached, two steps meet the full and the
    cached step of every accelerator but T-GATE's.

    Args:
        device: Device that is computed on.
        steps: Denoising steps of the calls that will be timed.
    """
    return steps if device.type == "cuda" else min(steps, WARM_UP_STEPS_ON_CPU)
