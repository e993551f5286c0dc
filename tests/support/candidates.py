"""Settings of every accelerator there is, for the suites that each of them goes through."""

from __future__ import annotations

from typing import Any

from accel_search.accelerators import all_accelerators
from accel_search.accelerators.base import Accelerator
from tests.support.tiny import STEPS, workload

ACCELERATORS = all_accelerators()


def extreme(accelerator: Accelerator, end: int, steps: int = STEPS) -> dict[str, Any]:
    """Params at one end of the space: 0 the first value of each that is allowed, -1 the last."""
    load = workload(steps=steps)
    return {
        parameter.name: [v for v in parameter.values if accelerator.allowed(parameter, v, load)][
            end
        ]
        for parameter in accelerator.parameters
    }


SINGLES = {name: {name: extreme(each, -1)} for name, each in ACCELERATORS.items()}
TOGETHER = {name: params for single in SINGLES.values() for name, params in single.items()}
CANDIDATES = SINGLES | {"together": TOGETHER}
"""The harshest point of each accelerator, and of all at once."""
