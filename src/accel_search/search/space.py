"""The joint parameter space of the targets, its canonical form, and the canonical keys.

Many points of the space are the same computation (`Accelerator.signature`). The space is cut into
blocks within which the targets do not change each other's meaning: one for each number of UNet
calls and each set of calls at which caches restart. In a block, every target's points are grouped
by their keys, and the block is the product of the groups, so a million points are never all built.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from accel_search import accelerators
from accel_search.accelerators.base import Accelerator, Context, Parameter
from accel_search.accelerators.computation import signatures
from accel_search.core.candidate import Candidate, Params, Value
from accel_search.core.workload import SpaceSummary, Workload
from accel_search.errors import ConfigurationError

Key = tuple[tuple[str, Hashable], ...]
"""Canonical key of a computation: name and key of each accelerator that changes anything."""

Overrides = Mapping[str, Mapping[str, Sequence[Value]]]
"""Accelerator -> parameter -> values that replace the accelerator's own."""

ALL_BASELINE = "every point is the baseline pipeline"
"""Message for a space without a candidate."""


@dataclass(frozen=True)
class Axis:
    """The values searched of one target."""

    accelerator: Accelerator
    values: tuple[tuple[Value, ...], ...]
    """Values of each parameter that are possible for the workload, mildest first."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Return the target's parameters, in the order of `values`."""
        return self.accelerator.parameters

    def points(self) -> list[dict[str, Value]]:
        """Return every point, the mildest first."""
        names = [parameter.name for parameter in self.parameters]
        return [dict(zip(names, point, strict=True)) for point in product(*self.values)]

    def level(self, point: Params) -> int:
        """Return how fine a grid must be to contain a point: 0 for the middle of every value."""
        return sum(
            _coarse_ranks(len(values))[values.index(point[parameter.name])]
            for parameter, values in zip(self.parameters, self.values, strict=True)
        )

    def coordinates(self, point: Params) -> list[float]:
        """Return each parameter's place among its values: 0 the mildest, 1 the harshest."""
        return [
            values.index(point[parameter.name]) / max(len(values) - 1, 1)
            for parameter, values in zip(self.parameters, self.values, strict=True)
        ]


@dataclass(frozen=True)
class Group:
    """Points of one target that are the same computation."""

    signature: Hashable | None
    """Canonical key; None is the baseline's."""
    points: tuple[dict[str, Value], ...]
    """Every point of the group; the first, mildest one represents it."""
    level: int
    """Least level of its points."""


@dataclass(frozen=True)
class Block:
    """Part of the space: a product of groups, one of each target."""

    workload: Workload | None
    """As the targets leave it; None where it is unknown."""
    companies: tuple[Context, ...]
    """Context of each target: what the others do."""
    groups: tuple[tuple[Group, ...], ...]
    """Groups of each target."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the number of groups of each target."""
        return tuple(len(groups) for groups in self.groups)


