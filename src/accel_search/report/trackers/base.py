"""Base class of trackers: begin, receive the events of a search, end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from accel_search.core.workload import Provenance, Workload
from accel_search.errors import ConfigurationError
from accel_search.search.events import Observer
from accel_search.storage.entries import BoundEntry, SearchEntry

if TYPE_CHECKING:
    from accel_search.core.assessment import AssessedTrial


@dataclass(frozen=True)
class Subject:
    """What is searched."""

    study: str | None
    """Name of the trials' study, the same when an interrupted search resumes; None for a replay."""
    asked: Mapping[str, Any]
    """Options that decide the result -> values of plain types."""
    workload: Workload
    provenance: Provenance | None


@dataclass(frozen=True)
class Ending:
    """How a search ended."""

    entry: SearchEntry | None
    """The result; None without one."""
    stopped: str
    """Why it stopped."""
    trials: Sequence[AssessedTrial]
    """Every trial, with its final intervals."""
    files: Sequence[Path]
    """Written files: the result file, reports, trials."""
    bound: BoundEntry | None = None
    """Of a configuration that a sweep explores, or of a search for speed alone."""


class Tracker(Observer, ABC):
    """Writes a search to a place where a team follows its experiments.

    A new tracker is one new file in this folder with one subclass, and an option of its name in
    `Settings`. It overrides the events of `Observer` that it writes. An exception ends it with one
    warning, and the search goes on: it should hide no error, and never wait long.

    Args:
        target: Value of its option: an address.
    """

    name: ClassVar[str]
    """Name of its option."""
    package: ClassVar[str]
    """Package that it imports."""

    @abstractmethod
    def __init__(self, target: str) -> None:
        """Connect."""

    @classmethod
    def check(cls) -> None:
        """Check that its package is installed, without importing it.

        Raises:
            ConfigurationError: It is not installed.
        """
        if find_spec(cls.package) is None:
            raise ConfigurationError(
                f"--{cls.name}: needs the package {cls.package}, which is not installed: "
                f"pip install 'accel-search[{cls.name}]'"
            )

    @abstractmethod
    def begin(self, subject: Subject) -> None:
        """Receive what is searched."""

    @abstractmethod
    def end(self, ending: Ending) -> None:
        """Receive how the search ended."""

    @abstractmethod
    def abort(self, *, interrupted: bool) -> None:
        """Receive that it ended with an error, or was interrupted and may go on later."""
