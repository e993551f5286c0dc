"""The loop's logic on an evaluator whose truth is known."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest

from accel_search.core.candidate import Candidate
from accel_search.core.outcome import speed_of
from accel_search.core.timing_noise import JUDGES
from accel_search.core.trial import Goal
from accel_search.core.validation import MAX_TRIED
from accel_search.errors import ContaminationError, TrialFailure
from accel_search.search.loop import Budget
from accel_search.search.space import JointSpace
from accel_search.search.strategies import all_strategies
from accel_search.search.watchdog import Watchdog
from accel_search.storage.trials_db import TrialStore
from tests.support.fakes import FakeEvaluator, deepcache_truth
from tests.support.searches import point, run


def searched(evaluator):
    """Return the candidates measured on the search's prompts, in order, rivals left out."""
    return [c for c, split, _ in evaluator.calls if split == "search" and list(c) != ["steps"]]


@pytest.mark.parametrize("strategy", sorted(all_strategies()))
def test_the_upper_bound_is_the_fastest_candidate_within_the_loss(strategy):
    outcome = run(FakeEvaluator(), strategy=strategy)
    # 1.9x at a loss of 1.6 %; all that are faster lose over 2 %.
    assert outcome.winner.trial.candidate == point(4, 3)
    assert outcome.settled
    assert outcome.winner.assessment.speedup.value == pytest.approx(1.9, rel=0.01)
    assert outcome.winner.assessment.prompts == 32
    assert outcome.held_out.score_loss.value == pytest.approx(0.016, abs=0.001)


def test_a_grid_search_measures_everything_on_every_prompt():
    outcome = run(FakeEvaluator())
    assert len(outcome.trials) == 16
    assert all(each.assessment.prompts == 32 for each in outcome.trials)


@pytest.mark.parametrize("strategy", sorted(all_strategies()))
def test_a_requirement_stops_at_the_first_candidate_that_meets_it(strategy):
    outcome = run(FakeEvaluator(), speedup=1.5, strategy=strategy)
    assert outcome.winner.assessment.speedup.value >= 1.5
    assert outcome.winner.assessment.score_loss.value <= 0.02
    assert len(outcome.trials) < 16
    assert outcome.stopped == "the requirement was met"
    complete = [each for each in outcome.trials if each.is_feasible(Goal(0.02, 1.5))]
    assert complete == [outcome.winner]


@pytest.mark.parametrize("strategy", sorted(all_strategies()))
def test_a_requirement_that_nothing_meets_ends_without_a_winner(strategy):
    outcome = run(FakeEvaluator(), speedup=3.0, strategy=strategy)
    assert outcome.winner is None and outcome.settled and outcome.rivals == ()


@pytest.mark.parametrize("strategy", sorted(all_strategies()))
def test_a_bound_that_nothing_meets_ends_without_a_winner(strategy):
    outcome = run(FakeEvaluator(), bound=0.001, strategy=strategy)
    assert outcome.winner is None and outcome.settled


def test_nothing_is_a_gain_when_every_candidate_is_the_baseline_in_disguise():
    outcome = run(FakeEvaluator(lambda candidate: (1.0, 0.0), noise=0.02))
    assert outcome.winner is None


class Hiccup(FakeEvaluator):
    """One of the calls of the baseline against itself takes longer than it should."""

    def baseline(self, split="search", prompts=None):
        measured = self._measurement(1.0, 0.0, split, prompts)
        first, *others = measured.seconds_per_image
        longer = first * (1.6 if split == "search" else 1.0)
        return replace(measured, seconds_per_image=(longer, *others))


def modest(candidate):
    speedup, loss = deepcache_truth(candidate)
    return speedup**0.4, loss


