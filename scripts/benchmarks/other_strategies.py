"""Strategies that the benchmark compares with those of the project."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from accel_search.core.assessment import AssessedTrial
from accel_search.core.candidate import Candidate
from accel_search.core.early_stopping import stages
from accel_search.search.strategies.base import History, Proposal, Strategy, Task


class Halving(Strategy):
    """Successive halving: of candidates in random order, the best third of a stage goes on.

    Each bracket begins with as many as leave one for the last stage, and the next bracket follows.
    Best are the fastest of those that seem within the bound, then those that lose least. When all
    are begun, those left open are finished, the best first.

    Source:
        Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
        optimization" (2016); a third as in Li et al., "Hyperband" (2018).
    """

    name = "halving"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._ends = stages(task.prompts, task.chunk)
        order = np.random.default_rng(task.seed).permutation(len(self.space))
        self._order = [self.space.candidate_at(int(position)) for position in order]
        self._done = 0

    def ask(self, history: History) -> Proposal | None:
        """Return the next candidate of a bracket that lacks its stage."""
        trials = {assessed.trial.candidate: assessed for assessed in history.trials}
        # In a small space, brackets are smaller, so that the first ends within a small budget.
        size = 3 ** (len(self._ends) - 1)
        while size > 3 and 3 * size > len(self._order):
            size //= 3
        for begins in range(self._done, len(self._order), size):
            if proposal := self._in_bracket(self._order[begins : begins + size], trials):
                return proposal
            self._done = begins + size
        left = [candidate for candidate in self._order if trials[candidate].is_open]
        for candidate in self._ranked(left, trials)[:1]:
            return self.raced(candidate, trials[candidate].assessment.prompts)  # type: ignore[union-attr]
        return None

    def _in_bracket(
        self, group: Sequence[Candidate], trials: dict[Candidate, AssessedTrial]
    ) -> Proposal | None:
        for end in self._ends:
            for candidate in group:
                known = trials.get(candidate)
                scored = (
                    0 if known is None or known.assessment is None else known.assessment.prompts
                )
                if scored < end and (known is None or known.is_open):
                    return Proposal(candidate, end)
            going_on = [candidate for candidate in group if trials[candidate].is_open]
            group = self._ranked(going_on, trials)[: max(1, len(group) // 3)]
        return None

    def _ranked(
        self, group: Sequence[Candidate], trials: dict[Candidate, AssessedTrial]
    ) -> list[Candidate]:
        def worth(candidate: Candidate) -> tuple[bool, float]:
            assessment = trials[candidate].assessment
            assert assessment is not None
            is_within = assessment.is_within(self.task.goal)
            loss = assessment.score_loss.value
            return is_within, assessment.speedup.value if is_within else -loss

        return sorted(group, key=worth, reverse=True)


class Minimize(Strategy):
    """scikit-optimize's Gaussian process, as `gp_minimize` runs it, a broken bound as a penalty."""

    name = "gp_minimize"

    def __init__(self, task: Task) -> None:
        from skopt import Optimizer
        from skopt.space import Integer

        super().__init__(task)
        dimensions = [
            Integer(0, len(values) - 1) for axis in self.space.axes for values in axis.values
        ]
        self._optimizer = Optimizer(
            dimensions, "GP", n_initial_points=10, random_state=task.seed, acq_func="gp_hedge"
        )
        self._told = 0
        self._asked: tuple[list[int], Candidate] | None = None

    def ask(self, history: History) -> Proposal | None:
        """Return the race in hand, or the next point that is not measured."""
        if race := self.race(history):
            return race
        known = {self.space.position(each.trial.candidate): each for each in history.trials}
        if self._asked is not None and self.space.position(self._asked[1]) in known:
            each = known[self.space.position(self._asked[1])]
            self._optimizer.tell(self._asked[0], self._cost(each))
            self._asked = None
        for _ in range(20):
            if self._asked is not None:
                break
            places = [int(place) for place in self._optimizer.ask()]
            candidate = self._candidate(places)
            position = self.space.position(candidate)
            if position is not None and position not in known:
                self._asked = places, self.space.candidate_at(position)
            elif position is None:  # The table does not hold it: the nearest that it does.
                order = self.space.by_distance(candidate)
                candidate = self.space.candidate_at(next(at for at in order if at not in known))
                self._asked = self._places(candidate), candidate
            else:
                self._optimizer.tell(places, self._cost(known[position]))
        if self._asked is None:
            candidate = self.first_unmeasured(range(len(self.space)), history)
            return None if candidate is None else self.raced(candidate)
        return self.raced(self._asked[1])

    def _cost(self, each: AssessedTrial) -> float:
        found = each.assessment
        if found is None:
            return 0.0
        over = max(found.score_loss.value - self.task.goal.max_score_loss, 0.0)
        return -found.speedup.value + 10 * over

    def _places(self, candidate: Candidate) -> list[int]:
        return [
            values.index(candidate[axis.accelerator.name][parameter.name])
            for axis in self.space.axes
            for parameter, values in zip(axis.parameters, axis.values, strict=True)
        ]

    def _candidate(self, places: Sequence[int]) -> Candidate:
        rest = iter(places)
        return Candidate(
            {
                axis.accelerator.name: {
                    parameter.name: values[next(rest)]
                    for parameter, values in zip(axis.parameters, axis.values, strict=True)
                }
                for axis in self.space.axes
            }
        )
