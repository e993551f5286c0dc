"""Find accelerators and strategies: one file each here, and those of installed plug-ins."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, TypeVar

from accel_search.errors import ConfigurationError

T = TypeVar("T")


def discover(package: ModuleType, base: type[T], group: str) -> dict[str, type[T]]:
    """Return the concrete subclasses of `base` by their `name`, in alphabetical order.

    Args:
        package: Package whose modules are imported and searched.
        base: Class whose concrete subclasses are wanted; each has a class attribute `name`.
        group: Entry-point group through which other installed packages add theirs.

    Raises:
        ConfigurationError: A plug-in cannot be loaded, is of another class, or takes a name in use.
    """
    classes: dict[str, type[T]] = {}
    for cls in (*_own(package, base), *_plugged_in(base, group)):
        name: str = cls.name  # type: ignore[attr-defined]
        if name in classes:
            raise ConfigurationError(
                f"{base.__name__.lower()} {name!r} of {cls.__module__} takes a name in use by "
                f"{classes[name].__module__}: rename it or uninstall its package"
            )
        classes[name] = cls
    return dict(sorted(classes.items()))


def _own(package: ModuleType, base: type[T]) -> Iterator[type[T]]:
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for cls in vars(module).values():
            # A module that only imports a class does not define it a second time.
            if _is_one(cls, base) and cls.__module__ == module.__name__:
                yield cls


def _plugged_in(base: type[T], group: str) -> Iterator[type[T]]:
    for point in entry_points(group=group):
        try:
            cls = point.load()
        except Exception as error:  # A plug-in may fail in any way; name it, whatever it was.
            raise ConfigurationError(
                f"plug-in {point.value!r} cannot be loaded ({error}): fix or uninstall it"
            ) from error
        if not _is_one(cls, base):
            raise ConfigurationError(
                f"plug-in {point.value!r} is not a subclass of {base.__name__}: fix or uninstall it"
            )
        yield cls


def _is_one(value: Any, base: type) -> bool:
    return inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)