@pytest.mark.parametrize("strategy", sorted(all_strategies()))
def test_one_disturbed_call_of_the_baseline_hides_no_winner(strategy):
    quiet, disturbed = (run(each(modest), strategy=strategy) for each in (FakeEvaluator, Hiccup))
    assert disturbed.winner.trial.candidate == quiet.winner.trial.candidate == point(4, 3)
    # What it was refused for, the noise of that call, is not what is reported in the end.
    assert all(each.assessment.noise_floor < 0.02 for each in disturbed.trials)


def test_a_search_that_stored_a_disturbed_baseline_finds_its_winner_when_it_goes_on(tmp_path):
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    first = run(Hiccup(modest), url=url, budget=Budget(max_trials=1))
    assert first.winner is None  # With one trial, nobody can tell which of the two is off.
    again = run(FakeEvaluator(modest), url=url)
    assert again.winner.trial.candidate == point(4, 3)


@pytest.mark.parametrize("strategy", sorted(all_strategies()))
def test_a_winner_that_fails_on_held_out_prompts_is_replaced_by_the_next(strategy):
    lucky = point(4, 3)

    class Lucky(FakeEvaluator):
        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            if candidate == lucky and split == "held_out":
                self._held_out_shift = 0.006
            measured = super().measure(candidate, split, prompts, pairs)
            self._held_out_shift = 0.0
            return measured

    outcome = run(Lucky(), strategy=strategy)
    assert outcome.refuted == {lucky: 0.0}
    # What a strategy had left aside as slower than the first winner is taken up again.
    assert outcome.winner.trial.candidate == point(3, 1)


class Refuted(FakeEvaluator):
    """All that is within the bound fails on held-out prompts."""

    def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
        self._held_out_shift = 0.5 if split == "held_out" else 0.0
        measured = super().measure(candidate, split, prompts, pairs)
        self._held_out_shift = 0.0
        return measured


def mild(candidate):
    return deepcache_truth(candidate)[0], 0.001


@pytest.mark.parametrize("strategy", sorted(all_strategies()))
def test_what_was_not_tried_on_held_out_prompts_could_still_win(strategy):
    outcome = run(Refuted(mild), strategy=strategy)
    tried = set(outcome.refuted)
    assert outcome.winner is None and len(tried) == MAX_TRIED and not outcome.settled
    within = [
        each
        for each in outcome.trials
        if each.is_feasible(Goal(0.02)) and each.trial.candidate not in tried
    ]
    # Guided foresees that others like those tried will fail there, too, and scores fewer.
    assert (within or strategy == "guided") and outcome.could_win >= max(len(within), 1)
    left = f"; {len(within)} others are within the bound by the search's prompts and left untried"
    assert outcome.stopped == (
        f"{MAX_TRIED} candidates were not validated on held-out prompts{left if within else ''}"
    )


class Unsure(FakeEvaluator):
    """Loses 5 % more or less from one held-out prompt to the next: few of them tell nothing.

    Args:
        stages: Numbers of held-out prompts.
        loss: Mean loss of score there.
    """

    def __init__(self, stages, loss=0.019, **options):
        super().__init__(lambda c: (mild(c)[0], 0.001 if c == point(4, 3) else 0.3), **options)
        self.held_out_stages = stages
        self._loss = loss

    def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
        measured = super().measure(candidate, split, prompts, pairs)
        if split != "held_out":
            return measured
        scored = self._scores[split][prompts.start : prompts.stop]
        losses = [self._loss + 0.05 * (-1) ** number for number in prompts]
        lost = [float(score * (1 - loss)) for score, loss in zip(scored, losses, strict=True)]
        return replace(measured, scores=tuple(lost))


