"""Time a call, with the device synchronised before and after."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from accel_search.runtime.devices import synchronize

T = TypeVar("T")


def timed(call: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Run `call` without garbage collection and return its result and wall seconds.

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
    """Return the denoising steps of the call before a configuration is first timed.

    On a GPU it is a whole call: shapes for which kernels are chosen and memory is allocated may
    first occur in the last step (T-GATE's halved batch). On the CPU, where calls are slow and
    little is cached, two steps cover the full and the cached step of all accelerators but T-GATE.

    Args:
        device: Device that computes.
        steps: Denoising steps of the timed calls.
    """
    return steps if device.type == "cuda" else min(steps, WARM_UP_STEPS_ON_CPU)
