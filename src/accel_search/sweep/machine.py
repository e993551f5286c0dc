"""The GPUs and cores of this machine that workers get."""

from __future__ import annotations

import os
from collections.abc import Sequence

from accel_search.errors import ConfigurationError
from accel_search.runtime.nvml import gpu_names


def visible_gpus() -> list[str]:
    """Return the GPUs that a process started now would see, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    return [str(index) for index in range(len(gpu_names()))]


def choose_gpus(wanted: str | Sequence[int], gpus: Sequence[str]) -> list[str]:
    """Return the GPUs to use: all of the visible ones, or those at the wanted positions.

    Raises:
        ConfigurationError: One does not exist.
    """
    there = f"GPUs 0 to {len(gpus) - 1}" if gpus else "no GPU"
    if wanted == "all":
        if not gpus:
            raise ConfigurationError(f"--gpus all: this machine shows {there}; leave it out")
        return list(gpus)
    assert not isinstance(wanted, str)
    for place in wanted:
        if place >= len(gpus):
            named = ",".join(map(str, wanted))
            raise ConfigurationError(
                f"--gpus {named}: this machine shows {there}; name some of them, or leave it out"
            )
    return [gpus[place] for place in wanted]


def shares(count: int) -> list[list[int]]:
    """Return the cores of each worker: equal shares, none in two of them.

    Launching kernels keeps a core busy: two workers on one would slow each other down. With fewer
    cores than workers, or on a system that cannot pin, every share is empty: no worker is pinned.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(count)]
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // count
    # Neighbouring numbers mostly share caches and memory.
    return [cores[index * share : (index + 1) * share] for index in range(count)]
