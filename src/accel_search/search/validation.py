"""Validate candidates on held-out prompts: which one first, on how many, and how surely."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from accel_search.core import extras
from accel_search.core.assessment import AssessedTrial, Assessment
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import FEWEST_TO_PASS, chance_within
from accel_search.core.trial import HOPELESS, SURE, Goal, Measurement
from accel_search.core.validation import LIKELY, Outlook, Scores, Tried, foresee
from accel_search.errors import TrialFailure
from accel_search.search.evaluator import Evaluator
from accel_search.search.events import Observer
from accel_search.search.stored_evaluator import StoredEvaluator


class Validator:
    """Scores candidates on more and more held-out prompts, until those tell.

    Args:
        evaluator: Has the held-out prompts.
        measuring: Measures on them.
        goal: Bounds on speedup and quality.
        assess: Assesses a measurement beside a baseline, by the timing noise known by now.
        may_go_on: Returns whether the budget allows further prompts.
        observer: Receives the result of each candidate.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        measuring: StoredEvaluator,
        goal: Goal,
        assess: Callable[[Measurement, Measurement], Assessment],
        may_go_on: Callable[[], bool],
        observer: Observer,
    ) -> None:
        self.tried: dict[Candidate, float | None] = {}
        """Candidates that are not surely within the bound -> the probability that they are; None
        where they failed on held-out prompts."""
        self.cut_short: Candidate | None = None
        """The latest one, if the budget ended its validation while further prompts were left."""
        self._evaluator = evaluator
        self._measuring = measuring
        self._goal = goal
        self._assess = assess
        self._may_go_on = may_go_on
        self._observer = observer
        self.scores: dict[Candidate, Tried] = {}
        """Scores of every candidate that was tried on held-out prompts."""

    def outlook(self, trials: Sequence[AssessedTrial]) -> Outlook:
        """Return what held-out prompts will say of trials, by all that is known."""
        searched = [self._searched(trial) for trial in trials]
        most = max(self._evaluator.held_out_stages, default=0)
        known = list(self.scores.values())
        return foresee(searched, known, self._goal.max_score_loss, most)

    def validate(self, trial: AssessedTrial) -> bool:
        """Score a candidate until it is clear whether it passes; add it to `tried` if it does not.

        Returns:
            Whether it passes; without held-out prompts it does.
        """
        stages = self._evaluator.held_out_stages
        if not stages:
            return True
        candidate = trial.trial.candidate
        held_out: Assessment | None = None
        chance: float | None = None
        self.cut_short = None
        for count in stages:
            if held_out is not None and not self._may_go_on():
                self.cut_short = candidate
                break
            try:
                held_out = self.assessment(candidate, count)
            except TrialFailure:
                break  # The earlier stages count.
            scores = self._paired(candidate)
            self.scores[candidate] = Tried(self._searched(trial), scores)
            chance = self._chance(scores) if self.passes(held_out) else 0.0
            if not HOPELESS <= chance < SURE:
                break
        self._observer.on_confirm(trial, held_out, chance)
        if chance is not None and chance >= SURE:
            return True
        self.tried[candidate] = chance
        return False

    def assessment(self, candidate: Candidate, count: int = 1) -> Assessment:
        """Assess a candidate on held-out prompts: on those that it is scored on, or on `count`.

        Raises:
            TrialFailure: It cannot be measured on them.
        """
        name = extras.held_out(candidate)
        self._measuring.baseline("held_out", prompts=count)
        measured = self._measuring.once(name, candidate, "held_out", range(count))
        return self._assess(measured, self._beside(measured))

    def chance(self, candidate: Candidate) -> float:
        """Return the probability that a candidate is within the bound, by its held-out scores."""
        return self._chance(self._paired(candidate))

    def passes(self, held_out: Assessment) -> bool:
        """Return whether an assessment on held-out prompts meets the goal, its score loss aside.

        Of many candidates that are no faster, some seem so by chance; this second, independent
        timing rules them out.
        """
        goal, speedup = self._goal, held_out.speedup
        if held_out.disagreement is not None and held_out.disagreement.whole is not None:
            speedup = held_out.disagreement.whole  # Pairs of whole calls are the judge.
        return (
            held_out.is_gain
            and held_out.is_within(replace(goal, max_score_loss=math.inf))
            and (goal.min_speedup is None or speedup.high >= goal.min_speedup)
        )

    def _chance(self, scores: Scores) -> float:
        chance = chance_within(scores.baseline, scores.candidate, self._goal.max_score_loss)
        count = len(scores.candidate)
        if count < FEWEST_TO_PASS:  # What hits 1 prompt in 4 hides from 0.75 ** count of such sets.
            chance = min(chance, max(LIKELY, 1 - 0.75**count))
        return chance

    def _searched(self, trial: AssessedTrial) -> Scores:
        measured = trial.trial.measurement
        assert measured is not None  # It is scored on all prompts of the search.
        return Scores(self._measuring.baseline("search", measured).scores, measured.scores)

    def _paired(self, candidate: Candidate) -> Scores:
        measured = self._measuring.extras[extras.held_out(candidate)]
        return Scores(self._beside(measured).scores, measured.scores)

    def _beside(self, measured: Measurement) -> Measurement:
        """Return the baseline on the held-out prompts that a candidate was scored on."""
        count = len(measured.scores)
        baseline = self._measuring.baseline("held_out", measured, count)
        return replace(baseline, scores=baseline.scores[:count])
