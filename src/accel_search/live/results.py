"""What `search` and `measure` return."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_search.api import Acceleration
from accel_search.errors import ConfigurationError
from accel_search.storage.run import Row, Run

if TYPE_CHECKING:
    from accel_search.core.intervals import Verdict
    from accel_search.core.named import Comparison, Named, NamedOutcome
    from accel_search.live.asked import Asked


class Result:
    """What was found on a pipeline in memory.

    In a notebook it shows its summary, and speed against loss as a picture.
    """

    def __init__(
        self,
        asked: Asked,
        run: Run | None,
        document: Mapping[str, Any],
        text: str,
        winner: Row | None,
    ) -> None:
        self.asked = asked
        """The pipeline and the arguments that this was asked of."""
        self.winner = winner
        """The fastest candidate that meets the goal: `winner.settings`, its `speedup` and
        `score_loss` with their intervals, on held-out prompts if there are any. None if none
        does."""
        self.run = run
        """All that a report shows; None where an earlier search answered whose run folder is
        gone."""
        self._document = dict(document)
        self._text = text

    @property
    def trials(self) -> tuple[Row, ...]:
        """Return everything that was measured, in order."""
        return () if self.run is None else self.run.rows

    @property
    def front(self) -> tuple[Row, ...]:
        """Return the trials that no other beats in both speed and loss, the fastest first."""
        front = [row for row in self.trials if row.is_front and row.speedup is not None]
        return tuple(sorted(front, key=lambda row: -row.speedup.value))  # type: ignore[union-attr]

    def to_json(self) -> str:
        """Return what `accel-search --json` prints."""
        return json.dumps(self._document, allow_nan=False)

    def report(self, path: str | Path) -> Path:
        """Write a page to read in a browser, and its charts beside it; return its path.

        Raises:
            ConfigurationError: It cannot be written, or the run folder is gone.
        """
        from accel_search.report.html.write import write_search

        if self.run is None:
            raise ConfigurationError(
                "report: an earlier search answered, and its run folder is gone: search with "
                "force=True for a report"
            )
        return write_search(self.run, Path(path))[0]

    def apply(self, pipe: Any = None) -> Acceleration:
        """Apply the winner's settings, until `remove()` or the end of a `with` block.

        Args:
            pipe: A pipeline of this kind; None is the one that was searched.

        Raises:
            ConfigurationError: There is no winner, or the pipeline is gone.
            AcceleratorError: The pipeline is accelerated already.
        """
        target = self.asked.pipe() if pipe is None else pipe
        if target is None:
            raise ConfigurationError("apply: the pipeline is gone; give another: apply(pipe)")
        if self.winner is None:
            raise ConfigurationError("apply: no candidate meets the goal, so there is none to use")
        settings = self.asked.settings
        scheduler = settings.sched if self.asked.names_sampler else None
        return Acceleration(target, self.winner.candidate, scheduler, settings.implementation)

    def __repr__(self) -> str:
        return self._text

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Return what a notebook shows."""
        from accel_search.report.html.plots import chart

        shown: dict[str, Any] = {"text/plain": self._text}
        if self.run is not None and any(row.score_loss for row in self.trials):
            shown["image/png"] = chart(self.run)
        return shown


class Measured(Result):
    """What was measured of settings that were named; the winner is the fastest that passes."""

    def __init__(self, asked: Asked, run: Run, document: Mapping[str, Any], found: NamedOutcome):
        from accel_search.report.console.named import named_text

        super().__init__(asked, run, document, named_text(found, asked.settings), run.winner)
        self.verdict: Verdict = found.verdict
        """`fail` if one of them fails, `pass` if all pass."""
        self.named: tuple[Named, ...] = found.named
        """Each with its verdicts, in the order in which they were named."""
        self.comparisons: tuple[Comparison, ...] = found.comparisons
        """Each further one beside the first."""
