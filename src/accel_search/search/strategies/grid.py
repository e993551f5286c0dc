"""The whole space, in an order that covers it early."""

from __future__ import annotations

from accel_search.search.strategies.base import History, Proposal, Strategy


class Grid(Strategy):
    """Every distinct candidate on every prompt, a coarse grid first and the gaps after it."""

    name = "grid"

    def ask(self, history: History) -> Proposal | None:
        """Return the first candidate of the coarse-to-fine order that is not measured."""
        prompts = self.task.prompts
        for assessed in history.trials:  # Of a study that another strategy began.
            if assessed.is_open:
                return Proposal(assessed.trial.candidate, prompts)
        candidate = self.first_unmeasured(range(len(self.space)), history)
        return None if candidate is None else Proposal(candidate, prompts)
