"""What a search found: a winner, fewer-steps baselines, and what each target is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from accel_search.core.assessment import AssessedTrial, Assessment
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate, Verdict
from accel_search.core.machine_health import NoiseNote, noise_note
from accel_search.core.timing_noise import TimingNoise, is_gain
from accel_search.core.trial import Goal, Measurement, is_sure


@dataclass(frozen=True)
class Rival:
    """A fewer-steps baseline: the unaccelerated pipeline at a smaller number of steps."""

    steps: int
    measurement: Measurement
    assessment: Assessment

    def rivals(self, winner: AssessedTrial, held_out: Assessment | None, goal: Goal) -> bool:
        """Return whether it does as well as the winner, by the rule that a candidate passes by.

        It does if it is as fast within the noise floor, keeps the goal's bounds, and its loss is
        shown to: few prompts, on which anything is possible, show nothing.

        Args:
            winner: The search's.
            held_out: The winner on held-out prompts; None if there were none.
            goal: The search's.
        """
        assert winner.assessment is not None
        least = speed_of(winner, held_out) / (1 + winner.assessment.noise_floor)
        own = self.assessment
        return own.speedup.value >= least and own.is_within(goal) and own.verdict is Verdict.PASS

    def may_rival(self, winner: AssessedTrial, held_out: Assessment | None, goal: Goal) -> bool:
        """Return whether its intervals leave open that it is as fast and within the bound."""
        known = [assessment for assessment in (winner.assessment, held_out) if assessment]
        least = min(assessment.speedup.low for assessment in known)
        own = self.assessment
        return (
            own.speedup.high >= least
            and own.verdict is not Verdict.FAIL
            and own.is_within(replace(goal, max_score_loss=math.inf))
        )


@dataclass(frozen=True)
class Ablation:
    """The winner of a joint search without one of its targets, timed on a few prompts."""

    target: str
    """What is left out."""
    candidate: Candidate
    measurement: Measurement
    assessment: Assessment


@dataclass(frozen=True)
class Outcome:
    """What a search found."""

    baseline: Measurement
    winner: AssessedTrial | None
    held_out: Assessment | None
    """The winner on prompts that the search never saw; None if there were none."""
    rivals: tuple[Rival, ...]
    trials: tuple[AssessedTrial, ...]
    resumed: int
    """Trials that an earlier run had measured."""
    refuted: Mapping[Candidate, float | None]
    """Candidates that held-out prompts did not validate, but for the winner -> the probability that
    they are within the bound; None where they failed there."""
    stopped: str
    """Why no further candidate was measured."""
    settled: bool
    """Whether the strategy had nothing left that is worth measuring, so that the winner is the
    upper bound as far as it can tell; every distinct candidate was measured by a grid search."""
    could_win: int
    """Candidates that could still have won when a budget, or the number of those rejected on
    held-out prompts, ended the search."""
    seconds: float
    """Seconds measured, over every run of this study."""
    ablations: tuple[Ablation, ...] = ()
    """What each target of a joint search is worth; without those that change nothing in the winner
    or could not be measured."""
    chance: float | None = None
    """Probability that the winner truly is within the bound, by held-out prompts; None without
    any."""
    is_cut_short: bool = False
    """Whether `--time_budget` ended the validation while further held-out prompts were left."""

    @property
    def headline(self) -> Assessment | None:
        """Return the winner's figures to quote: on held-out prompts, if there are any.

        Those of the search are biased: of several near-equal candidates the luckiest wins.
        """
        if self.held_out is not None or self.winner is None:
            return self.held_out
        return self.winner.assessment

    @property
    def is_sure(self) -> bool:
        """Return whether the winner is validated, and not only likely to be within the bound."""
        return is_sure(self.chance)

    @property
    def noise_note(self) -> NoiseNote | None:
        """Return what to say of the timing noise, by all trials; None where it is small."""
        baseline = self.baseline
        measured = [
            trial.trial.measurement
            for trial in self.trials
            if trial.trial.measurement and trial.trial.measurement.batch_size == baseline.batch_size
        ]
        pairs = max(1, len(baseline.baseline_seconds_per_image))
        samples = [sample for part in (baseline, *measured) for sample in part.health]
        return noise_note(TimingNoise([baseline], measured).floor(pairs), pairs, samples)

    def as_well(self, goal: Goal) -> Rival | None:
        """Return the fewer-steps baseline that does as well as the winner, if one does.

        Of several it is that of the most steps, which differs least from the baseline.
        """
        if self.winner is None:
            return None
        equal = [rival for rival in self.rivals if rival.rivals(self.winner, self.held_out, goal)]
        return max(equal, key=lambda rival: rival.steps, default=None)


def speed_of(winner: AssessedTrial, held_out: Assessment | None) -> float:
    """Return a winner's speedup by its timings in the search and on held-out prompts, if any.

    The first alone are biased: of several near-equal candidates the luckiest wins. The second were
    made after it had won, as many of them, and count as much.
    """
    assessments = [
        assessment for assessment in (winner.assessment, held_out) if assessment is not None
    ]
    return math.prod(assessment.speedup.value for assessment in assessments) ** (
        1 / len(assessments)
    )


@dataclass(frozen=True)
class SpeedBound:
    """The fastest candidate of a space."""

    candidate: Candidate
    measurement: Measurement
    speedup: Estimate
    """Its own timings'; below 1 where nothing in the space is faster than the baseline."""
    noise_floor: float
    """Relative difference that two copies of one pipeline may show at as many pairs."""
    baseline: Measurement
    timed: int
    """Candidates of which there are timings, those of an earlier search included."""
    failed: int
    settled: bool
    """Whether no other candidate promises to be faster; if not, the runs were used up."""
    seconds: float
    """Wall seconds of everything timed, over every run of this study."""

    @property
    def is_gain(self) -> bool:
        """Return whether it is faster than the baseline beyond its interval and the noise floor."""
        return is_gain(self.speedup, self.noise_floor)

    @property
    def noise_note(self) -> NoiseNote | None:
        """Return what to say of the timing noise; None where it is small."""
        pairs = max(1, len(self.baseline.baseline_seconds_per_image))
        samples = self.baseline.health + self.measurement.health
        return noise_note(self.noise_floor, pairs, samples)