@pytest.mark.parametrize(("loss", "is_named"), [(0.019, True), (0.022, False)])
def test_a_validation_that_the_time_budget_cut_short_goes_on_without_it(tmp_path, loss, is_named):
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    # The baseline and 16 candidates take 170 s, the first held-out prompts the rest.
    first = run(Unsure((8, 16, 32), loss), budget=Budget(seconds=171.0), url=url)
    assert len(first.trials) == 16
    assert first.stopped == "--time_budget of 171 s was spent" and not first.settled
    if is_named:
        assert first.winner.trial.candidate == point(4, 3) and first.is_cut_short
        assert 0.5 <= first.chance < 0.9 and first.held_out.prompts == 8
    else:
        assert first.winner is None and first.could_win == 1
        assert 0.3 <= first.refuted[point(4, 3)] < 0.5
    evaluator = Unsure((8, 16, 32), loss)
    again = run(evaluator, url=url)
    assert again.settled and not again.is_cut_short and not again.could_win
    looks = [look for _, split, look in evaluator.calls if split == "held_out"]
    assert looks == [range(8, 16), range(16, 32)]


@pytest.mark.parametrize(("stages", "is_sure"), [((4, 8), True), ((4,), False), ((1, 2), False)])
def test_on_fewer_prompts_than_a_loss_passes_on_no_winner_is_validated(stages, is_sure):
    evaluator = FakeEvaluator()
    evaluator.held_out_stages = stages
    outcome = run(evaluator)
    assert outcome.held_out.prompts == stages[-1] and outcome.is_sure is is_sure
    assert outcome.winner.trial.candidate == point(4, 3)


def test_what_cannot_be_measured_on_held_out_prompts_is_not_rejected_by_its_loss():
    class Unrecorded(FakeEvaluator):
        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            if split == "held_out" and candidate == point(4, 3):
                raise TrialFailure("not recorded on held-out prompts")
            return super().measure(candidate, split, prompts, pairs)

    outcome = run(Unrecorded())
    assert outcome.refuted == {point(4, 3): None}
    assert outcome.winner.trial.candidate == point(3, 1)


def test_failures_on_held_out_prompts_end_nothing_where_no_other_candidate_is_left():
    outcome = run(Refuted(lambda c: (mild(c)[0], 0.001 if mild(c)[0] > 2.15 else 0.3)))
    assert len(outcome.refuted) == 5 and outcome.winner is None
    assert outcome.settled and outcome.stopped == "every distinct candidate was measured"


def test_bounds_on_likeness_hold_on_held_out_prompts_too():
    blurred = point(4, 3)

    class Measured(FakeEvaluator):
        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            measured = super().measure(candidate, split, prompts, pairs)
            likeness = 10.0 if candidate == blurred and split == "held_out" else 30.0
            return replace(measured, psnr=(likeness,) * len(measured.scores))

    assert run(Measured()).winner.trial.candidate == blurred
    outcome = run(Measured(), min_psnr=20.0)
    assert outcome.refuted == {blurred: 0.0}
    assert outcome.winner.trial.candidate == point(3, 1)


def test_a_bound_on_the_worst_prompts_holds_on_held_out_prompts_too():
    uneven = point(4, 3)

    class Measured(FakeEvaluator):
        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            measured = super().measure(candidate, split, prompts, pairs)
            if candidate != uneven or split != "held_out":
                return measured
            first, *others = measured.scores
            return replace(measured, scores=(0.98 * first, *others))

    assert run(Measured()).winner.trial.candidate == uneven
    outcome = run(Measured(), max_tail_loss=0.02)
    assert outcome.refuted == {uneven: 0.0}
    assert outcome.winner.trial.candidate == point(3, 1)


def test_a_failed_candidate_is_a_record_and_the_search_goes_on():
    broken = point(4, 3)
    outcome = run(FakeEvaluator(fails=frozenset({broken})))
    failed = [each for each in outcome.trials if each.assessment is None]
    assert [each.trial.candidate for each in failed] == [broken]
    assert failed[0].trial.failure.message == "the pipeline said no"
    assert outcome.stopped == "every distinct candidate was measured or failed"
    assert outcome.winner.trial.candidate == point(3, 1)


