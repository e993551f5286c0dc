"""The joint parameter space of the targets, its canonical form, and the search keys.

Many points of the space are one and the same computation (`Accelerator.signature`); each
accelerator's points are grouped by signature first, and the joint space is the product of
the groups, so even a million points are never all built.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from accel_search import accelerators
from accel_search.accelerators.base import Accelerator, Parameter
from accel_search.errors import ConfigurationError
from accel_search.records import Candidate, Params, Value, Workload

Key = tuple[tuple[str, Hashable], ...]
"""Identity of a computation: accelerator name and signature, for each that does anything."""

Overrides = Mapping[str, Mapping[str, Sequence[Value]]]
"""Accelerator -> parameter -> values that replace the accelerator's own."""


@dataclass(frozen=True)
class Group:
    """Points of one accelerator that are the same computation."""

    signature: Hashable | None
    """None: the baseline."""
    points: tuple[dict[str, Value], ...]
    """Every point of the group; the first, mildest one stands for it."""
    level: int
    """How fine a grid must be to hold it: 0 for the middle of every parameter's values."""


@dataclass(frozen=True)
class Axis:
    """The space of one target."""

    accelerator: Accelerator
    parameters: tuple[Parameter, ...]
    values: tuple[tuple[Value, ...], ...]
    """Values searched of each parameter, those that mean nothing for the workload left out."""
    groups: tuple[Group, ...]

    @property
    def point_count(self) -> int:
        """Return the number of points, coinciding ones counted each."""
        return sum(len(group.points) for group in self.groups)


class JointSpace:
    """The product of the targets' spaces, coinciding points taken together.

    Args:
        targets: Names of accelerators.
        workload: Decides which points coincide; None takes every point as its own.
        overrides: Values that replace an accelerator's own.
        only: Keys that the space is restricted to, for a replayed file; None is all.

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
        self.targets = tuple(targets)
        self.workload = workload
        self._only = None if only is None else frozenset(only)
        self.axes = tuple(
            _axis(accelerators.get(name), workload, (overrides or {}).get(name, {}), self.targets)
            for name in self.targets
        )

    def __len__(self) -> int:
        """Return the number of distinct computations, the baseline not counted."""
        return len(self._order)

    @property
    def point_count(self) -> int:
        """Return the number of points, coinciding ones counted each."""
        return prod(axis.point_count for axis in self.axes)

    def values(self) -> dict[str, dict[str, list[Value]]]:
        """Return accelerator -> parameter -> values searched, as plain JSON types."""
        return {
            axis.accelerator.name: {
                parameter.name: list(values)
                for parameter, values in zip(axis.parameters, axis.values, strict=True)
            }
            for axis in self.axes
        }

    def key(self, candidate: Candidate) -> Key:
        """Return the identity of a candidate's computation; `()` is the baseline's."""
        parts = (
            (name, _signature(accelerators.get(name), params, self.workload, self.targets))
            for name, params in candidate.items()
        )
        return tuple((name, signature) for name, signature in parts if signature is not None)

    def coinciding(self, candidate: Candidate) -> list[Candidate]:
        """Return every point of the space that is the same computation as `candidate`."""
        signatures = dict(self.key(candidate))
        members = [
            [
                (axis.accelerator.name, point)
                for group in axis.groups
                if group.signature == signatures.get(axis.accelerator.name)
                for point in group.points
            ]
            for axis in self.axes
        ]
        return [Candidate(dict(point)) for point in product(*members)]

    def candidate_at(self, position: int) -> Candidate:
        """Return the distinct candidate at `position`, 0 to `len(space) - 1`.

        Positions run from a coarse grid to finer ones: the first few are spread over the
        whole space and each later one halves a gap, so a search that is stopped at any
        moment has seen all of the space about equally well.
        """
        indices = self._order[position]
        return Candidate(
            {
                axis.accelerator.name: axis.groups[index].points[0]
                for axis, index in zip(self.axes, indices, strict=True)
            }
        )

    def key_at(self, position: int) -> Key:
        """Return the key of the distinct candidate at `position`, without computing it anew."""
        return self._key_at(self._order[position])

    @cached_property
    def _order(self) -> list[tuple[int, ...]]:
        """Indices of groups, one an axis, sorted by level; the baseline is left out."""
        ranges = [range(len(axis.groups)) for axis in self.axes]
        levels = [[group.level for group in axis.groups] for axis in self.axes]
        found = [
            indices
            for indices in product(*ranges)
            if (key := self._key_at(indices)) and (self._only is None or key in self._only)
        ]
        found.sort(key=lambda at: sum(level[i] for level, i in zip(levels, at, strict=True)))
        return found

    def _key_at(self, indices: tuple[int, ...]) -> Key:
        chosen = (
            (axis.accelerator.name, axis.groups[index].signature)
            for axis, index in zip(self.axes, indices, strict=True)
        )
        return tuple((name, signature) for name, signature in chosen if signature is not None)


def _signature(
    accelerator: Accelerator, params: Params, workload: Workload | None, targets: Sequence[str]
) -> Hashable | None:
    if workload is None:
        return tuple(sorted(params.items()))
    others = frozenset(targets) - {accelerator.name}
    return accelerator.signature_beside(params, workload, others)


def _axis(
    accelerator: Accelerator,
    workload: Workload | None,
    overrides: Mapping[str, Sequence[Value]],
    targets: Sequence[str],
) -> Axis:
    values = []
    for parameter in accelerator.parameters:
        wanted = tuple(overrides.get(parameter.name, parameter.values))
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
    names = [parameter.name for parameter in accelerator.parameters]
    ranks = [dict(zip(each, _coarse_ranks(len(each)), strict=True)) for each in values]
    points: dict[Hashable | None, list[dict[str, Value]]] = {}
    levels: dict[Hashable | None, int] = {}
    for point in product(*values):
        params = dict(zip(names, point, strict=True))
        signature = _signature(accelerator, params, workload, targets)
        level = sum(rank[value] for rank, value in zip(ranks, point, strict=True))
        points.setdefault(signature, []).append(params)
        levels[signature] = min(level, levels.get(signature, level))
    groups = tuple(
        Group(signature, tuple(members), levels[signature]) for signature, members in points.items()
    )
    return Axis(accelerator, accelerator.parameters, tuple(values), groups)


def _coarse_ranks(count: int) -> list[int]:
    """Return for each of `count` ordered values the halving at which it is first reached.

    The middle has rank 0, the quarters 1, the eighths 2 and so on.
    """
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


def search_key(
    workload: Workload, goal: str | float, req_score_loss: float, targets: Sequence[str]
) -> str:
    """Return the key of a result in `search_params.json`: the text of a Python tuple.

    Args:
        workload: Gives the class names of pipeline and scheduler, and the steps.
        goal: `upbound_speedup`, or the speedup that was reached.
        req_score_loss: The bound on the loss of score, a fraction.
        targets: Names of the accelerators searched.
    """
    return str(
        (
            workload.pipeline_class,
            workload.scheduler_class,
            str(workload.steps),
            goal,
            req_score_loss,
            sorted(targets),
        )
    )
