"""What a strategy is: it is asked what to measure next and told nothing but the history."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from accel_search.core.assessment import AssessedTrial
from accel_search.core.candidate import Candidate
from accel_search.core.early_stopping import next_rung
from accel_search.core.trial import Goal, Measurement
from accel_search.search.space import ALL_BARE, JointSpace


@dataclass(frozen=True)
class Task:
    """What a strategy is to search, and what it may ask for."""

    space: JointSpace
    goal: Goal
    prompts: int
    """Prompts that a candidate is fully scored on."""
    chunk: int
    """Prompts that can be scored at a time; asking for fewer costs as much."""
    seed: int
    """Seed of every random choice."""
    sampler: str = ""
    """For strategies that have several ways to choose: which of `Strategy.samplers`."""


@dataclass(frozen=True)
class History:
    """All that was measured so far."""

    baseline: Measurement
    """The bare pipeline, on all prompts."""
    trials: Sequence[AssessedTrial] = ()
    """One a distinct candidate, in the order in which they were first measured."""
    refuted: frozenset[Candidate] = frozenset()
    """Candidates within the bound on the search's prompts but not on the held-out ones."""


@dataclass(frozen=True)
class Proposal:
    """What is to be measured next."""

    candidate: Candidate
    prompts: int
    """Prompts that it is to be scored on afterwards, those that it was scored on included."""


class Strategy(ABC):
    """Decides what is measured next.

    A new strategy is one new file in this folder that defines one subclass; the conformance
    suite in `tests/search/strategies/` picks it up. It keeps no record of its own of what was
    measured: the history is given at every call, so a search resumes, and several machines
    share a study, with nothing more. What it derives from the history it may keep.

    Args:
        task: What is searched.
    """

    name: ClassVar[str]
    """Name on the command line."""
    samplers: ClassVar[tuple[str, ...]] = ()
    """What `--sampler` may say for it, the default first; empty where there is no choice."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.space = task.space
        # Only to avoid walking the history and the order from the start at every call.
        self._measured: set[int | None] = set()
        self._seen = 0
        self._next = 0

    @abstractmethod
    def ask(self, history: History) -> Proposal | None:
        """Return what to measure next, or None when nothing is left that is worth it.

        A candidate that coincides with a finished one is never returned: one that is scored on
        all prompts, was given up at an early look, or failed, for it would fail again.
        """

    def finish(self, history: History) -> Proposal | None:
        """Return the next look at what is begun, as `ask` does when nothing else may begin."""
        return self.race(history)

    def why_done(self, history: History) -> str:
        """Return, in a few words, why `ask` returns None."""
        return "every distinct candidate was measured" if len(self.space) else ALL_BARE

    def could_win(self, history: History) -> int:
        """Return how many candidates could still win when a budget ends the search."""
        return len(self.space) - len(history.trials)

    def speedup_of(self, each: AssessedTrial, history: History) -> float:
        """Return the speedup by which a measured candidate is ranked among the others."""
        return 0.0 if each.assessment is None else each.assessment.speedup.value

    def race(self, history: History) -> Proposal | None:
        """Return the next look at a race that is open, None where there is none."""
        for each in reversed(history.trials):
            if each.is_open and each.assessment is not None:
                return self.raced(each.trial.candidate, each.assessment.prompts)
        return None

    def raced(self, candidate: Candidate, scored: int = 0) -> Proposal:
        """Return the next look at a candidate that was scored on so many prompts."""
        task = self.task
        return Proposal(candidate, next_rung(task.prompts, task.chunk, scored))

    def first_unmeasured(self, order: Sequence[int], history: History) -> Candidate | None:
        """Return the first candidate of an order of positions that is not in the history.

        Args:
            order: Positions of the space, the same at every call.
            history: As given to `ask`.
        """
        for each in history.trials[self._seen :]:
            self._measured.add(self.space.position(each.trial.candidate))
        self._seen = len(history.trials)
        while self._next < len(order):
            if order[self._next] not in self._measured:
                return self.space.candidate_at(order[self._next])
            self._next += 1
        return None