@pytest.mark.parametrize("strategy", sorted(all_strategies()))
def test_max_trials_bounds_the_trials_also_over_several_runs(tmp_path, strategy):
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    budget = Budget(max_trials=3)
    first = run(FakeEvaluator(), budget=budget, url=url, strategy=strategy)
    assert len(first.trials) == 3
    again = FakeEvaluator()
    outcome = run(again, budget=budget, url=url, strategy=strategy)
    assert len(outcome.trials) == 3 and outcome.resumed == 3
    assert searched(again) == []
    if not outcome.settled:
        assert outcome.stopped == "--max_trials 3 was reached" and outcome.could_win


def test_a_time_budget_stops_before_the_space_is_exhausted():
    outcome = run(FakeEvaluator(), budget=Budget(seconds=45.0))
    # The baseline and each trial are charged 10 s.
    assert len(outcome.trials) == 4 and not outcome.settled
    assert "45 s" in outcome.stopped and outcome.could_win == 12


@pytest.mark.parametrize("strategy", ["grid", "random"])
def test_a_time_budget_that_is_spent_as_the_last_candidate_ends_has_ended_nothing(strategy):
    # The baseline and each of sixteen trials, of which none is given up early, are charged 10 s.
    evaluator = FakeEvaluator(mild)
    outcome = run(evaluator, budget=Budget(seconds=170.0), strategy=strategy)
    assert len(outcome.trials) == 16 and outcome.settled and not outcome.could_win
    assert outcome.stopped == "every distinct candidate was measured"


def test_a_time_budget_counts_what_was_spent_before_a_hang():
    outcome = run(FakeEvaluator(), budget=Budget(seconds=45.0), watchdog=Watchdog(spent=20.0))
    assert len(outcome.trials) == 2 and "45 s" in outcome.stopped


@pytest.mark.parametrize("strategy", ["grid", "guided", "random"])
def test_a_killed_search_goes_on_with_nothing_measured_twice(tmp_path, strategy):
    url = f"sqlite:///{tmp_path / 'trials.db'}"

    class Killed(FakeEvaluator):
        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            if len(self.calls) == 6:
                raise KeyboardInterrupt
            return super().measure(candidate, split, prompts, pairs)

    undisturbed = run(FakeEvaluator(noise=0.0), strategy=strategy)
    first, second = Killed(noise=0.0), FakeEvaluator(noise=0.0)
    with pytest.raises(KeyboardInterrupt):
        run(first, url=url, strategy=strategy)
    outcome = run(second, url=url, strategy=strategy)
    looks = [
        (candidate, prompt)
        for each in (first, second)
        for candidate, split, prompts in each.calls
        for prompt in prompts
        if split == "search"
    ]
    assert len(looks) == len(set(looks))
    assert outcome.resumed and outcome.winner.trial.candidate == point(4, 3)
    assert {each.trial.candidate for each in outcome.trials} == {
        each.trial.candidate for each in undisturbed.trials
    }


def test_contamination_ends_the_search_with_what_was_stored(tmp_path):
    url = f"sqlite:///{tmp_path / 'trials.db'}"

    class Leaky(FakeEvaluator):
        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            if len(self.calls) == 3:
                raise ContaminationError("deepcache left the pipeline changed")
            return super().measure(candidate, split, prompts, pairs)

    with pytest.raises(ContaminationError):
        run(Leaky(), url=url)
    space = JointSpace(("deepcache",), FakeEvaluator().workload)
    assert len(TrialStore(url, "study", space.values()).trials()) == 3


# Racing


def test_a_race_is_given_up_once_it_is_lost_and_its_looks_are_added_up():
    evaluator = FakeEvaluator(lambda candidate: (1.5, 0.3))
    outcome = run(evaluator, strategy="random")
    assert outcome.winner is None
    for each in outcome.trials:
        assert each.assessment.prompts < 32 and str(each.assessment.verdict) == "fail"
    for candidate in {each.trial.candidate for each in outcome.trials}:
        looks = [prompts for each, _, prompts in evaluator.calls if each == candidate]
        assert [look.start for look in looks] == [0, *(look.stop for look in looks[:-1])]


