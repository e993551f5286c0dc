"""Sample the machine at each timed call: its GPU by NVML, its load by psutil."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from accel_search.core.machine_health import Health
from accel_search.runtime import nvml


class HealthSampler:
    """Samples the machine around calls, outside their time.

    Args:
        device: Device that the calls compute on.
    """

    def __init__(self, device: torch.device) -> None:
        self._cores = psutil.cpu_count()
        # ROCm's devices are called cuda, too.
        is_nvidia = device.type == "cuda" and torch.version.cuda is not None
        self._gpu = gpu = _handle(device) if is_nvidia else None
        self._max_sm_mhz: float | None = None
        if gpu is not None:
            self._max_sm_mhz = nvml.ask(
                lambda lib: lib.nvmlDeviceGetMaxClockInfo(gpu, lib.NVML_CLOCK_SM)
            )
        self._seen = _microseconds()
        self._last = Health()
        self._samples: list[Health] = []

    def begin(self) -> list[Health]:
        """Return a new list, to which the samples from now on are added."""
        self._samples = []
        return self._samples

    def keep(self) -> None:
        """Add the last call's sample to the list: the call counts."""
        self._samples.append(self._last)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Sample a call in a `with` block, at whose end the device has done its work."""
        began, busy, own = time.perf_counter(), busy_seconds(), time.process_time()
        yield
        gpu = {} if self._gpu is None else self._gpu_state(self._gpu)
        busy, own = busy_seconds() - busy, time.process_time() - own
        seconds = max(time.perf_counter() - began, 1e-9)
        self._last = Health(
            **gpu,
            busy_cores=round(busy / seconds, 3),
            own_cores=round(own / seconds, 3),
            cores=self._cores,
        )

    def _gpu_state(self, gpu: Any) -> dict[str, Any]:
        """Return the fields of a sample that the driver knows.

        The clock comes first: it drops while the GPU has nothing to do.
        """
        ask = nvml.ask
        return {
            "sm_mhz": ask(lambda lib: lib.nvmlDeviceGetClockInfo(gpu, lib.NVML_CLOCK_SM)),
            "max_sm_mhz": self._max_sm_mhz,
            "throttle_reasons": ask(lambda lib: lib.nvmlDeviceGetCurrentClocksEventReasons(gpu)),
            "watts": ask(lambda lib: lib.nvmlDeviceGetPowerUsage(gpu) / 1000),
            "celsius": ask(lambda lib: lib.nvmlDeviceGetTemperature(gpu, lib.NVML_TEMPERATURE_GPU)),
            "other_gpu_use": self._other_use(gpu),
        }

    def _other_use(self, gpu: Any) -> float | None:
        since = self._seen
        uses = nvml.ask(lambda lib: lib.nvmlDeviceGetProcessUtilization(gpu, since))
        # The driver's list may hold entries that it has not filled.
        new = [use for use in uses or () if use.timeStamp > since and use.smUtil <= 100]
        self._seen = max((use.timeStamp for use in new), default=since)
        return other_use(((use.pid, use.smUtil / 100) for use in new), os.getpid())


def other_use(uses: Iterable[tuple[int, float]], own: int) -> float | None:
    """Return the part of the GPU's time that other processes used; None where none is known.

    In a container the driver names processes by the host's numbers. Where this one is not among
    them, the busiest counts as this one, so that the result is the least that others used.

    Args:
        uses: A process's number and the part that it used.
        own: This process's number.
    """
    by_process = dict(uses)
    if not by_process:
        return None
    own_use = by_process.get(own, max(by_process.values()))
    return round(min(1.0, sum(by_process.values()) - own_use), 3)


def _handle(device: torch.device) -> Any:
    """Return NVML's handle of a device; None where it has none.

    NVML counts all GPUs of the machine, torch those that CUDA_VISIBLE_DEVICES shows, in an order of
    its own: they agree on the UUID, and where a GPU is divided (MIG) on the place on the bus.
    """
    known: Any = torch.cuda.get_device_properties(device)
    uuid = f"GPU-{str(known.uuid).removeprefix('GPU-')}"
    place = f"{known.pci_domain_id:08x}:{known.pci_bus_id:02x}:{known.pci_device_id:02x}.0"
    handle = nvml.ask(lambda lib: lib.nvmlDeviceGetHandleByUUID(uuid))
    return handle or nvml.ask(lambda lib: lib.nvmlDeviceGetHandleByPciBusId(place))


def busy_seconds() -> float:
    """Return the seconds that all cores have been busy since the machine started."""
    times: dict[str, float] = psutil.cpu_times()._asdict()
    # As psutil counts a percentage: the time of guests is a part of the others' time.
    idle = ("idle", "iowait", "guest", "guest_nice")
    return sum(seconds for name, seconds in times.items() if name not in idle)


def _microseconds() -> int:
    return time.time_ns() // 1000
