"""Which packages are installed: applying a result needs few of those that a search needs."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution, requires

from accel_search.errors import ConfigurationError


def check_packages(what: str, *names: str) -> None:
    """Check that packages are installed, without importing them.

    `pip install --no-deps accel-search` installs none, which suffices to apply a result.

    Args:
        what: What needs them, for the message.
        names: Their names; by default all that accel-search depends on.

    Raises:
        ConfigurationError: Some are not installed.
    """
    missing = [name for name in names or _needed() if not _is_installed(name)]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise ConfigurationError(
            f"{what} needs {', '.join(missing)}, which {are} not installed: "
            "pip install accel-search"
        )


def _needed() -> list[str]:
    """Return the packages that are installed with this one, without those of its extras."""
    named = [
        re.match(r"[\w.-]+", text) for text in requires("accel-search") or () if ";" not in text
    ]
    return [match[0] for match in named if match]


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
