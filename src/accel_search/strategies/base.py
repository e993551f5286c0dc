"""What a strategy is: it is asked for the next candidate and told nothing but the history."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from accel_search.records import Candidate, Trial
from accel_search.space import JointSpace, Key


class Strategy(ABC):
    """Decides which candidate is measured next.

    A new strategy is one new file in this folder that defines one subclass; the conformance
    suite in `tests/strategies/` picks it up. It keeps no record of its own of what was
    measured: the history is given at every call, so a search resumes, and several machines
    share a study, with nothing more.

    Args:
        space: The candidates to choose from.
        seed: Seed of every random choice.
    """

    name: ClassVar[str]
    """Name on the command line."""

    def __init__(self, space: JointSpace, seed: int) -> None:
        self.space = space
        self.seed = seed
        # Only to avoid walking the history and the order from the start at every call.
        self._measured: set[Key] = set()
        self._seen = 0
        self._next = 0

    @abstractmethod
    def ask(self, history: Sequence[Trial]) -> Candidate | None:
        """Return the next candidate, or None when nothing is left to measure.

        A candidate that coincides with one in `history` is never returned, not even when
        that one failed: what failed once would fail again.

        Args:
            history: Finished trials in the order they were stored; of a failed one
                `measurement` is None.
        """

    def first_unmeasured(self, order: Sequence[int], history: Sequence[Trial]) -> Candidate | None:
        """Return the first candidate of an order of positions that is not in `history`.

        Args:
            order: Positions of the space, the same at every call.
            history: As given to `ask`.
        """
        for trial in history[self._seen :]:
            self._measured.add(self.space.key(trial.candidate))
        self._seen = len(history)
        while self._next < len(order):
            if self.space.key_at(order[self._next]) not in self._measured:
                return self.space.candidate_at(order[self._next])
            self._next += 1
        return None
