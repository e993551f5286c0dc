"""Choose the device, the precision and the number of threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from accel_search.errors import LoadError


def resolve_device(name: str) -> torch.device:
    """Return the device of `--device`; `auto` is the first GPU, else the CPU.

    Raises:
        LoadError: That GPU is missing.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    index = device.index or 0
    if index >= count:
        there = f"cuda:0 to cuda:{count - 1}" if count else "no CUDA device"
        raise LoadError(
            f"--device {name}: torch {torch.__version__} finds {there}; use --device auto or cpu, "
            "or install a torch built for this machine's GPU"
        )
    return torch.device("cuda", index)


def execution_device(pipe: Any) -> torch.device:
    """Return the device that a pipeline computes on; with `--offload`, `pipe.device` is the CPU."""
    return torch.device(pipe._execution_device)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of `--dtype`; `auto` is float16 on CUDA, float32 elsewhere."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """Return `float16` for `torch.float16`."""
    return str(dtype).removeprefix("torch.")


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def set_threads(threads: int | None, device: torch.device) -> int | None:
    """Set torch's CPU threads for the whole process.

    Args:
        threads: Value of `--threads`; None is all usable physical cores but one. With all of them,
            one busy neighbour was measured to slow calls down by a factor of four to twelve.
        device: On a GPU the default is torch's.

    Returns:
        The number set; None on a GPU by default.
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
    # Neither affinity nor core count shows a container's share (`docker --cpus=2`).
    try:
        quota, period = path.read_text(encoding="ascii").split()[:2]
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
