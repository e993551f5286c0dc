"""What a tracker is told, and when."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from accel_search.core.candidate import Candidate
from accel_search.core.trial import Measurement, Trial
from accel_search.core.workload import Provenance, Workload
from accel_search.errors import ConfigurationError

if TYPE_CHECKING:
    from accel_search.core.assessment import AssessedTrial, Assessment
    from accel_search.core.intervals import Estimate
    from accel_search.core.outcome import Ablation, Rival


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

    entry: Mapping[str, Any] | None
    """The result, as the result file holds it; None without one."""
    stopped: str
    """Why it ended."""
    trials: Sequence[AssessedTrial]
    """Every trial, with its final intervals."""
    files: Sequence[Path]
    """What was written: the result file, reports, trials."""


class Tracker(ABC):
    """Writes a search to a place where a team follows its experiments.

    A new tracker is one new file in this folder that defines one subclass, and one option of its
    name in `Settings`. It is told all that a search's observer is told. Whatever it raises ends it
    with one warning, and the search goes on: so it keeps no error to itself, and never waits long.

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
        """Tell what is searched."""

    @abstractmethod
    def on_trial(self, assessed: AssessedTrial) -> None:
        """Tell of a trial, finished or at an early look of its race."""

    @abstractmethod
    def end(self, ending: Ending) -> None:
        """Tell how the search ended."""

    @abstractmethod
    def abort(self, *, interrupted: bool) -> None:
        """Tell that it ended with an error, or was interrupted and may go on later."""

    # What a tracker need not listen to.

    def on_baseline(self, baseline: Measurement) -> None:  # noqa: B027
        """Tell that the baseline is measured, or was recalled."""

    def on_resume(self, history: Sequence[AssessedTrial]) -> None:  # noqa: B027
        """Tell of the trials that an earlier run stored."""

    def on_start(self, candidate: Candidate) -> None:  # noqa: B027
        """Tell that a candidate is about to be measured."""

    def on_timed(self, trial: Trial, found: Estimate | None) -> None:  # noqa: B027
        """Tell what a candidate's timing came to, where speed alone is looked for."""

    def on_confirm(  # noqa: B027
        self, assessed: AssessedTrial, held_out: Assessment | None, ok: bool
    ) -> None:
        """Tell how a candidate did on held-out prompts; None where it failed there."""

    def on_rival(self, rival: Rival) -> None:  # noqa: B027
        """Tell what the bare pipeline does with fewer steps."""

    def on_ablation(self, ablation: Ablation) -> None:  # noqa: B027
        """Tell what the winner does without one of its targets, timed on a few prompts."""
