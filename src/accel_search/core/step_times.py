"""Times of the UNet calls within one pipeline call: a candidate is its own baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StepTimes:
    """How long each UNet call of one pipeline call took; every time is in seconds per image."""

    call: float
    """The whole pipeline call, probes left out."""
    seconds: tuple[float, ...]
    """Each UNet call, in order."""
    plain: tuple[int, ...]
    """Indices of the UNet calls that are as the baseline makes them."""
    probes: tuple[tuple[int, float], ...] = ()
    """Plain UNet calls made for comparison alone, whose output was dropped: the index of the UNet
    call that each followed, and its time."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StepTimes:
        """Return the times that `dataclasses.asdict` was written from.

        Raises:
            KeyError, TypeError, ValueError: A field is missing or of another type.
        """
        return cls(
            call=float(data["call"]),
            seconds=tuple(float(x) for x in data["seconds"]),
            plain=tuple(int(x) for x in data["plain"]),
            probes=tuple((int(at), float(x)) for at, x in data.get("probes", ())),
        )
