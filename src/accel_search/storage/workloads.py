"""The results of all workloads that share a key of a result file, none of which replaces another.

A value of the file has the fields of the result that was written last, where the file's readers
look; where there are several, `workloads` holds them all, that one included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from accel_search.storage.json_files import as_object

ALL = "workloads"
"""Field of a value that holds all its results, in the order in which they were written."""


def held(value: Any) -> list[Any]:
    """Return the results of a value, readable or not, the one that was written last at the end."""
    content = as_object(value)
    several = content.get(ALL)
    if isinstance(several, list) and several:
        return several
    # Earlier versions kept one of each model, the fields being those of the last.
    models = as_object(content.get("by_model"))
    return list(models.values()) if models else [value]


def with_result(
    value: Any, written: Mapping[str, Any], is_replaced: Callable[[Any], bool]
) -> dict[str, Any]:
    """Return a value with one more result.

    Args:
        value: The value so far; None if there is none.
        written: The result, as JSON types.
        is_replaced: Says of a result whether the new one takes its place.
    """
    kept = [] if value is None else [each for each in held(value) if not is_replaced(each)]
    return value_of([*kept, dict(written)])


def value_of(several: list[Any]) -> dict[str, Any]:
    """Return the value that holds these results, of which the last is an object."""
    return dict(several[-1]) | ({ALL: several} if len(several) > 1 else {})
