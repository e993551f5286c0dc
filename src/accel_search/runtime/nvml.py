"""Ask the NVIDIA driver by its management library, NVML, without loading torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def ask(query: Callable[[Any], T]) -> T | None:
    """Return the driver's answer; None where there is no driver, or it does not know.

    Args:
        query: Called with the module `pynvml`.
    """
    import pynvml

    try:
        pynvml.nvmlInit()  # Once it is loaded, this only counts.
        return query(pynvml)
    except pynvml.NVMLError:
        return None


def driver_version() -> str | None:
    """Return the driver's version; None without one."""
    return ask(lambda nvml: str(nvml.nvmlSystemGetDriverVersion()))


def gpu_names() -> list[str]:
    """Return the model of every GPU of the machine, in the driver's order."""

    def names(nvml: Any) -> list[str]:
        handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        return [str(nvml.nvmlDeviceGetName(handle)) for handle in handles]

    return ask(names) or []
