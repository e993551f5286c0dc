"""The lines and the bar of a running search."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from accel_search.core.assessment import AssessedTrial, Assessment
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate
from accel_search.core.machine_health import noise_note
from accel_search.core.outcome import Ablation, Rival
from accel_search.core.timing_noise import noise_floor
from accel_search.core.trial import Goal, Measurement, Trial
from accel_search.report.console.bar import WithBar
from accel_search.report.format import counted, factor, figures, percent, validated
from accel_search.search.events import Observer


class Progress(WithBar, Observer):
    """Writes one line a trial to the log, and draws a bar below the lines.

    Args:
        logger: Receives the lines.
        total: Trials expected; the bar's length.
        goal: Decides which trial is the best so far.
        show_bar: Whether a bar is drawn on standard error.
    """

    def __init__(self, logger: logging.Logger, total: int, goal: Goal, *, show_bar: bool):
        self._logger = logger
        self._total = total
        self._goal = goal
        self._numbers: dict[Candidate, int] = {}
        self._best: AssessedTrial | None = None
        super().__init__(total, " < {remaining}  {desc}", show=show_bar)

    def on_baseline(self, baseline: Measurement) -> None:
        """Write the baseline's speed and score, the timing noise, and advice if that is large."""
        seconds = sum(baseline.seconds_per_image) / len(baseline.seconds_per_image)
        pairs = len(baseline.baseline_seconds_per_image)
        floor = noise_floor(baseline, pairs)
        scored = ""
        if baseline.scores:
            score = sum(baseline.scores) / len(baseline.scores)
            scored = f", score {score:.2f} over {counted(len(baseline.scores), 'prompt')}"
        noise = f"timing noise ±{100 * floor:.1f} % (baseline against itself)"
        if math.isinf(floor):
            noise = "timing noise unknown (the baseline was not timed against itself)"
        note = noise_note(floor, pairs, baseline.health)
        self._logger.info("baseline: %.4g s an image%s; %s", seconds, scored, note or noise)

    def on_resume(self, history: Sequence[AssessedTrial]) -> None:
        """Write how many trials an earlier run has measured."""
        for assessed in history:
            self._take(assessed)
        trials = counted(len(history), "finished trial")
        self._logger.info("resumed: %s, not measured again", trials)
        # `initial` keeps them out of the bar's estimate of the time left.
        self._bar.initial = len(history)
        self._bar.update(len(history))

    def on_start(self, candidate: Candidate) -> None:
        """Show the current candidate."""
        best = "" if self._best is None else f"best {self._speedup(self._best):.2f}x  "
        self._bar.set_description_str(f"{best}now {candidate}")

    def on_trial(self, assessed: AssessedTrial) -> None:
        """Write a line for a trial, or for an early stage of it."""
        begun = len(self._numbers)
        number = self._take(assessed)
        failure = assessed.trial.failure
        result = f"failed: {failure.kind}: {failure.message}" if failure else "failed"
        if assessed.assessment is not None:
            result = figures(assessed.assessment)
        self._logger.info(
            "trial %d/%d  %s  %s", number, self._total, assessed.trial.candidate, result
        )
        self._bar.update(len(self._numbers) - begun)

    def on_timed(self, trial: Trial, speedup: Estimate | None) -> None:
        """Write a candidate's speedup."""
        if speedup is not None:
            result = f"speedup: {factor(speedup)}"
        else:
            result = f"failed: {trial.failure.message}" if trial.failure else "failed"
        self._logger.info("timed  %s  %s", trial.candidate, result)

    def on_confirm(
        self, assessed: AssessedTrial, held_out: Assessment | None, chance: float | None
    ) -> None:
        """Write a candidate's result on held-out prompts."""
        result = "" if held_out is None else f"{figures(held_out)}  "
        self._logger.info(
            "held-out prompts: %s  %s%s", assessed.trial.candidate, result, validated(chance)
        )

    def on_rival(self, rival: Rival) -> None:
        """Write the result of fewer steps."""
        self._logger.info(
            "baseline pipeline at %s: speedup: %s  score loss: %s",
            counted(rival.steps, "step"),
            factor(rival.assessment.speedup),
            percent(rival.assessment.score_loss),
        )

    def on_ablation(self, ablation: Ablation) -> None:
        """Write the winner's speedup without one of its targets."""
        self._logger.info(
            "winner without %s: speedup: %s", ablation.target, factor(ablation.assessment.speedup)
        )

    def _take(self, assessed: AssessedTrial) -> int:
        """Update the best trial so far; return the number of this one."""
        if assessed.is_feasible(self._goal) and (
            self._best is None or self._speedup(assessed) > self._speedup(self._best)
        ):
            self._best = assessed
        return self._numbers.setdefault(assessed.trial.candidate, len(self._numbers) + 1)

    @staticmethod
    def _speedup(assessed: AssessedTrial) -> float:
        return assessed.assessment.speedup.value if assessed.assessment else 0.0
