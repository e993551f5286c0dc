"""JSON values as annotated types: what fits, and the line that names what does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from accel_search.storage.typed import UNSET, Meta, Mismatch, UnsetType, convert, to_builtins

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(gt=-1, lt=10)]


@dataclass(frozen=True)
class Part:
    share: Share
    counts: tuple[Count, ...] = ()
    ends: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str
    format: Literal["a/1"] = "a/1"
    part: Part | str | None = None
    values: Annotated[dict[str, int | float], Meta(min_length=1)] = field(default_factory=dict)
    rest: Mapping[str, Any] = field(default_factory=dict)
    note: str | UnsetType | None = UNSET
    flag: bool = False


def test_a_document_becomes_the_types_and_back():
    document = {
        "name": "x",
        "unknown": 1,
        "part": {"share": 1, "counts": [1, 2], "ends": [0, 1.5]},
        "values": {"whole": 3, "fraction": 3.0},
        "rest": {"anything": [None, {"a": []}]},
        "note": None,
    }
    whole = convert(document, Whole)
    assert whole.part == Part(1.0, (1, 2), (0.0, 1.5)) and type(whole.part.share) is float
    assert [type(value) for value in whole.values.values()] == [int, float]
    assert whole.format == "a/1" and whole.note is None and whole.flag is False
    again = json.loads(json.dumps(to_builtins(whole)))
    assert convert(again, Whole) == whole and "note" in again


def test_a_field_that_is_unset_is_left_out():
    whole = Whole(name="x")
    assert "note" not in to_builtins(whole) and not whole.note
    assert convert({"name": "x"}, Whole) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 1}, "Expected `str`, got `int` - at `$.name`"),
        ({"name": None}, "Expected `str`, got `null` - at `$.name`"),
        ({"flag": 1}, "Expected `bool`, got `int` - at `$.flag`"),
        ({"format": "b/1"}, "Expected 'a/1', got 'b/1' - at `$.format`"),
        ({"part": 1}, "Expected `object | str | null`, got `int` - at `$.part`"),
        ({"part": {}}, "Object missing required field `share` - at `$.part`"),
        ({"part": {"share": True}}, "Expected `float`, got `bool` - at `$.part.share`"),
        ({"part": {"share": 1.5}}, "Expected `float` <= 1 - at `$.part.share`"),
        ({"part": {"share": -1}}, "Expected `float` >= 0 - at `$.part.share`"),
        ({"part": {"share": float("nan")}}, "Expected `float` >= 0 - at `$.part.share`"),
        ({"part": {"share": 10**400}}, "Number out of range - at `$.part.share`"),
        (
            {"part": {"share": 0, "counts": [1, 10]}},
            "Expected `int` < 10 - at `$.part.counts[1]`",
        ),
        (
            {"part": {"share": 0, "counts": [1, -1]}},
            "Expected `int` > -1 - at `$.part.counts[1]`",
        ),
        (
            {"part": {"share": 0, "counts": [1.0]}},
            "Expected `int`, got `float` - at `$.part.counts[0]`",
        ),
        (
            {"part": {"share": 0, "ends": [1, 2, 3]}},
            "Expected `array` of length 2, got 3 - at `$.part.ends`",
        ),
        ({"values": {}}, "Expected `object` of length >= 1 - at `$.values`"),
        ({"values": {"a": "1"}}, "Expected `int | float`, got `str` - at `$.values[...]`"),
        ({"rest": []}, "Expected `object`, got `array` - at `$.rest`"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_place(change, message):
    with pytest.raises(Mismatch) as caught:
        convert({"name": "x"} | change, Whole)
    assert str(caught.value) == message


def test_a_document_of_another_kind_is_refused():
    with pytest.raises(Mismatch, match="^Expected `object`, got `array`$"):
        convert([], Whole)