def test_a_candidate_scored_on_all_prompts_is_timed_beside_as_many_pairs_as_asked():
    evaluator = FakeEvaluator()
    outcome = run(evaluator, strategy="random")
    for each in outcome.trials:
        measured = each.trial.measurement
        pairs = len(measured.baseline_seconds_per_image)
        assert pairs == 4 if each.assessment.is_complete else 1 <= pairs <= 4
        assert len(measured.seconds_per_image) >= pairs


@pytest.mark.parametrize("strategy", sorted(all_strategies()))
def test_single_unet_calls_take_the_place_of_pairs_until_there_is_a_winner(strategy):
    evaluator = FakeEvaluator(noise=0.02)
    evaluator.times_steps = True
    outcome = run(evaluator, strategy=strategy)
    assert outcome.winner.trial.candidate == point(4, 3)
    assert outcome.winner.assessment.speedup.value == pytest.approx(1.9, rel=0.03)
    searched = [pairs for split, pairs in evaluator.pairs_asked if split == "search"]
    assert set(searched) <= {0, 1, None}  # None: those of the comparison with fewer steps.
    assert sum(pairs or 0 for pairs in searched) <= JUDGES
    assert ("held_out", None) in evaluator.pairs_asked


def test_single_unet_calls_find_a_winner_where_pairs_drown_it():
    class Busy(FakeEvaluator):
        """Whole calls differ by 40 % on this host."""

        def _measurement(self, *args, **kwargs):
            measured = super()._measurement(*args, **kwargs)
            blurred = [
                tuple(seconds * math.exp(self._rng.normal(0, 0.4)) for seconds in samples)
                for samples in (measured.seconds_per_image, measured.baseline_seconds_per_image)
            ]
            return replace(
                measured, seconds_per_image=blurred[0], baseline_seconds_per_image=blurred[1]
            )

    def modest(candidate):
        speedup, loss = deepcache_truth(candidate)
        return 1 + (speedup - 1) / 4, loss

    busy = Busy(modest)
    assert run(busy, strategy="guided").winner is None
    busy = Busy(modest)
    busy.times_steps = True
    assert run(busy, strategy="guided").winner.trial.candidate == point(4, 3)


def test_where_single_unet_calls_tell_nothing_pairs_do_as_ever():
    class Undescribed(FakeEvaluator):
        def measure(self, *args, **kwargs):
            return replace(super().measure(*args, **kwargs), step_times=())

    evaluator = Undescribed()
    evaluator.times_steps = True
    outcome = run(evaluator)
    assert outcome.winner.trial.candidate == point(4, 3)
    timed = [trial.trial.measurement.baseline_seconds_per_image for trial in outcome.trials]
    assert [len(pairs) for pairs in timed] == [1] + [evaluator.pairs] * 15


def test_without_held_out_prompts_a_candidate_is_timed_in_pairs_all_the_same():
    evaluator = FakeEvaluator()
    evaluator.times_steps = True
    evaluator.held_out_stages = ()
    outcome = run(evaluator)
    pairs = len(outcome.winner.trial.measurement.baseline_seconds_per_image)
    assert pairs == evaluator.pairs


def test_whole_calls_judge_the_winner_where_single_ones_mislead():
    class Misled(FakeEvaluator):
        times_steps = True

        def measure(self, candidate, split="search", *args, **kwargs):
            measured = super().measure(candidate, split, *args, **kwargs)
            if split != "held_out":
                return measured
            slower = tuple(1.4 * seconds for seconds in measured.seconds_per_image)
            return replace(measured, seconds_per_image=slower)

    evaluator = Misled(noise=0.005)
    evaluator.times_steps = True
    held_out = run(evaluator).held_out
    assert held_out.disagreement.whole.value == pytest.approx(1.9 / 1.4, rel=0.02)
    assert held_out.speedup.low < 1.9 / 1.4 < held_out.speedup.high
    assert run(FakeEvaluator()).held_out.disagreement is None


