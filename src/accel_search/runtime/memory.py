"""Measure device memory: a trial's peak, growth across trials, and failed allocations."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

ALLOWANCE_BYTES = 256 * 2**20
"""Growth across trials without a warning."""

SETTLING_TRIALS = 3
"""Trials after which all caches should be filled."""

_UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = r"(\d+(?:\.\d+)?) (bytes|B|KiB|MiB|GiB|TiB)"
_SIGNS = ("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")


@dataclass(frozen=True)
class Shortage:
    """A failed allocation."""

    bytes_asked: int | None
    """None if unknown."""
    bytes_free: int | None
    """Bytes free on the device at that moment; None if unknown."""

    def __str__(self) -> str:
        asked = "an unknown number of" if self.bytes_asked is None else f"{self.bytes_asked:,}"
        free = "an unknown number" if self.bytes_free is None else f"{self.bytes_free:,}"
        return f"{asked} bytes asked, {free} free"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device's memory is exhausted.

    cuDNN, cuBLAS and the CPU's allocator raise a plain RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def parse_shortage(message: str) -> Shortage:
    """Parse an allocator's message for the bytes asked and free.

    Where the process may use only a part of the device, free is what is left of that part.

    Source:
        torch's CUDACachingAllocator: "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of
        79.11 GiB of which 1.50 GiB is free. … 8.00 GiB allowed; Of the allocated memory 6.00 GiB is
        allocated by PyTorch, and 1.00 GiB is reserved by PyTorch but unallocated."; its CPU
        allocator: "you tried to allocate 8 bytes".
    """

    def find(pattern: str) -> int | None:
        match = re.search(pattern, message)
        return round(float(match[1]) * _UNITS[match[2]]) if match else None

    free = find(rf"of which {_SIZE} is free")
    allowed = find(rf"{_SIZE} allowed;")
    if allowed is not None and free is not None:
        used = find(rf"memory {_SIZE} is allocated by PyTorch") or 0
        used += find(rf"and {_SIZE} is reserved by PyTorch") or 0
        free = min(free, max(allowed - used, 0))
    return Shortage(find(rf"[Tt]ried to allocate {_SIZE}"), free)


def free_bytes(device: torch.device, limit_gib: float | None = None) -> int:
    """Return the bytes of a GPU that are free for this process.

    Args:
        device: A CUDA device.
        limit_gib: Most GiB that torch may allocate; None is all.
    """
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + cached
    if limit_gib is not None:
        free = min(free, round(limit_gib * 2**30) - torch.cuda.memory_allocated(device))
    return max(free, 0)


def release(device: torch.device) -> None:
    """Free memory that no tensor uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class PeakMeter:
    """Records the most bytes allocated on a GPU within its `watch` blocks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.peak_bytes: int | None = None
        """None on the CPU, and before the first block."""

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Record the peak of a block."""
        if self._device.type != "cuda":
            yield
            return
        torch.cuda.reset_peak_memory_stats(self._device)
        yield
        self._read()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave a part out of the block being watched."""
        if self._device.type != "cuda":
            yield
            return
        self._read()
        yield
        torch.cuda.reset_peak_memory_stats(self._device)

    def _read(self) -> None:
        peak = torch.cuda.max_memory_allocated(self._device)
        self.peak_bytes = max(peak, self.peak_bytes or 0)


class GrowthWatch:
    """Warns once when the memory that trials leave behind exceeds an allowance.

    The level after the first three trials is the reference. Because it takes time, garbage is
    collected only then and when the allowance is exceeded.

    Args:
        device: Watches the bytes allocated on a GPU, else the process's resident set.
        log: Gets the warning.
        allowance: Bytes of growth without a warning.
    """

    def __init__(
        self, device: torch.device, log: logging.Logger, allowance: int = ALLOWANCE_BYTES
    ) -> None:
        self._device = device
        self._log = log
        self._allowance = allowance
        self._trials = 0
        self._level = 0
        self._began: str | None = None
        self._warned = False

    def after_trial(self, name: str) -> None:
        """Check the memory in use after a trial.

        Args:
            name: The trial's name, for the warning.
        """
        if self._warned:
            return
        self._trials += 1
        if self._trials <= SETTLING_TRIALS:
            if self._trials == SETTLING_TRIALS:
                release(self._device)
                self._level = self.bytes_in_use()
            return
        growth = self.bytes_in_use() - self._level
        if growth > self._allowance:
            release(self._device)
            growth = self.bytes_in_use() - self._level
        # Growth began with the trial after which the level stayed up, possibly long before the one
        # that exceeds the allowance.
        if growth <= self._allowance // 8:
            self._began = None
            return
        self._began = self._began or f"trial {self._trials} ({name})"
        if growth > self._allowance:
            self._warned = True
            self._log.warning(
                "memory in use has grown by %d MiB since trial %d, beginning with %s: an "
                "accelerator may be keeping tensors; if it goes on, end the search and run the "
                "same command again to resume in a fresh process",
                growth // 2**20,
                SETTLING_TRIALS,
                self._began,
            )

    def bytes_in_use(self) -> int:
        """Return the bytes allocated on the GPU, or the process's resident set on the CPU."""
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device))
        import psutil

        return int(psutil.Process().memory_info().rss)
