"""The protocol of everything that measures candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from accel_search.core.candidate import Candidate
from accel_search.core.trial import Measurement
from accel_search.core.workload import Provenance, Workload

Split = Literal["search", "held_out"]
"""Part of the prompts: those of the search, or those that only the winner is validated on."""


class Evaluator(Protocol):
    """Measures candidates: a real pipeline, or a file of recorded trials."""

    @property
    def workload(self) -> Workload:
        """Return what is measured, at the current batch size."""

    @property
    def provenance(self) -> Provenance | None:
        """Return the hardware, versions and inputs; None where they were not recorded."""

    def baseline(self, split: Split = "search", prompts: range | None = None) -> Measurement:
        """Measure the baseline pipeline, timed against itself.

        Args:
            split: Part of the prompts.
            prompts: Which of the part's prompts, a range of positions; None is all.
        """

    @property
    def chunk(self) -> int:
        """Return how many prompts can be scored at a time."""

    @property
    def prompt_count(self) -> int:
        """Return how many prompts a candidate is fully scored on."""

    @property
    def held_out_stages(self) -> tuple[int, ...]:
        """Return the numbers of held-out prompts at which a candidate is judged, ascending."""

    @property
    def pairs(self) -> int:
        """Return how many baseline calls a fully scored candidate is timed beside."""

    @property
    def times_steps(self) -> bool:
        """Return whether single UNet calls tell the speedup of a candidate timed without pairs."""

    def measure(
        self,
        candidate: Candidate,
        split: Split = "search",
        prompts: range | None = None,
        pairs: int | None = None,
        turn: int = 0,
    ) -> Measurement:
        """Measure a candidate beside the baseline.

        A batch that does not fit the device is halved from then on, in `workload` too; compare the
        measurement with the baseline of its own batch size, in `baselines`.

        Args:
            candidate: Settings to apply.
            split: Part of the prompts.
            prompts: Which of the part's prompts, a range of positions; None is all.
            pairs: Baseline calls to time beside the candidate's; None is `self.pairs`.
            turn: Pairs that the candidate was timed in before: which call of a pair comes first
                alternates over all of them.

        Raises:
            TrialFailure: This candidate cannot be measured; others can.
        """

    @property
    def baselines(self) -> Mapping[Split, Measurement]:
        """Return the latest baseline of each part."""

    def check(self) -> None:
        """Check that the pipeline works and is unchanged since before the first candidate.

        Raises:
            ContaminationError: It changed.
            BaselineError: It does not work.
        """