def test_a_batch_that_was_halved_in_the_middle_of_a_race_starts_it_anew():
    class Halved(FakeEvaluator):
        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            measured = super().measure(candidate, split, prompts, pairs)
            size = 4 if len(self.calls) == 1 else 2
            return type(measured)(**{**vars(measured), "batch_size": size})

    evaluator = Halved(lambda candidate: (1.5, 0.0))
    outcome = run(evaluator, strategy="random", budget=Budget(max_trials=1))
    assert [(look.start, look.stop) for _, split, look in evaluator.calls[:3]][1:] == [
        (evaluator.calls[0][2].stop, evaluator.calls[1][2].stop),
        (0, evaluator.calls[1][2].stop),
    ]
    assert len(outcome.trials[0].trial.measurement.scores) == 32


@pytest.mark.parametrize(("slower", "is_found"), [(1.0, True), (1.3, False)])
def test_a_required_speed_is_judged_by_pairs_where_unet_calls_disagree(slower, is_found):
    class Torn(FakeEvaluator):
        """On held-out prompts whole calls are slower than their UNet calls say."""

        def measure(self, candidate, split="search", *args, **kwargs):
            measured = super().measure(candidate, split, *args, **kwargs)
            factor = slower if split == "held_out" else 1.0
            seconds = tuple(each * factor for each in measured.seconds_per_image)
            return replace(measured, seconds_per_image=seconds)

    evaluator = Torn(lambda candidate: (1.55, 0.001))
    evaluator.times_steps = True
    outcome = run(evaluator, speedup=1.5)
    assert (outcome.winner is not None) == is_found


# Fewer steps


def test_fewer_steps_are_measured_at_the_winners_speed():
    outcome = run(FakeEvaluator())
    target = outcome.winner.assessment.speedup.value
    at_speed = [
        rival for rival in outcome.rivals if rival.assessment.speedup.value >= target * 0.99
    ]
    assert at_speed, "no rival is as fast as the winner"
    assert max(rival.steps for rival in at_speed) == 9
    assert outcome.rivals and outcome.as_well(Goal(0.02)) is None


def test_where_the_overhead_is_known_the_first_guess_at_fewer_steps_is_right():
    class Told(FakeEvaluator):
        """A tenth of a baseline call is spent beside its UNet calls."""

        def measure(self, candidate, *args, **kwargs):
            measured = super().measure(candidate, *args, **kwargs)
            rest = 0.1 / 0.9 * 0.5
            told = [replace(times, call=times.call + rest) for times in measured.step_times]
            return replace(measured, step_times=tuple(told))

    guesses = {}
    for evaluator in (Told(noise=0.0), FakeEvaluator(noise=0.0)):
        evaluator.times_steps = isinstance(evaluator, Told)
        outcome = run(evaluator, strategy="grid")
        guesses[type(evaluator)] = [rival.steps for rival in outcome.rivals]
    assert len(guesses[Told]) == 1 and len(guesses[FakeEvaluator]) == 2
    assert guesses[Told][0] in guesses[FakeEvaluator]


def test_a_rival_that_is_as_fast_and_better_is_said_to_beat_the_winner():
    outcome = run(FakeEvaluator(lambda candidate: (1.2, 0.019)))
    assert outcome.as_well(Goal(0.02)) in outcome.rivals


def test_a_rival_need_not_be_as_fast_as_the_winner_was_by_luck():
    class Lucky(FakeEvaluator):
        """Its candidates are timed as faster in the search than ever after."""

        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            measured = super().measure(candidate, split, prompts, pairs)
            if split == "search" or "steps" in candidate:
                return measured
            slower = tuple(each * 1.4 for each in measured.seconds_per_image)
            return replace(measured, seconds_per_image=slower)

    outcome = run(Lucky(lambda candidate: (2.8, 0.1)), bound=0.2)
    lucky, after = outcome.winner.assessment.speedup.value, outcome.held_out.speedup.value
    told = speed_of(outcome.winner, outcome.held_out)
    assert after < told < lucky and told == pytest.approx((lucky * after) ** 0.5)
    # Rivals are sought at the speed by all timings, and one of them does as well as that.
    assert max(rival.assessment.speedup.value for rival in outcome.rivals) < lucky
    assert outcome.as_well(Goal(0.2)) in outcome.rivals
    assert speed_of(outcome.winner, None) == lucky


