"""What every tracker does: begin, receive the events of a search, and end."""

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
    """Name of the trials' study, the same when an interrupted search goes on; None for a replay."""
    asked: Mapping[str, Any]
    """Option -> value, plain types, of what decides the result."""
    workload: Workload
    provenance: Provenance | None


@dataclass(frozen=True)
class Ending:
    """How a search ended."""

    entry: SearchEntry | None
    """The result; None without one."""
    stopped: str
    """Why it ended."""
    trials: Sequence[AssessedTrial]
    """Every trial, with its final intervals."""
    files: Sequence[Path]
    """What was written: the result file, reports, trials."""
    bound: BoundEntry | None = None
    """Of a configuration that a sweep explores, or of a search for speed alone."""


class Tracker(Observer, ABC):
    """Writes a search to a place where a team follows its experiments.

    A new tracker is one new file in this folder that defines one subclass, and one option of its
    name in `Settings`. It overrides the events of `Observer` that it writes. Whatever it raises
    ends it with one warning, and the search goes on: so it hides no error, and never waits long.

    Args:
        target: What its option says: an address.
    """

    name: ClassVar[str]
    """Name of its option."""
    package: ClassVar[str]
    """What has to be importable."""

    @abstractmethod
    def __init__(self, target: str) -> None:
        """Connect."""

    @classmethod
    def check(cls) -> None:
        """Check that its package is there, without importing it.

        Raises:
            ConfigurationError: It is not.
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
