"""Distinct candidates in random order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from accel_search.records import Candidate, Trial
from accel_search.strategies.base import Strategy


class Random(Strategy):
    """Every distinct candidate once, in an order drawn from the seed."""

    name = "random"

    @cached_property
    def _order(self) -> list[int]:
        order: list[int] = np.random.default_rng(self.seed).permutation(len(self.space)).tolist()
        return order

    def ask(self, history: Sequence[Trial]) -> Candidate | None:
        """Return the first candidate of the drawn order that is not measured."""
        return self.first_unmeasured(self._order, history)