class Worsening(FakeEvaluator):
    """The machine gets noisy once a winner is found."""

    def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
        if "steps" in candidate:
            self._noise = 0.1
        return super().measure(candidate, split, prompts, pairs)


def test_a_winner_is_a_gain_by_the_intervals_that_are_reported():
    won = 0
    for seed in range(12):
        evaluator = Worsening(lambda candidate: (1.06, 0.001), noise=0.02)
        evaluator._rng = np.random.default_rng(seed)
        outcome = run(evaluator, budget=Budget(max_trials=3))
        if outcome.winner is not None:
            won += 1
            assert outcome.winner.assessment.is_gain and outcome.held_out.is_gain
            assert outcome.winner in outcome.trials and outcome.rivals
    assert won


def test_steps_are_searched_as_a_target_of_their_own():
    outcome = run(FakeEvaluator(), targets=("steps",), strategy="guided")
    # Fewer than 12 of 20 lose over 2 %.
    assert outcome.winner.trial.candidate == Candidate({"steps": {"num_inference_steps": 12}})
    # Fewer steps cost nothing beside other accelerators; beside themselves they are no rival.
    assert outcome.rivals == ()


def test_fewer_steps_alone_that_win_a_joint_search_are_not_their_own_rival():
    class Joint(FakeEvaluator):
        """DeepCache costs time; fewer steps are as always."""

        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            alone = {"steps": candidate["steps"]} if "steps" in candidate else dict(candidate)
            measured = super().measure(Candidate(alone), split, prompts, pairs)
            self.calls[-1] = (candidate, *self.calls[-1][1:])
            if len(candidate) == 1 or candidate["deepcache"]["cache_interval"] == 1:
                return measured
            return replace(
                measured, seconds_per_image=tuple(2 * each for each in measured.seconds_per_image)
            )

    space = {"deepcache": {"cache_interval": (1, 3), "cache_branch_id": (0,)}}
    evaluator = Joint()
    outcome = run(evaluator, targets=("deepcache", "steps"), space=space)
    assert outcome.winner.trial.candidate["steps"] == {"num_inference_steps": 12}
    assert outcome.winner.trial.candidate["deepcache"]["cache_interval"] == 1
    assert 12 not in {rival.steps for rival in outcome.rivals}


def test_all_intervals_of_an_outcome_are_of_one_pool_and_a_report_finds_the_same(tmp_path):
    from accel_search.storage.run_reader import read_run
    from accel_search.storage.trials_db import default_url

    outcome = run(FakeEvaluator(noise=0.02), url=default_url(tmp_path))
    assert outcome.winner in outcome.trials
    # Every trial has three pairs, so by one pool all intervals are equally wide, but for those of
    # trials that contradict it.
    found = [each.assessment.speedup for each in outcome.trials]
    found += [outcome.held_out.speedup, *(each.assessment.speedup for each in outcome.rivals)]
    widths = [round(math.log(each.high / each.low), 9) for each in found]
    assert widths.count(statistics.mode(widths)) > len(widths) / 2
    report = read_run(tmp_path)
    rows = {row.candidate: row.speedup for row in report.rows}
    for each in outcome.trials:
        shown = rows[each.trial.candidate]
        assert shown.as_list() == pytest.approx(each.assessment.speedup.as_list())
    for rival, shown in zip(outcome.rivals, report.rivals, strict=True):
        assert shown.speedup.as_list() == pytest.approx(rival.assessment.speedup.as_list())
