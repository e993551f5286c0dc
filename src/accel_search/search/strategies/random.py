"""Distinct candidates in random order."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from accel_search.search.strategies.base import History, Proposal, Strategy


class Random(Strategy):
    """Every distinct candidate once, in an order drawn from the seed, stopping early."""

    name = "random"

    @cached_property
    def _order(self) -> list[int]:
        rng = np.random.default_rng(self.task.seed)
        order: list[int] = rng.permutation(len(self.space)).tolist()
        return order

    def ask(self, history: History) -> Proposal | None:
        """Return the next stage of the current candidate, or the next candidate of the order."""
        if race := self.race(history):
            return race
        candidate = self.first_unmeasured(self._order, history)
        return None if candidate is None else self.raced(candidate)
