"""The search loop: ask a strategy, measure, store, and validate the winner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from statistics import median
from typing import TypeVar

from accel_search.core import extras
from accel_search.core.assessment import AssessedTrial, Assessment, assess, retimed
from accel_search.core.candidate import Candidate
from accel_search.core.outcome import Ablation, Outcome, Rival, speed_of
from accel_search.core.step_timing import compare
from accel_search.core.timing_noise import TimingNoise, pairs_beside_steps, timing_noises
from accel_search.core.trial import Goal, Measurement, Trial
from accel_search.core.validation import LIKELY, MAX_TRIED, priority
from accel_search.errors import TrialFailure
from accel_search.search.evaluator import Evaluator
from accel_search.search.events import Observer
from accel_search.search.stored_evaluator import StoredEvaluator
from accel_search.search.strategies.base import History, Proposal, Strategy
from accel_search.search.validation import Validator
from accel_search.search.watchdog import Watchdog
from accel_search.storage.trials_db import TrialStore

STALE = 1.1
"""Growth of the number of trials after which the intervals of all are recomputed."""


@dataclass(frozen=True)
class Budget:
    """When to stop before the space is exhausted; None is no limit."""

    max_trials: int | None = None
    seconds: float | None = None


ExtraTiming = TypeVar("ExtraTiming", Rival, Ablation)


class Search:
    """One search over one study.

    Args:
        evaluator: Measures candidates.
        strategy: Proposes candidates.
        store: Stores trials; those already in it are not measured again.
        goal: Bounds on speedup and quality.
        budget: When to stop early.
        observer: Receives the events.
        watchdog: Ends a measurement that hangs; None waits for it.
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
        self._validator = Validator(
            evaluator, self._measuring, goal, self._assessment, self._has_time, observer
        )

    def run(self) -> Outcome:
        """Search until the goal, the end of the space or the budget, and validate the winner.

        Raises:
            ConfigurationError: The baseline pipeline makes no valid image.
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
            winner, stopped, settled = self._find(baseline)
            chosen = None if winner is None else winner.trial.candidate
            held_out = None if winner is None else self._held_out(winner.trial.candidate)
            could_win = 0 if settled else self._strategy.could_win(self._history(baseline))
            if winner is None:  # With a winner, they are slower or less likely to pass.
                could_win += len(self._feasible())
            if not settled and self._validator.cut_short not in (None, chosen):
                could_win += 1
            rivals = () if winner is None else self._rivals(winner, held_out)
            ablations = () if winner is None else self._ablations(winner.trial.candidate)
            self._measuring.check()
            # Now that everything is timed, compute all intervals from one pool of pairs.
            self._measuring.reload()
            self._recompute_intervals()
            # The latest timings may show that the winner gains nothing.
            is_over = winner is None or self._still_wins(winner.trial.candidate)
        chance = None
        if winner is not None:
            winner = self._trials[winner.trial.candidate]
            held_out = self._held_out(winner.trial.candidate)
            if held_out is not None:
                chance = self._validator.chance(winner.trial.candidate)
            rivals = tuple(self._reassessed(rival) for rival in rivals)
            ablations = tuple(self._reassessed(ablation) for ablation in ablations)
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
            refuted={c: known for c, known in self._validator.tried.items() if c != chosen},
            stopped=stopped,
            settled=settled,
            could_win=could_win,
            seconds=sum(assessed.trial.seconds for assessed in trials)
            + sum(measurement.seconds for measurement in self._measuring.extras.values()),
            ablations=ablations,
            chance=chance,
            is_cut_short=chosen is not None and chosen == self._validator.cut_short,
        )

    def _find(self, baseline: Measurement) -> tuple[AssessedTrial | None, str, bool]:
        """Measure what the strategy asks for until a winner is validated or nothing is left.

        Returns:
            The winner, validated or likely to be within the bound; why the search ended; and
            whether the strategy was done.
        """
        asks_for_more = self._goal.min_speedup is None
        while True:
            over, proposal = None, None
            if not asks_for_more or len(self._trials) >= STALE * self._pooled:
                self._recompute_intervals()
            # The first candidate that meets a requirement ends the search.
            if asks_for_more or not self._feasible():
                over, proposal = self._ask(baseline)
            if proposal is not None:
                self._observer.on_start(proposal.candidate)
                self._measure(proposal)
                continue
            self._recompute_intervals()
            best = self._most_promising(baseline)
            if best is None:
                reason = over or self._strategy.why_done(self._history(baseline))
                return self._likeliest(baseline), reason, over is None
            is_valid = self._validator.validate(best)
            if self._validator.cut_short is not None:
                return self._likeliest(baseline), self._budget_spent(), False
            if is_valid and not asks_for_more:
                return best, "the requirement was met", True
            if is_valid:
                reason = over or self._strategy.why_done(self._history(baseline))
                return best, reason, over is None
            if len(self._validator.tried) >= MAX_TRIED and self._is_any_left(baseline):
                return self._likeliest(baseline), self._why_given_up(), False
            # Ask the strategy again: a candidate that it passed over may win now.

    def _is_any_left(self, baseline: Measurement) -> bool:
        """Return whether a candidate is left that could win."""
        return bool(self._feasible() or self._strategy.could_win(self._history(baseline)))

    def _why_given_up(self) -> str:
        failed = f"{len(self._validator.tried)} candidates were not validated on held-out prompts"
        untried = len(self._feasible())
        if not untried:
            return failed
        others = "1 other is" if untried == 1 else f"{untried:,} others are"
        return f"{failed}; {others} within the bound by the search's prompts and left untried"

    def _has_time(self) -> bool:
        """Return whether `--time_budget` is not spent."""
        seconds = self._budget.seconds
        return seconds is None or self._measuring.spent < seconds

    def _budget_spent(self) -> str:
        return f"--time_budget of {self._budget.seconds:.0f} s was spent"

    def _ask(self, baseline: Measurement) -> tuple[str | None, Proposal | None]:
        """Return why the budget is over, or what the strategy asks for; two None if it is done."""
        budget = self._budget
        proposal = self._strategy.ask(self._history(baseline))
        if proposal is None:
            return None, None  # The strategy ended the search, even where the budget is spent too.
        if not self._has_time():
            return self._budget_spent(), None
        begins = proposal.candidate not in self._trials
        if begins and budget.max_trials is not None and len(self._trials) >= budget.max_trials:
            # The fastest may be at an early stage still.
            proposal = self._strategy.finish(self._history(baseline))
            reached = f"--max_trials {budget.max_trials} was reached"
            return (reached if proposal is None else None), proposal
        return None, proposal

    def _history(self, baseline: Measurement) -> History:
        feasible = self._feasible()
        outlook = self._validator.outlook(feasible)
        within = [assessed.trial.candidate for assessed in feasible]
        scored = [*within, *self._validator.scores]
        return History(
            baseline,
            tuple(self._trials.values()),
            frozenset(self._validator.tried),
            dict(zip(within, outlook.log_chances.tolist(), strict=True)),
            outlook.shift,
            outlook.error,
            dict(zip(scored, outlook.shifts.tolist(), strict=True)),
        )

    def _feasible(self) -> list[AssessedTrial]:
        """Return the trials that meet the goal and have not failed on held-out prompts."""
        return [
            assessed
            for assessed in self._trials.values()
            if assessed.is_feasible(self._goal)
            and assessed.trial.candidate not in self._validator.tried
        ]

    def _most_promising(self, baseline: Measurement) -> AssessedTrial | None:
        """Return the feasible trial to validate next; the fastest of all may be the luckiest."""
        feasible = self._feasible()
        log_speedups = self._log_speedups(feasible, baseline)
        log_chances = self._validator.outlook(feasible).log_chances
        order = map(priority, log_speedups, log_chances)
        return max(zip(order, feasible, strict=True), key=itemgetter(0), default=(0, None))[1]

    def _likeliest(self, baseline: Measurement) -> AssessedTrial | None:
        """Return the best of those that held-out prompts make likely to be within the bound."""
        chances = {
            candidate: chance
            for candidate, chance in self._validator.tried.items()
            if chance is not None and chance >= LIKELY and self._still_wins(candidate)
        }
        likely = [self._trials[candidate] for candidate in chances]
        log_speedups = self._log_speedups(likely, baseline)
        worth = [
            chance * log_speedup
            for chance, log_speedup in zip(chances.values(), log_speedups, strict=True)
        ]
        return max(zip(worth, likely, strict=True), key=itemgetter(0), default=(0, None))[1]

    def _log_speedups(self, trials: Sequence[AssessedTrial], baseline: Measurement) -> list[float]:
        """Return the logarithms of the speedups by which the strategy ranks trials."""
        history = self._history(baseline)
        return [math.log(self._strategy.speedup_of(trial, history)) for trial in trials]

    def _assess(self, trial: Trial) -> AssessedTrial:
        measured = trial.measurement
        return AssessedTrial(trial, None if measured is None else self._assessment(measured))

    def _assessment(self, measured: Measurement, baseline: Measurement | None = None) -> Assessment:
        """Assess a measurement beside a baseline; None is the search's."""
        before = baseline or self._measuring.baseline("search", measured)
        noise = self._noises.get(measured.batch_size)
        return assess(measured, before, self._goal.max_score_loss, noise)

    def _pool(self, trials: Sequence[Trial] | None = None) -> None:
        """Estimate the timing noise of each batch size from all pairs timed so far."""
        known = [assessed.trial for assessed in self._trials.values()] if trials is None else trials
        self._noises = timing_noises(self._measuring.extras, [trial.measurement for trial in known])
        self._pooled = len(known)

    def _recompute_intervals(self) -> None:
        """Recompute every trial's speedup interval from all pairs timed so far."""
        self._pool()
        for candidate, assessed in self._trials.items():
            measured, assessment = assessed.trial.measurement, assessed.assessment
            if measured is not None and assessment is not None:
                again = retimed(assessment, measured, self._noises[measured.batch_size])
                self._trials[candidate] = replace(assessed, assessment=again)

    def _measure(self, proposal: Proposal) -> None:
        """Measure a candidate on the prompts that it lacks, and store the trial or its failure."""
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
            # If it broke the pipeline, the next candidate must not be blamed for it.
            self._measuring.check()

    def _pairs(self, before: Measurement | None, stop: int) -> int:
        """Return how many baseline calls to time beside a candidate up to the prompt `stop`."""
        scored = 0 if before is None else len(before.scores)
        paired = 0 if before is None else len(before.baseline_seconds_per_image)
        # A few pairs at each stage, and all of them by the last.
        pairs = max(self._evaluator.pairs - paired, 0)
        if stop < self._prompts:
            pairs = min(pairs, math.ceil((stop - scored) / self._evaluator.chunk))
        if self._evaluator.times_steps and self._evaluator.held_out_stages:
            # Held-out prompts will time the winner in pairs.
            size = self._evaluator.workload.batch_size
            trials = [assessed.trial.measurement for assessed in self._trials.values()]
            measured = [known for known in trials if known and known.batch_size == size]
            return pairs_beside_steps(measured, before, pairs, self._noises.get(size))
        return pairs

    def _still_wins(self, candidate: Candidate) -> bool:
        """Return whether a winner still meets the goal by all pairs timed by now."""
        held_out = self._held_out(candidate)
        return self._trials[candidate].is_feasible(self._goal) and (
            held_out is None or self._validator.passes(held_out)
        )

    def _held_out(self, candidate: Candidate) -> Assessment | None:
        """Assess a winner on the held-out prompts that it is scored on; None without any."""
        has_held_out = bool(self._evaluator.held_out_stages)
        return self._validator.assessment(candidate) if has_held_out else None

    def _rivals(self, winner: AssessedTrial, held_out: Assessment | None) -> tuple[Rival, ...]:
        """Measure the baseline pipeline at the step count that should be as fast as the winner."""
        if self._strategy.space.targets == ("steps",):
            return ()
        key = self._strategy.space.key
        steps, target = self._evaluator.workload.steps, speed_of(winner, held_out)
        rivals: dict[int, Rival] = {}
        # Time is a fixed overhead plus a constant per step; the first guess's measurement corrects
        # the second.
        overhead = self._overhead()
        guess = math.floor(steps * (1 / target - overhead) / (1 - overhead))
        for _ in range(2):
            guess = min(max(guess, 1), steps - 1)
            if guess in rivals or guess < 1:
                break
            fewer = Candidate({"steps": {"num_inference_steps": guess}})
            if key(fewer) == key(winner.trial.candidate):
                break
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

    def _overhead(self) -> float:
        """Return the share of a baseline call that fewer steps would not shorten; 0 if unknown."""
        shares = [
            compared.overhead / (compared.overhead + times.baseline_calls)
            for assessed in self._trials.values()
            if assessed.trial.measurement is not None
            for times in assessed.trial.measurement.step_times
            if (compared := compare(times)) is not None
        ]
        return median(shares) if shares else 0.0

    def _ablations(self, winner: Candidate) -> tuple[Ablation, ...]:
        """Time a winner of several targets without each of them: one may cost time."""
        ablations = []
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
            ablations.append(Ablation(target, rest, measured, self._assessment(measured)))
            self._observer.on_ablation(ablations[-1])
        return tuple(ablations)

    def _reassessed(self, extra: ExtraTiming) -> ExtraTiming:
        """Return the same with its interval recomputed from all pairs timed by now."""
        return replace(extra, assessment=self._assessment(extra.measurement))
