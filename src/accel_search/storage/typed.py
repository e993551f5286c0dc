"""JSON values converted to annotated types, every field checked; and back.

By the standard library alone: a stored result is applied where nothing but diffusers is installed.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import cycle
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

Converter = Callable[[Any], Any]


class UnsetType(Enum):
    """The type of `UNSET`, the value of a field that is left out of the file."""

    UNSET = "unset"

    def __bool__(self) -> Literal[False]:
        """Return False, as for an empty value."""
        return False


UNSET = UnsetType.UNSET


@dataclass(frozen=True)
class Meta:
    """Limits of an `Annotated` number, or the least length of an object; None where there is none.

    NaN is within no limits.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    min_length: int | None = None

    def misses(self, value: Any) -> str | None:
        """Return the limit that a value is beyond, for a message; None if it is within all."""
        if self.min_length is not None and len(value) < self.min_length:
            return f"of length >= {self.min_length}"
        if self.gt is not None and not value > self.gt:
            return f"> {self.gt}"
        if self.ge is not None and not value >= self.ge:
            return f">= {self.ge}"
        if self.lt is not None and not value < self.lt:
            return f"< {self.lt}"
        if self.le is not None and not value <= self.le:
            return f"<= {self.le}"
        return None


class Mismatch(ValueError):
    """A value does not fit its type; the message is one line that names the place."""

    def __init__(self, problem: str, place: str = "") -> None:
        super().__init__(f"{problem} - at `${place}`" if place else problem)
        self.problem = problem
        self.place = place

    def within(self, step: str) -> Mismatch:
        """Return the same of a value that contains this one."""
        return Mismatch(self.problem, step + self.place)


def convert(value: Any, kind: Any) -> Any:
    """Return a value of a JSON document converted to a type.

    Args:
        value: The value. A whole number is converted where a fraction is expected; nothing else is.
        kind: A dataclass, `dict`, `tuple`, `Literal`, scalar or `Any`, or a union, where each kind
            of JSON value fits at most one member. Unknown fields of a dataclass are ignored.

    Raises:
        Mismatch: It does not fit.
    """
    return _converter(kind)(value)


def to_builtins(value: Any) -> dict[str, Any]:
    """Return a dataclass as dictionaries, without the fields that are `UNSET`."""
    return asdict(
        value,
        dict_factory=lambda items: {name: item for name, item in items if item is not UNSET},
    )


_NAMES: dict[type, str] = {
    **{str: "str", bool: "bool", int: "int", float: "float", types.NoneType: "null"},
    **{list: "array", tuple: "array", dict: "object"},
}


def _expected(names: str, value: Any) -> Mismatch:
    return Mismatch(f"Expected `{names}`, got `{_NAMES.get(type(value), type(value).__name__)}`")


@cache
def _converter(kind: Any) -> Converter:
    """Return the function that converts to a type."""
    make = _MAKERS.get(get_origin(kind))
    if make is not None:
        return make(*get_args(kind))
    return _record(kind) if is_dataclass(kind) else _scalar(kind)


def _scalar(kind: Any) -> Converter:
    if kind is Any:
        return lambda value: value

    def scalar(value: Any) -> Any:
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            try:
                return float(value)
            except OverflowError as error:
                raise Mismatch("Number out of range") from error
        raise _expected(_NAMES[kind], value)

    return scalar


def _limited(kind: Any, limits: Meta) -> Converter:
    inner = _converter(kind)

    def limited(value: Any) -> Any:
        converted = inner(value)
        missed = limits.misses(converted)
        if missed:
            raise Mismatch(f"Expected `{_name(kind)}` {missed}")
        return converted

    return limited


def _literal(*allowed: Any) -> Converter:
    def literal(value: Any) -> Any:
        if value in allowed:
            return value
        raise Mismatch(f"Expected {' or '.join(map(repr, allowed))}, got {value!r}")

    return literal


def _union(*given: Any) -> Converter:
    """Take the member of the value's own type; a whole number fits a fraction, if need be."""
    kinds = [kind for kind in given if kind is not UnsetType]
    members = {_json_type(kind): _converter(kind) for kind in kinds}
    names = " | ".join(_name(kind) for kind in kinds)

    def union(value: Any) -> Any:
        own = list if type(value) is tuple else type(value)
        member = members.get(own) or (members.get(float) if own is int else None)
        if member is None:
            raise _expected(names, value)
        return member(value)

    return union


def _tuple(*kinds: Any) -> Converter:
    repeated = len(kinds) == 2 and kinds[1] is ...
    members = tuple(_converter(kind) for kind in (kinds[:1] if repeated else kinds))

    def items(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise _expected("array", value)
        if not repeated and len(value) != len(members):
            raise Mismatch(f"Expected `array` of length {len(members)}, got {len(value)}")
        converted = []
        try:
            for member, item in zip(cycle(members), value, strict=False):
                converted.append(member(item))
        except Mismatch as error:
            raise error.within(f"[{len(converted)}]") from None
        return tuple(converted)

    return items


def _mapping(name_kind: Any, kind: Any) -> Converter:
    name, member = _converter(name_kind), _converter(kind)

    def mapping(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _expected("object", value)
        try:
            return {name(key): member(item) for key, item in value.items()}
        except Mismatch as error:
            raise error.within("[...]") from None

    return mapping


def _record(kind: Any) -> Converter:
    hints = get_type_hints(kind, include_extras=True)
    members = {option.name: _converter(hints[option.name]) for option in fields(kind)}
    needed = [
        option.name
        for option in fields(kind)
        if option.default is MISSING and option.default_factory is MISSING
    ]

    def record(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _expected("object", value)
        for name in needed:
            if name not in value:
                raise Mismatch(f"Object missing required field `{name}`")
        converted = {}
        for name, item in value.items():
            if name in members:
                try:
                    converted[name] = members[name](item)
                except Mismatch as error:
                    raise error.within(f".{name}") from None
        return kind(**converted)

    return record


_MAKERS: dict[Any, Callable[..., Converter]] = {
    Annotated: _limited,
    Union: _union,
    types.UnionType: _union,
    Literal: _literal,
    tuple: _tuple,
    dict: _mapping,
    Mapping: _mapping,
}


def _json_type(kind: Any) -> type:
    """Return the Python type of the JSON values that fit a type."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _json_type(get_args(kind)[0])
    if origin is tuple:
        return list
    if origin in (dict, Mapping) or is_dataclass(kind):
        return dict
    found: type = kind
    return found


def _name(kind: Any) -> str:
    return _NAMES[_json_type(kind)]
