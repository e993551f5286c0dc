"""A JSON document with values of other types than they should be, one at a time."""

from __future__ import annotations

import copy

OTHERS = (None, True, 7, "text", [1], {"a": 1})


def places(value, path=()):
    """Yield the path of every value in a JSON document."""
    yield path
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(each, (*path, key))


def changed(document, path, value):
    """Return a document with another value at one place."""
    if not path:
        return value
    result = copy.deepcopy(document)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return result


def wrong_types(document, others=OTHERS, depth=99):
    """Yield a document with each of its values, down to a depth, replaced by others."""
    for path in places(document):
        for other in others if len(path) <= depth else ():
            yield path, other, changed(document, path, other)
