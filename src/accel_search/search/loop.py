"""The loop: a strategy proposes, an evaluator measures, a store keeps, a winner is confirmed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from accel_search.core import extras
from accel_search.core.assessment import AssessedTrial, Assessment, assess, retimed
from accel_search.core.candidate import Candidate
from accel_search.core.outcome import Ablation, Outcome, Rival, speed_of
from accel_search.core.timing_noise import TimingNoise, timing_noises
from accel_search.core.trial import Goal, Measurement, Trial
from accel_search.errors import TrialFailure
from accel_search.search.evaluator import Evaluator, Split
from accel_search.search.events import Observer
from accel_search.search.stored_evaluator import StoredEvaluator
from accel_search.search.strategies.base import History, Proposal, Strategy
from accel_search.search.watchdog import Watchdog
from accel_search.storage.trials_db import TrialStore

MAX_CONFIRMATIONS = 5
"""Candidates tried on held-out prompts before the search gives up.

Each takes as long as a full trial; and of many that are tried there, one passes by luck.
"""
STALE = 1.1
"""Growth of the number of trials after which the intervals of all are made anew."""


@dataclass(frozen=True)
class Budget:
    """When to stop before the space is exhausted; None is no limit."""

    max_trials: int | None = None
    seconds: float | None = None


TimedBeside = TypeVar("TimedBeside", Rival, Ablation)


class Search:
    """One search over one study.

    Args:
        evaluator: Measures.
        strategy: Proposes.
        store: Keeps; what it already holds is not measured again.
        goal: What is looked for.
        budget: When to stop early.
        observer: Is told what happens.
        watchdog: Ends what hangs; None lets it hang.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        strategy: Strategy,
        store: TrialStore,
        goal: Goal,
        budget: Budget,
        observer: Observer,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._evaluator = evaluator
        self._strategy = strategy
        self._store = store
        self._goal = goal
        self._budget = budget
        self._observer = observer
        self._measuring = StoredEvaluator(evaluator, store, watchdog, self._pool)
        self._prompts = 0
        self._trials: dict[Candidate, AssessedTrial] = {}
        self._noises: dict[int, TimingNoise] = {}
        self._pooled = 0
        self._refuted: list[Candidate] = []

    def run(self) -> Outcome:
        """Search until the goal, the end of the space or the budget, and confirm the winner.

        Raises:
            ConfigurationError: The bare pipeline makes no valid image.
            ContaminationError: An accelerator left the pipeline changed.
            OutOfMemoryError: The workload does not fit even at batch size 1.
        """
        baseline = self._measuring.baseline()
        self._prompts = len(baseline.scores)
        self._observer.on_baseline(baseline)
        self._measuring.reload()
        stored = self._store.trials()
        self._pool(stored)
        self._trials = {trial.candidate: self._assess(trial) for trial in stored}
        resumed = len(self._trials)
        if resumed:
            self._observer.on_resume(list(self._trials.values()))
        self._measuring.check_after_hang()
        is_over = False
        while not is_over:
            winner, held_out, stopped, settled = self._find(baseline)
            could_win = 0 if settled else self._strategy.could_win(self._history(baseline))
            if winner is None:
                could_win += len(self._feasible())  # With a winner, they are slower.
            rivals = () if winner is None else self._rivals(winner, held_out)
            ablations = () if winner is None else self._ablations(winner.trial.candidate)
            self._measuring.check()
            # Everything was timed by now: the intervals that are reported are all of one pool.
            self._measuring.reload()
            self._restate()
            # What was timed last may have shown that the winner's gain is none.
            is_over = winner is None or self._still_wins(winner.trial.candidate)
        if winner is not None:
            winner = self._trials[winner.trial.candidate]
            held_out = None if held_out is None else self._held_out(winner.trial.candidate)
            rivals = tuple(self._reassessed(each) for each in rivals)
            ablations = tuple(self._reassessed(each) for each in ablations)
        if winner is not None and winner.trial.measurement is not None:
            baseline = self._measuring.baseline(beside=winner.trial.measurement)
        trials = tuple(self._trials.values())
        return Outcome(
            baseline=baseline,
            winner=winner,
            held_out=held_out,
            rivals=rivals,
            trials=trials,
            resumed=resumed,
            refuted=tuple(self._refuted),
            stopped=stopped,
            settled=settled,
            could_win=could_win,
            seconds=sum(each.trial.seconds for each in trials)
            + sum(measurement.seconds for measurement in self._measuring.extras.values()),
            ablations=ablations,
        )

    def _find(
        self, baseline: Measurement
    ) -> tuple[AssessedTrial | None, Assessment | None, str, bool]:
        """Measure what the strategy asks for until a winner is confirmed or nothing is left.

        Returns:
            The winner, its assessment on held-out prompts, why the search ended, and whether the
            strategy had nothing left to ask for.
        """
        asks_for_more = self._goal.min_speedup is None
        while True:
            over, proposal = None, None
            if not asks_for_more or len(self._trials) >= STALE * self._pooled:
                self._restate()
            # A requirement is met by the first that meets it; an upper bound needs them all.
            if asks_for_more or self._fastest_feasible(baseline) is None:
                over, proposal = self._ask(baseline)
            if proposal is not None:
                self._observer.on_start(proposal.candidate)
                self._measure(proposal)
                continue
            self._restate()
            best = self._fastest_feasible(baseline)
            if best is None:
                reason = over or self._strategy.why_done(self._history(baseline))
                return None, None, reason, over is None
            holds, held_out = self._confirm(best)
            if not holds:
                self._refuted.append(best.trial.candidate)
                if len(self._refuted) >= MAX_CONFIRMATIONS and self._is_any_left(baseline):
                    return None, None, self._why_given_up(), False
                # What it had left behind may win after all: the strategy is asked again.
                continue
            if not asks_for_more:
                return best, held_out, "the requirement was met", True
            reason = over or self._strategy.why_done(self._history(baseline))
            return best, held_out, reason, over is None

    def _is_any_left(self, baseline: Measurement) -> bool:
        """Tell whether a candidate is left that could win, untried on held-out prompts."""
        return bool(self._feasible() or self._strategy.could_win(self._history(baseline)))

    def _why_given_up(self) -> str:
        failed = f"{len(self._refuted)} candidates failed on held-out prompts"
        untried = len(self._feasible())
        if not untried:
            return failed
        ones = "one within the bound was" if untried == 1 else "ones within the bound were"
        return f"{failed}; {untried:,} slower {ones} not tried"

    def _ask(self, baseline: Measurement) -> tuple[str | None, Proposal | None]:
        """Return why the budget is over, or what the strategy asks for; neither if it is done."""
        budget = self._budget
        proposal = self._strategy.ask(self._history(baseline))
        if proposal is None:
            return None, None  # A budget that is spent just now has ended nothing.
        if budget.seconds is not None and self._measuring.spent >= budget.seconds:
            return f"--time_budget of {budget.seconds:.0f} s was spent", None
        begins = proposal.candidate not in self._trials
        if begins and budget.max_trials is not None and len(self._trials) >= budget.max_trials:
            # The fastest may be among those that were only looked at.
            proposal = self._strategy.finish(self._history(baseline))
            reached = f"--max_trials {budget.max_trials} was reached"
            return (reached if proposal is None else None), proposal
        return None, proposal

    def _history(self, baseline: Measurement) -> History:
        return History(baseline, tuple(self._trials.values()), frozenset(self._refuted))

    def _feasible(self) -> list[AssessedTrial]:
        """Return what meets the goal, as far as the search's prompts and the held-out ones tell."""
        return [
            each
            for each in self._trials.values()
            if each.is_feasible(self._goal) and each.trial.candidate not in self._refuted
        ]

    def _fastest_feasible(self, baseline: Measurement) -> AssessedTrial | None:
        history = self._history(baseline)
        return max(
            self._feasible(),
            key=lambda each: self._strategy.speedup_of(each, history),
            default=None,
        )

    def _assess(self, trial: Trial) -> AssessedTrial:
        measured = trial.measurement
        return AssessedTrial(trial, None if measured is None else self._assessment(measured))

    def _assessment(self, measured: Measurement, split: Split = "search") -> Assessment:
        baseline = self._measuring.baseline(split, measured)
        noise = self._noises.get(measured.batch_size)
        return assess(measured, baseline, self._goal.max_score_loss, noise)

    def _pool(self, trials: Sequence[Trial] | None = None) -> None:
        """Take all pairs timed so far for what is known of the noise, by batch size."""
        known = [each.trial for each in self._trials.values()] if trials is None else trials
        self._noises = timing_noises(self._measuring.extras, [trial.measurement for trial in known])
        self._pooled = len(known)

    def _restate(self) -> None:
        """Make every trial's interval anew, of all pairs timed so far; its scores stay judged."""
        self._pool()
        for candidate, each in self._trials.items():
            measured, found = each.trial.measurement, each.assessment
            if measured is not None and found is not None:
                again = retimed(found, measured, self._noises[measured.batch_size])
                self._trials[candidate] = replace(each, assessment=again)

    def _measure(self, proposal: Proposal) -> None:
        """Measure what a candidate lacks of its prompts, and store it; a failure is a record."""
        candidate = proposal.candidate
        known = self._trials.get(candidate)
        before = None if known is None else known.trial.measurement
        scored = 0 if before is None else len(before.scores)
        prompts = range(scored, proposal.prompts)
        pairs = self._pairs(before, proposal.prompts)
        trial = self._measuring.trial(candidate, prompts, pairs, before)
        assessed = self._assess(trial)
        self._trials[candidate] = assessed
        self._store.add(trial, assessed.assessment, self._goal.max_score_loss)
        self._observer.on_trial(assessed)
        if trial.failure is not None:
            # It may have broken more than itself: then the next one must not be blamed for it.
            self._measuring.check()

    def _pairs(self, before: Measurement | None, stop: int) -> int:
        """Return beside how many baseline calls a candidate is timed up to the prompt `stop`."""
        scored = 0 if before is None else len(before.scores)
        paired = 0 if before is None else len(before.baseline_seconds_per_image)
        # A few pairs as it goes along, and all that are wanted by the end.
        pairs = max(self._evaluator.pairs - paired, 0)
        if stop < self._prompts:
            pairs = min(pairs, math.ceil((stop - scored) / self._evaluator.chunk))
        return pairs

    def _confirm(self, each: AssessedTrial) -> tuple[bool, Assessment | None]:
        """Tell whether a candidate holds on held-out prompts, too; None where there are none."""
        try:
            held_out = self._held_out(each.trial.candidate)
        except TrialFailure:
            self._observer.on_confirm(each, None, False)
            return False, None
        if held_out is None:
            return True, None
        holds = self._holds(held_out)
        self._observer.on_confirm(each, held_out, holds)
        return holds, held_out

    def _holds(self, held_out: Assessment) -> bool:
        """Tell whether a candidate meets the goal on held-out prompts.

        Of many candidates that are no faster, some look so by chance; the second, independent
        timing is what rules those out.
        """
        goal = self._goal
        return (
            held_out.is_gain
            and held_out.is_within(goal)
            and (goal.min_speedup is None or held_out.speedup.high >= goal.min_speedup)
        )

    def _still_wins(self, candidate: Candidate) -> bool:
        """Tell whether a winner is one by all pairs timed by now."""
        held_out = self._held_out(candidate)
        return self._trials[candidate].is_feasible(self._goal) and (
            held_out is None or self._holds(held_out)
        )

    def _held_out(self, candidate: Candidate) -> Assessment | None:
        """Assess a candidate on held-out prompts; None where there are none."""
        if not self._measuring.baseline("held_out").scores:
            return None
        measured = self._measuring.once(extras.held_out(candidate), candidate, "held_out")
        return self._assessment(measured, "held_out")

    def _rivals(self, winner: AssessedTrial, held_out: Assessment | None) -> tuple[Rival, ...]:
        """Measure the bare pipeline at the step count that should be as fast as the winner."""
        if self._strategy.space.targets == ("steps",):
            return ()  # Fewer steps are what was searched.
        key = self._strategy.space.key
        steps, target = self._evaluator.workload.steps, speed_of(winner, held_out)
        rivals: dict[int, Rival] = {}
        guess = math.floor(steps / target)
        # Time is fixed overhead plus so much a step; the first guess, which takes the overhead
        # for nothing, yields the second one, which does not.
        for _ in range(2):
            guess = min(max(guess, 1), steps - 1)
            if guess in rivals or guess < 1:
                break
            fewer = Candidate({"steps": {"num_inference_steps": guess}})
            if key(fewer) == key(winner.trial.candidate):
                break  # Nothing is its own rival.
            try:
                measured = self._measuring.once(extras.fewer_steps(guess), fewer)
            except TrialFailure:
                break
            rivals[guess] = Rival(guess, measured, self._assessment(measured))
            self._observer.on_rival(rivals[guess])
            per_step = (1 - 1 / rivals[guess].assessment.speedup.value) / (steps - guess)
            if per_step <= 0:
                break
            guess = steps - math.ceil((1 - 1 / target) / per_step)
        return tuple(rivals[key] for key in sorted(rivals))

    def _ablations(self, winner: Candidate) -> tuple[Ablation, ...]:
        """Time a winner of several targets without each of them: one may cost what others gain."""
        found = []
        key = self._strategy.space.key
        for target in winner if len(winner) > 1 else ():
            rest = winner.without(target)
            if key(rest) == key(winner):  # It changes nothing.
                continue
            few = min(self._evaluator.chunk, self._prompts)
            try:
                measured = self._measuring.once(extras.without(rest), rest, prompts=range(few))
            except TrialFailure:
                continue
            found.append(Ablation(target, rest, measured, self._assessment(measured)))
            self._observer.on_ablation(found[-1])
        return tuple(found)

    def _reassessed(self, each: TimedBeside) -> TimedBeside:
        """Return the same with its interval made of all pairs timed by now."""
        return replace(each, assessment=self._assessment(each.measurement))