class JointSpace:
    """The product of the targets' spaces, with coinciding points merged.

    Args:
        targets: Names of accelerators.
        workload: Decides which points coincide; without one, none do.
        overrides: Values that replace an accelerator's own.
        only: Keys to which a replayed file restricts the space; None is all.

    Raises:
        ConfigurationError: A target is unknown, or no value of a parameter is left.
    """

    def __init__(
        self,
        targets: Sequence[str],
        workload: Workload | None,
        overrides: Overrides | None = None,
        only: Collection[Key] | None = None,
    ) -> None:
        # In the order of candidates and keys, however they were listed.
        self.targets = tuple(sorted(targets))
        self.workload = workload
        self._only = None if only is None else frozenset(only)
        self.axes = tuple(
            _axis(accelerators.get(name), workload, (overrides or {}).get(name, {}))
            for name in self.targets
        )
        self.blocks = tuple(_blocks(self.axes, workload))
        if not self.blocks:
            raise ConfigurationError(
                f"--targets {','.join(self.targets)}: no combination of their values is possible "
                f"at {workload.steps if workload else '?'} steps; use more steps or fewer targets"
            )

    @property
    def is_part(self) -> bool:
        """Return whether the space is restricted to what a replayed file contains."""
        return self._only is not None

    def __len__(self) -> int:
        """Return the number of distinct computations, the baseline not counted."""
        return len(self._places)

    @property
    def point_count(self) -> int:
        """Return the number of points, coinciding ones included."""
        return sum(
            prod(sum(len(group.points) for group in groups) for groups in block.groups)
            for block in self.blocks
        )

    def values(self) -> dict[str, dict[str, list[Value]]]:
        """Return accelerator -> parameter -> values searched, as plain JSON types."""
        return {
            axis.accelerator.name: {
                parameter.name: list(values)
                for parameter, values in zip(axis.parameters, axis.values, strict=True)
            }
            for axis in self.axes
        }

    def summary(self) -> SpaceSummary:
        """Return what result files store of the space."""
        return SpaceSummary(self.targets, self.values(), self.point_count, len(self))

    def key(self, candidate: Candidate) -> Key:
        """Return the canonical key of a candidate; `()` is the baseline's."""
        if self.workload is None:
            return tuple((name, _opaque(params)) for name, params in candidate.items())
        return tuple(signatures(candidate, self.workload, self.targets).items())

    def coinciding(self, candidate: Candidate) -> list[Candidate]:
        """Return every point of the space that is the same computation as `candidate`."""
        wanted = dict(self.key(candidate))
        candidates = []
        for block in self.blocks:
            members = [
                [
                    (axis.accelerator.name, point)
                    for group in groups
                    if group.signature == wanted.get(axis.accelerator.name)
                    for point in group.points
                ]
                for axis, groups in zip(self.axes, block.groups, strict=True)
            ]
            candidates += [Candidate(dict(point)) for point in product(*members)]
        return candidates

    def candidate_at(self, position: int) -> Candidate:
        """Return the distinct candidate at `position`, 0 to `len(space) - 1`.

        Positions run from a coarse grid to finer ones: the first few are spread over the whole
        space and each later one halves a gap, so a search that stops early has covered the space
        evenly.
        """
        return Candidate(
            {
                axis.accelerator.name: group.points[0]
                for axis, group in zip(
                    self.axes, self._groups_of(self._places[position]), strict=True
                )
            }
        )

    def key_at(self, position: int) -> Key:
        """Return the canonical key of the distinct candidate at `position`."""
        return self._key_of(self._places[position])

    def position(self, candidate: Candidate) -> int | None:
        """Return the position of a candidate's computation; None if the space lacks it."""
        return self._positions.get(self.key(candidate))

    def by_distance(self, candidate: Candidate) -> list[int]:
        """Return all positions, sorted by the distance of their parameters to a candidate's."""
        own = [axis.coordinates(candidate[axis.accelerator.name]) for axis in self.axes]
        distances = np.abs(self._coordinates - np.concatenate(own)).sum(axis=1)
        return [int(position) for position in np.argsort(distances, kind="stable")]

    @cached_property
    def _coordinates(self) -> NDArray[np.float64]:
        return self.coordinates()

    def coordinates(self) -> NDArray[np.float64]:
        """Return the place of each distinct candidate: `[N, parameters]`, 0 mildest, 1 harshest."""
        coordinates = np.empty((len(self), sum(len(axis.values) for axis in self.axes)))
        for number, block in enumerate(self.blocks):
            rows, indices = self.rows_of(number)
            parts = [
                np.array([axis.coordinates(group.points[0]) for group in groups])[index]
                for axis, groups, index in zip(self.axes, block.groups, indices, strict=True)
            ]
            coordinates[rows] = np.concatenate(parts, axis=1)
        return coordinates

    def rows_of(self, block: int) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], ...]]:
        """Return the positions in a block, and the index of each target's group there."""
        rows = np.flatnonzero(self._places[:, 0] == block)
        return rows, np.unravel_index(self._places[rows, 1], self.blocks[block].shape)

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Block and flat index of each position, `[N, 2]`, coarse to fine, no baseline."""
        places, levels = [], []
        for number, block in enumerate(self.blocks):
            idle = np.ones(block.shape, dtype=bool)
            level = np.zeros(block.shape, dtype=np.int64)
            for axis, groups in enumerate(block.groups):
                along = [1] * len(block.shape)
                along[axis] = len(groups)
                idle &= np.array([group.signature is None for group in groups]).reshape(along)
                level += np.array([group.level for group in groups]).reshape(along)
            flat = np.flatnonzero(~idle)
            places.append(np.stack([np.full_like(flat, number), flat], axis=1))
            levels.append(level.reshape(-1)[flat])
        sorted_places = np.concatenate(places)[np.argsort(np.concatenate(levels), kind="stable")]
        if self._only is not None:
            sorted_places = sorted_places[
                [self._key_of(place) in self._only for place in sorted_places]
            ]
        return sorted_places

    @cached_property
    def _positions(self) -> dict[Key, int]:
        return {self.key_at(position): position for position in range(len(self))}

    def _key_of(self, place: NDArray[np.int64]) -> Key:
        chosen = (
            (axis.accelerator.name, group.signature)
            for axis, group in zip(self.axes, self._groups_of(place), strict=True)
        )
        return tuple((name, signature) for name, signature in chosen if signature is not None)

    def _groups_of(self, place: NDArray[np.int64]) -> list[Group]:
        block = self.blocks[place[0]]
        indices = np.unravel_index(place[1], block.shape)
        return [groups[index] for groups, index in zip(block.groups, indices, strict=True)]


def _opaque(params: Params) -> Hashable:
    return tuple(sorted(params.items()))


def _axis(
    accelerator: Accelerator, workload: Workload | None, overrides: Mapping[str, Sequence[Value]]
) -> Axis:
    values = []
    for parameter in accelerator.parameters:
        wanted = tuple(dict.fromkeys(overrides.get(parameter.name, parameter.values)))
        # In the direction of the accelerator's own values, from mild to harsh.
        wanted = tuple(sorted(wanted, reverse=parameter.values[0] > parameter.values[-1]))
        allowed = tuple(
            value
            for value in wanted
            if workload is None or accelerator.allowed(parameter, value, workload)
        )
        if not allowed:
            raise ConfigurationError(
                f"{accelerator.name}: no value of {parameter.name} {list(wanted)} is possible at "
                f"{workload.steps if workload else '?'} steps; use more steps or other targets"
            )
        values.append(allowed)
    return Axis(accelerator, tuple(values))


@dataclass(frozen=True)
class _Bearing:
    """How points of one target affect the other targets."""

    workload: Workload | None
    restarts: frozenset[int]


def _bearings(axis: Axis, workload: Workload | None) -> dict[_Bearing, list[dict[str, Value]]]:
    """Group the points of an axis by how they affect the other targets."""
    bearings: dict[_Bearing, list[dict[str, Value]]] = {}
    accelerator = axis.accelerator
    for point in axis.points():
        bearing = _Bearing(workload, frozenset())
        if workload is not None and accelerator.signature(point, workload) is not None:
            bearing = _Bearing(
                accelerator.workload_under(point, workload), accelerator.restarts(point)
            )
        bearings.setdefault(bearing, []).append(point)
    return bearings


def _blocks(axes: Sequence[Axis], workload: Workload | None) -> list[Block]:
    """Return the blocks of the product of the axes, without those that leave a target no point."""
    blocks = []
    for parts in product(*(_bearings(axis, workload).items() for axis in axes)):
        reduced = workload
        companies = []
        for number, (axis, (bearing, points)) in enumerate(zip(axes, parts, strict=True)):
            rest = [at for at in range(len(axes)) if at != number]
            companies.append(
                Context(
                    restarts=frozenset[int]().union(*(parts[at][0].restarts for at in rest)),
                    skips_modules=any(axes[at].accelerator.skips_modules for at in rest),
                )
            )
            if reduced is not None and bearing.workload != workload:
                reduced = axis.accelerator.workload_under(points[0], reduced)
        groups = []
        for axis, context, (bearing, points) in zip(axes, companies, parts, strict=True):
            # A target that changes the workload is itself judged on the unchanged one.
            judged_on = workload if bearing.workload != workload else reduced
            groups.append(_groups(axis, points, judged_on, context))
        if all(groups):
            blocks.append(Block(reduced, tuple(companies), tuple(groups)))
    return blocks


def _groups(
    axis: Axis, points: Sequence[dict[str, Value]], workload: Workload | None, context: Context
) -> tuple[Group, ...]:
    """Group the points that are possible on a workload by their canonical key."""
    accelerator = axis.accelerator
    grouped: dict[Hashable | None, list[dict[str, Value]]] = {}
    for point in points:
        if workload is None:
            grouped[_opaque(point)] = [point]
        elif all(
            accelerator.allowed(parameter, point[parameter.name], workload)
            for parameter in axis.parameters
        ):
            signature = accelerator.signature(point, workload, context)
            grouped.setdefault(signature, []).append(point)
    return tuple(
        Group(signature, tuple(members), min(axis.level(point) for point in members))
        for signature, members in grouped.items()
    )


@cache
def _coarse_ranks(count: int) -> list[int]:
    """Return at which halving each of `count` ordered values is reached: the middle at 0."""
    ranks = [0] * count
    spans = [(0, count)]
    rank = 0
    while spans:
        following = []
        for low, high in spans:
            middle = (low + high) // 2
            ranks[middle] = rank
            following += [span for span in ((low, middle), (middle + 1, high)) if span[0] < span[1]]
        spans = following
        rank += 1
    return ranks
