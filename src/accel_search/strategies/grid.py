"""The whole space, in an order that sees all of it early."""

from __future__ import annotations

from collections.abc import Sequence

from accel_search.records import Candidate, Trial
from accel_search.strategies.base import Strategy


class Grid(Strategy):
    """Every distinct candidate, a coarse grid first and the gaps between after it.

    Nothing is skipped but what is provably not worth a run: points that coincide with one
    already measured, and points that are the baseline.
    """

    name = "grid"

    def ask(self, history: Sequence[Trial]) -> Candidate | None:
        """Return the first candidate of the coarse-to-fine order that is not measured."""
        return self.first_unmeasured(range(len(self.space)), history)
