"""Attributes that the packages put on modules and leave there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def restored(modules: Iterable[Any], *names: str) -> Iterator[None]:
    """Restore the attributes `names` of `modules`, those that were not there by deleting them."""
    before = [
        (module, {name: vars(module)[name] for name in names if name in vars(module)})
        for module in modules
    ]
    try:
        yield
    finally:
        for module, own in before:
            for name in names:
                if name in own:
                    vars(module)[name] = own[name]
                else:
                    vars(module).pop(name, None)
