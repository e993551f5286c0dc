"""Step plans of a few candidates, each described call by call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from accel_search.accelerators.base import PLAIN
from accel_search.accelerators.computation import describe_steps
from accel_search.core.candidate import Candidate
from accel_search.core.workload import Workload
from accel_search.search.step_plans import StepPlans


def plans_of(candidates: Sequence[Candidate], workload: Workload) -> StepPlans:
    """Return the step plans of candidates that need not be a whole space."""
    described = [describe_steps(candidate, workload) for candidate in candidates]
    types = {PLAIN: 0}
    for steps in described:
        for step in steps:
            types.setdefault(step, len(types))
    rows = [row for row, steps in enumerate(described) for _ in steps]
    columns = [types[step] for steps in described for step in steps]
    shape = (len(described), len(types))
    counts = sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()
    return StepPlans(tuple(types), counts, workload.unet_calls)
