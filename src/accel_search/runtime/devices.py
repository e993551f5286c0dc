"""Where to compute, in what precision, and with how many threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from accel_search.errors import LoadError

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def resolve_device(name: str) -> torch.device:
    """Return the device that `--device` names; `auto` is the first GPU, else the CPU.

    Raises:
        LoadError: A GPU is asked for that is not there.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if found else "cpu")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    index = device.index or 0
    if index >= found:
        there = f"cuda:0 to cuda:{found - 1}" if found else "no CUDA device"
        raise LoadError(
            f"--device {name}: torch {torch.__version__} finds {there}; use --device auto or cpu, "
            "or install a torch built for this machine's GPU"
        )
    return torch.device("cuda", index)


def execution_device(pipe: Any) -> torch.device:
    """Return the device that a pipeline computes on.

    Where its parts wait in main memory until they are called (`--offload`), `pipe.device` is the
    CPU all the same.
    """
    return torch.device(pipe._execution_device)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `--dtype` names; `auto` is float16 on CUDA, float32 elsewhere."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return _DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Return `float16` for `torch.float16`."""
    return str(dtype).removeprefix("torch.")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given; nothing to wait for on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def set_threads(threads: int | None, device: torch.device) -> int | None:
    """Set the CPU threads torch uses, for the whole process.

    Args:
        threads: What `--threads` says; None takes all physical cores that this process may use
            but one. Threads spin while they wait for each other, so one busy neighbour on a
            core that they all need was measured to cost a factor of four to twelve.
        device: On a GPU the default is left to torch.

    Returns:
        The threads set; None where the CPU does not compute and none were asked for.
    """
    if device.type != "cpu":
        if threads is not None:
            torch.set_num_threads(threads)
        return threads
    torch.set_num_threads(threads or max(1, available_cores() - 1))
    return torch.get_num_threads()


def available_cores() -> int:
    """Return the physical cores that this process may use, at least 1."""
    import psutil

    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    else:
        usable = os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or usable
    return max(1, min(usable, physical, _cgroup_quota() or usable))


def _cgroup_quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    # A container's share (`docker --cpus=2`) shows in neither the affinity nor the core count.
    try:
        quota, period = path.read_text(encoding="ascii").split()[:2]
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
