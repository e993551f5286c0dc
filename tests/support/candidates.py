"""Settings of every accelerator there is, for the suites that each of them goes through."""

from __future__ import annotations

from typing import Any

from accel_search.accelerators import all_accelerators
from accel_search.accelerators.base import Accelerator
from tests.support.tiny import STEPS, tgate_params, workload

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

SUPPORTED: list[dict[str, dict[str, Any]]] = [
    {"deepcache": {"cache_interval": 3, "cache_branch_id": 0}},
    {"tome": {"ratio": 0.5, "max_downsample": 4}},
    {"tgate": tgate_params(5, 3, 2, 1)},
    {"deepcache": {"cache_interval": 2, "cache_branch_id": 4}, "tome": SINGLES["tome"]["tome"]},
    {"deepcache": {"cache_interval": 4, "cache_branch_id": 4}, "tgate": tgate_params(6, 3, 2, 3)},
    {"deepcache": {"cache_interval": 3, "cache_branch_id": 0}, "steps": {"num_inference_steps": 6}},
    {"tgate": tgate_params(5, 3, 2, 1), "steps": {"num_inference_steps": 6}},
]
"""A point of each combination that the packages support."""
