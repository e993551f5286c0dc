"""Which GPUs and cores this machine gives to workers."""

from __future__ import annotations

import os
from collections.abc import Sequence

from accel_search.errors import ConfigurationError
from accel_search.runtime.nvidia_smi import query


def visible_gpus() -> list[str]:
    """Return the GPUs that a process started now would see, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    return query("index")


def choose_gpus(wanted: str | Sequence[int], found: Sequence[str]) -> list[str]:
    """Return the GPUs to work on.

    Args:
        wanted: `all`, or places in `found`.
        found: What there is.

    Raises:
        ConfigurationError: One is not there.
    """
    there = f"GPUs 0 to {len(found) - 1}" if found else "no GPU"
    if wanted == "all":
        if not found:
            raise ConfigurationError(f"--gpus all: this machine shows {there}; leave it out")
        return list(found)
    assert not isinstance(wanted, str)
    for place in wanted:
        if place >= len(found):
            named = ",".join(map(str, wanted))
            raise ConfigurationError(
                f"--gpus {named}: this machine shows {there}; name some of them, or leave it out"
            )
    return [found[place] for place in wanted]


def shares(count: int) -> list[list[int]]:
    """Return the cores of each of several workers: as many each, none shared.

    Launching kernels keeps a core busy; two workers on one would slow each other's timings down.
    Where there are fewer cores than workers, or the system cannot pin, each share is empty, which
    leaves it to the system.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(count)]
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // count
    # Neighbouring numbers mostly share caches and memory.
    return [cores[index * each : (index + 1) * each] for index in range(count)]
