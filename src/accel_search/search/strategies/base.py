"""The base class of strategies, which decide from the history what to measure next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from accel_search.core.assessment import AssessedTrial
from accel_search.core.candidate import Candidate
from accel_search.core.early_stopping import next_stage
from accel_search.core.trial import Goal, Measurement
from accel_search.search.space import ALL_BASELINE, JointSpace


@dataclass(frozen=True)
class Task:
    """What a strategy searches, and what it may ask for."""

    space: JointSpace
    goal: Goal
    prompts: int
    """Prompts that a candidate is fully scored on."""
    chunk: int
    """Prompts per call; asking for fewer costs the same."""
    seed: int
    """Seed of every random choice."""
    sampler: str = ""
    """One of `Strategy.samplers`, where there are several."""


@dataclass(frozen=True)
class History:
    """Everything measured so far."""

    baseline: Measurement
    """The baseline pipeline, on all prompts."""
    trials: Sequence[AssessedTrial] = ()
    """One per distinct candidate, in the order in which they were first measured."""
    refuted: frozenset[Candidate] = frozenset()
    """Candidates rejected on held-out prompts after meeting the goal on the search's."""
    log_chances: Mapping[Candidate, float] = field(default_factory=dict)
    """The others that meet the goal -> log probability that held-out prompts show it too."""
    shift: float = 0.0
    """How far within the bound a candidate must be on the search's prompts to pass there as likely
    as not, where it is unlike all that were scored."""
    error: float = 0.0
    """Standard deviation of its loss there, around that on the search's prompts."""
    shifts: Mapping[Candidate, float] = field(default_factory=dict)
    """`shift` of each candidate that is in `refuted` or `log_chances`."""


@dataclass(frozen=True)
class Proposal:
    """What to measure next."""

    candidate: Candidate
    prompts: int
    """Prompts to score it on in total, earlier ones included."""


class Strategy(ABC):
    """Decides what to measure next.

    A new strategy is one new file in this folder that defines one subclass; the conformance suite
    in `tests/search/strategies/` picks it up. It gets the whole history at every call and may cache
    only what it derives from it, so that a search can resume and machines can share a study.

    Args:
        task: What is searched.
    """

    name: ClassVar[str]
    """Name on the command line."""
    samplers: ClassVar[tuple[str, ...]] = ()
    """Values of `--sampler`, the default first; empty where there is no choice."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.space = task.space
        # Avoid walking the history and the order from the start at every call.
        self._measured: set[int | None] = set()
        self._seen = 0
        self._next = 0

    @abstractmethod
    def ask(self, history: History) -> Proposal | None:
        """Return what to measure next, or None when nothing is left that is worth it.

        It never returns a candidate that coincides with a finished one: one that was scored on all
        prompts, stopped early, or failed.
        """

    def finish(self, history: History) -> Proposal | None:
        """Return the next stage of a started candidate, where no other may be started."""
        return self.race(history)

    def why_done(self, history: History) -> str:
        """Return, in a few words, why `ask` returns None."""
        if not len(self.space):
            return ALL_BASELINE
        failed = any(assessed.trial.failure is not None for assessed in history.trials)
        return f"every distinct candidate was measured{' or failed' if failed else ''}"

    def could_win(self, history: History) -> int:
        """Return how many candidates could still win when a budget ends the search."""
        return len(self.space) - len(history.trials)

    def speedup_of(self, assessed: AssessedTrial, history: History) -> float:
        """Return the speedup by which measured candidates are ranked."""
        return 0.0 if assessed.assessment is None else assessed.assessment.speedup.value

    def race(self, history: History) -> Proposal | None:
        """Return the next stage of the latest unfinished candidate, None without one."""
        for assessed in reversed(history.trials):
            if assessed.is_open and assessed.assessment is not None:
                return self.raced(assessed.trial.candidate, assessed.assessment.prompts)
        return None

    def raced(self, candidate: Candidate, scored: int = 0) -> Proposal:
        """Return the next stage of a candidate that was scored on that many prompts."""
        task = self.task
        return Proposal(candidate, next_stage(task.prompts, task.chunk, scored))

    def first_unmeasured(self, order: Sequence[int], history: History) -> Candidate | None:
        """Return the first candidate in an order of positions that is not in the history.

        Args:
            order: Positions of the space, the same at every call.
            history: As given to `ask`.
        """
        for assessed in history.trials[self._seen :]:
            self._measured.add(self.space.position(assessed.trial.candidate))
        self._seen = len(history.trials)
        while self._next < len(order):
            if order[self._next] not in self._measured:
                return self.space.candidate_at(order[self._next])
            self._next += 1
        return None
