"""A candidate: one point of the joint parameter space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Value = int | float
"""Value of one parameter of an accelerator."""

Params = Mapping[str, Value]
"""Parameter name -> value: one point of one accelerator's space."""


class Candidate(Mapping[str, Params]):
    """One point of the joint space: accelerator name -> parameters. Immutable and hashable.

    The empty candidate is the baseline. Accelerators are kept in alphabetical order, so equal
    settings are equal candidates however they were written.
    """

    __slots__ = ("_items",)

    def __init__(self, settings: Mapping[str, Params] | None = None) -> None:
        self._items: tuple[tuple[str, tuple[tuple[str, Value], ...]], ...] = tuple(
            (name, tuple(params.items())) for name, params in sorted((settings or {}).items())
        )

    def __getitem__(self, name: str) -> dict[str, Value]:
        for key, params in self._items:
            if key == name:
                return dict(params)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self._items])

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple((name, frozenset(params)) for name, params in self._items))

    def __str__(self) -> str:
        return (
            " + ".join(
                f"{name}({', '.join(f'{key}={value}' for key, value in params)})"
                for name, params in self._items
            )
            or "baseline"
        )

    def __repr__(self) -> str:
        return f"Candidate({self.as_dict()})"

    def without(self, name: str) -> Candidate:
        """Return the candidate without one of its accelerators."""
        return Candidate({key: params for key, params in self.items() if key != name})

    def as_dict(self) -> dict[str, dict[str, Value]]:
        """Return plain JSON types: `{"deepcache": {"cache_interval": 2, ...}}`."""
        return {name: dict(params) for name, params in self._items}

    def flat(self) -> dict[str, Value]:
        """Return every parameter by its own name, as the result file lists them."""
        return {key: value for _, params in self._items for key, value in params}
