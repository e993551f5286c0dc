"""The machine's state at each timed call, and what of it explains noisy timings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean, median, mode
from typing import Any

LARGE_NOISE = 0.1
"""Timing noise from which the reader is advised."""
SLOWED_CLOCK = 0.95
"""Part of its highest clock below which a GPU counts as slowed down."""
OFTEN = 0.1
"""Part of the calls that must have been slowed down to explain noise."""
OTHERS_ON_GPU, OTHERS_ON_CORES = 0.1, 0.25
"""Part of the GPU's time, and of all cores, from which other processes' use explains noise. Of the
cores it is more, because a search leaves one free."""

# Bits of NVML's clocks event reasons. The hardware's general slowdown comes with a cause of its
# own, if that is known. Idleness and clocks that a person has set slow no call down.
REASONS = ((0x20 | 0x40, "heat"), (0x04 | 0x80, "power cap"), (0x08, "slowed by the hardware"))


@dataclass(frozen=True)
class Health:
    """The machine's state at one timed call; None is unknown."""

    sm_mhz: float | None = None
    """Clock of the GPU's multiprocessors at the end of the call."""
    max_sm_mhz: float | None = None
    """The highest that this clock may be."""
    watts: float | None = None
    """Power that the GPU draws."""
    celsius: float | None = None
    """The GPU's temperature."""
    throttle_reasons: int | None = None
    """Why its clock is held back, as bits of NVML's clocks event reasons; 0 is none."""
    other_gpu_use: float | None = None
    """Part of the GPU's time that other processes used since the sample before, 0 to 1."""
    busy_cores: float | None = None
    """The machine's processor cores that were busy during the call, on average."""
    own_cores: float | None = None
    """How many of them this process kept busy."""
    cores: int | None = None
    """The machine's logical cores."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Health:
        """Return the state that `dataclasses.asdict` was written from.

        Raises:
            TypeError, ValueError: A field is of another type.
        """
        state: dict[str, Any] = {
            name: type_(data[name]) for name, type_ in _TYPES.items() if data.get(name) is not None
        }
        return cls(**state)


_TYPES = {field.name: float for field in fields(Health)} | {"throttle_reasons": int, "cores": int}


@dataclass(frozen=True)
class NoiseNote:
    """What is to be said of timing noise that is large."""

    noise: float
    """Relative difference that two timings of one pipeline may show by chance."""
    cause: str | None
    """What explains it, as far as the samples tell."""
    advice: str
    """What to do about it."""

    def __str__(self) -> str:
        cause = "" if self.cause is None else f" ({self.cause})"
        return f"timing noise ±{100 * self.noise:,.0f} %{cause}: {self.advice}"

    @property
    def sentence(self) -> str:
        """Return the text as a sentence."""
        text = str(self)
        return f"{text[0].upper()}{text[1:]}."


def noise_note(noise: float, pairs: int, samples: Iterable[Health]) -> NoiseNote | None:
    """Return what to say of the timing noise; None where it is small or unknown.

    Args:
        noise: Relative difference that two timings of one pipeline may show by chance.
        pairs: Pairs of calls that it is for.
        samples: The machine at the timed calls.
    """
    if not LARGE_NOISE <= noise < float("inf"):
        return None
    known = list(samples)
    slowed = _slowed(known)
    others = [cause for cause in (_others_on_gpu(known), _others_on_cores(known)) if cause]
    causes = ([] if slowed is None else [slowed[0]]) + others
    todo = slowed[1] if slowed is not None and not others else "stop other work"
    advice = f"{todo}, or --timing_pairs {2 * pairs}"
    return NoiseNote(round(noise, 4), "; ".join(causes) or None, advice)


def _slowed(samples: Sequence[Health]) -> tuple[str, str] | None:
    """Return at which clock and why the GPU was slowed down, and what to do about it."""
    slowed = [
        (sample.sm_mhz, sample.max_sm_mhz, reason)
        for sample in samples
        if sample.sm_mhz is not None
        and sample.max_sm_mhz is not None
        and sample.sm_mhz < SLOWED_CLOCK * sample.max_sm_mhz
        and (reason := _reason(sample)) is not None
    ]
    if not slowed or len(slowed) < OFTEN * len(samples):
        return None
    clocks, highest, reasons = zip(*slowed, strict=True)
    clock = median(clocks)
    return (
        f"the GPU ran at {clock:,.0f} of {max(highest):,.0f} MHz: {mode(reasons)}",
        f"lock its clock lower (nvidia-smi -lgc {min(clocks):.0f})",
    )


def _reason(sample: Health) -> str | None:
    bits = sample.throttle_reasons or 0
    return next((reason for mask, reason in REASONS if bits & mask), None)


def _others_on_gpu(samples: Sequence[Health]) -> str | None:
    use = _mean(samples, lambda sample: sample.other_gpu_use)
    if use is None or use < OTHERS_ON_GPU:
        return None
    return f"other processes used {100 * use:.0f} % of the GPU"


def _others_on_cores(samples: Sequence[Health]) -> str | None:
    busy = _mean(samples, lambda sample: sample.busy_cores)
    own = _mean(samples, lambda sample: sample.own_cores)
    cores = max((sample.cores or 0 for sample in samples), default=0)
    # A sandbox may show no load, not even that of this process.
    if busy is None or own is None or busy - own < OTHERS_ON_CORES * max(cores, 1):
        return None
    return f"other processes kept {busy - own:.1f} of {cores} cores busy"


def _mean(samples: Sequence[Health], of: Callable[[Health], float | None]) -> float | None:
    known = [value for sample in samples if (value := of(sample)) is not None]
    return fmean(known) if known else None
