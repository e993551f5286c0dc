"""Times of the UNet calls within one pipeline call: a candidate is its own baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REACH = 4
"""Most UNet calls between any one and a plain one, beyond which a plain one is made for it."""


@dataclass(frozen=True)
class StepTimes:
    """How long each UNet call of one pipeline call took; every time is in seconds per image."""

    call: float
    """The whole pipeline call, probes left out."""
    seconds: tuple[float, ...]
    """Each UNet call, in order."""
    kinds: tuple[int, ...]
    """Number of the step type of each; 0 is a plain call, as the baseline makes it."""
    baseline_calls: int
    """UNet calls of the baseline."""
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
            kinds=tuple(int(x) for x in data["kinds"]),
            baseline_calls=int(data["baseline_calls"]),
            probes=tuple((int(at), float(x)) for at, x in data.get("probes", ())),
        )


def steps_to_probe(kinds: Sequence[int], reach: int = REACH) -> list[int]:
    """Return the UNet calls after which a plain one is to be made for comparison.

    Args:
        kinds: As in `StepTimes`.
        reach: Most UNet calls between any one and a plain one, made for comparison or not.
    """
    known = [at for at, kind in enumerate(kinds) if kind == 0]
    probed: list[int] = []
    for at in range(len(kinds)):
        if all(abs(at - near) > reach for near in known):
            probed.append(min(at + reach, len(kinds) - 1))
            known.append(probed[-1])
    return probed
