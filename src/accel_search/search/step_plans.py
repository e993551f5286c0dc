"""Count the UNet calls of each type that a candidate makes; the latency model builds on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from accel_search.accelerators.base import PLAIN, Context, Effect, StepType
from accel_search.search.space import Axis, Block, JointSpace


@dataclass(frozen=True)
class StepPlans:
    """The UNet calls of several candidates, counted by type."""

    types: tuple[StepType, ...]
    """Every type that occurs; the first is the plain call."""
    counts: sparse.csr_array
    """Calls of each type that each candidate makes, `[N, types]`."""
    baseline_calls: int
    """Plain calls that the baseline makes."""

    def __len__(self) -> int:
        """Return the number of candidates."""
        return int(self.counts.shape[0])


def plans_in(space: JointSpace) -> StepPlans:
    """Return the step plans of every distinct candidate of a space, in its order.

    Where the workload is unknown, a candidate is one call of its own type, with its parameters as
    effects.
    """
    types = {PLAIN: 0}
    rows: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    for number, block in enumerate(space.blocks):
        positions, indices = space.rows_of(number)
        skipping = [at for at, axis in enumerate(space.axes) if axis.accelerator.skips_modules]
        # The others' effects depend on the calls in which modules are skipped, and those calls on
        # the group that skips them: go through each such group by itself.
        for chosen in product(*(range(len(block.groups[axis])) for axis in skipping)):
            fixed = dict(zip(skipping, chosen, strict=True))
            rest = np.ones(len(positions), dtype=bool)
            for axis, group in fixed.items():
                rest &= indices[axis] == group
            if not rest.any():
                continue
            local, codes = _codes(
                space.axes, block, [group_indices[rest] for group_indices in indices], fixed
            )
            known = np.array([types.setdefault(step, len(types)) for step in local])
            rows.append(np.repeat(positions[rest], codes.shape[1]))
            columns.append(known[codes].reshape(-1))
    entries = np.concatenate(rows), np.concatenate(columns)
    # Entries of the same place are added up.
    counts = sparse.coo_array(
        (np.ones(len(entries[0])), entries), shape=(len(space), len(types))
    ).tocsr()
    calls = 1 if space.workload is None else space.workload.unet_calls
    return StepPlans(tuple(types), counts, calls)


def _codes(
    axes: Sequence[Axis],
    block: Block,
    indices: Sequence[NDArray[np.int64]],
    fixed: Mapping[int, int],
) -> tuple[list[StepType], NDArray[np.int64]]:
    """Return the types of a block and, for each of its candidates, that of each call `[N, S]`.

    Args:
        axes: Those of the space.
        block: Part of the space.
        indices: Each candidate's group of each axis, `[N]` per axis.
        fixed: Axis -> its group, where all candidates have the same.
    """
    skipped = {axis: _skipped(axes, block, axis, group) for axis, group in fixed.items()}
    joint: list[StepType] = [PLAIN]
    codes = np.zeros((len(indices[0]), 1), dtype=np.int64)
    for number, (axis, index) in enumerate(zip(axes, indices, strict=True)):
        others = frozenset[int]().union(*(calls for at, calls in skipped.items() if at != number))
        context = replace(block.companies[number], skipped=others)
        needed = sorted(set(index.tolist()))
        own: dict[StepType, int] = {}
        table: NDArray[np.int64] = np.zeros((max(needed) + 1, codes.shape[1]), dtype=np.int64)
        for group in needed:
            steps = _described(axis, block, number, group, context)
            if table.shape[1] != len(steps):
                table = np.zeros((len(table), len(steps)), dtype=np.int64)
            table[group] = [own.setdefault(step, len(own)) for step in steps]
        mixed = codes * len(own) + table[index]
        distinct, inverse = np.unique(mixed, return_inverse=True)
        names = list(own)
        joint = [joint[code // len(own)] | names[code % len(own)] for code in distinct.tolist()]
        codes = inverse.reshape(mixed.shape)
    return joint, codes


def _skipped(axes: Sequence[Axis], block: Block, axis: int, group: int) -> frozenset[int]:
    """Return the calls in which a group of an axis leaves modules out."""
    if block.workload is None:
        return frozenset()
    point = block.groups[axis][group].points[0]
    return axes[axis].accelerator.skipped_calls(point, block.workload, block.companies[axis])


def _described(
    axis: Axis, block: Block, number: int, group: int, context: Context
) -> tuple[StepType, ...]:
    """Return what a group of an axis does in each call, effect names prefixed by the target's."""
    accelerator = axis.accelerator
    point = block.groups[number][group].points[0]
    if block.workload is None:
        names = [parameter.name for parameter in axis.parameters]
        steps: tuple[StepType, ...] = (frozenset(map(Effect, names, axis.coordinates(point))),)
    else:
        steps = accelerator.step_types(point, block.workload, context)
    return tuple(
        frozenset(Effect(f"{accelerator.name} {effect.name}", effect.amount) for effect in step)
        for step in steps
    )
