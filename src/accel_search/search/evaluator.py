"""What a search needs of whatever measures candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from accel_search.core.candidate import Candidate
from accel_search.core.trial import Measurement
from accel_search.core.workload import Provenance, Workload

Split = Literal["search", "held_out"]
"""Part of the prompts: those the search scores on, or those only the winner sees."""


class Evaluator(Protocol):
    """Measures candidates: a real pipeline, or a file of recorded trials."""

    @property
    def workload(self) -> Workload:
        """Return what is measured, at the batch size in hand."""

    @property
    def provenance(self) -> Provenance | None:
        """Return where and with what it measures; None where that was not recorded."""

    def baseline(self, split: Split = "search") -> Measurement:
        """Measure the bare pipeline, timed against itself."""

    @property
    def chunk(self) -> int:
        """Return how many prompts can be scored at a time."""

    @property
    def prompt_count(self) -> int:
        """Return how many prompts a candidate is fully scored on."""

    @property
    def pairs(self) -> int:
        """Return how many baseline calls a fully scored candidate is timed beside."""

    def measure(
        self,
        candidate: Candidate,
        split: Split = "search",
        prompts: range | None = None,
        pairs: int | None = None,
    ) -> Measurement:
        """Measure a candidate beside the baseline.

        A batch that does not fit the device is halved for good, and `workload` with it; the
        measurement then belongs to the baseline of its own batch size, in `baselines`.

        Args:
            candidate: Settings to apply.
            split: Part of the prompts.
            prompts: Which of the part's prompts, a range of positions; None is all.
            pairs: Baseline calls to be timed beside the candidate's; None takes `self.pairs`.

        Raises:
            TrialFailure: This candidate cannot be measured; others can.
        """

    @property
    def baselines(self) -> Mapping[Split, Measurement]:
        """Return the latest baseline that was measured of each part."""

    def check(self) -> None:
        """Check that the pipeline is what it was before the first candidate, and works.

        Raises:
            ContaminationError: It is not.
            BaselineError: It does not work.
        """
