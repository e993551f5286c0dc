"""Which candidate held-out prompts will pass, by all that is known of it and of others."""

import numpy as np
import pytest

from accel_search.core.trial import SURE
from accel_search.core.validation import (
    COST,
    Scores,
    Tried,
    foresee,
    priority,
    reach_of,
    stages,
    worth_of,
)

RNG = np.random.default_rng(0)
BASE = RNG.normal(30, 2, 32)
LOSSES = RNG.normal(0, 0.05, 32)
LOSSES -= LOSSES.mean()


def losing(mean, deviations=LOSSES):
    """Return scores that lose `mean` of the baseline's, more on some prompts than on others."""
    return Scores(tuple(BASE), tuple(BASE - BASE.mean() * (mean + deviations)))


def tried(mean, there, deviations=LOSSES):
    return Tried(losing(mean, deviations), losing(there, deviations))


@pytest.mark.parametrize(
    ("first", "most", "expected"),
    [(32, 128, (32, 64, 128)), (16, 40, (16, 32, 40)), (8, 8, (8,)), (0, 0, ())],
)
def test_held_out_prompts_double_up_to_all_of_them(first, most, expected):
    assert stages(first, most) == expected


def test_a_candidate_passes_as_likely_as_not_where_it_is_within_by_what_a_pass_takes():
    outlook = foresee([losing(0.0)], (), 0.02, 128)
    spread = LOSSES.std(ddof=1)
    margin = 1.2816 * spread / np.sqrt(128)
    assert outlook.shift == pytest.approx(margin, rel=0.05)
    at_margin = foresee([losing(0.02 - outlook.shift)], (), 0.02, 128)
    assert np.exp(at_margin.log_chances)[0] == pytest.approx(0.5, abs=0.03)
    assert outlook.error == pytest.approx(spread * np.sqrt(1 / 32 + 1 / 128), rel=0.05)
    assert pytest.approx(0.9) == SURE


def test_without_held_out_prompts_it_is_the_chance_to_be_within_the_bound():
    assert np.exp(foresee([losing(0.02)], (), 0.02, 0).log_chances)[0] == pytest.approx(0.5)


def test_one_that_lost_more_there_tells_of_those_that_lose_on_the_same_prompts():
    other = RNG.permutation(LOSSES)
    candidates = [losing(0.005), losing(0.005, other)]
    before = np.exp(foresee(candidates, (), 0.02, 128).log_chances)
    after = np.exp(foresee(candidates, [tried(0.004, 0.03)], 0.02, 128).log_chances)
    assert before[0] == pytest.approx(before[1], abs=0.02)
    # What loses on the same prompts will fail too; the other one hardly hears of it.
    assert after[0] < 0.3 * before[0] and after[1] > 0.8 * before[1]
    better = np.exp(foresee(candidates, [tried(0.02, -0.01)], 0.02, 128).log_chances)
    assert better[0] > before[0]


def test_what_was_not_measured_is_expected_to_lose_more_too_but_not_without_end():
    calm = foresee([losing(0.0)], (), 0.02, 128).shift
    unlucky = foresee([losing(0.0)], [tried(0.0, 0.004)], 0.02, 128).shift
    hopeless = foresee([losing(0.0)], [tried(0.0, 0.5)], 0.02, 128).shift
    assert calm < unlucky < hopeless
    assert hopeless == pytest.approx(calm + 0.01, abs=1e-3)


def test_each_ones_shift_is_by_how_much_it_has_to_be_within_the_bound():
    other = RNG.permutation(LOSSES)
    outlook = foresee([losing(0.0), losing(0.0, other)], [tried(0.0, 0.01)], 0.02, 128)
    like, unlike, itself = outlook.shifts
    # What loses on the same prompts lost there as the one that was tried did.
    assert like == pytest.approx(itself, rel=0.15) and unlike < 0.5 * like
    at_shift = [losing(0.02 - like), losing(0.02 - unlike, other)]
    chances = np.exp(foresee(at_shift, [tried(0.0, 0.01)], 0.02, 128).log_chances)
    assert chances == pytest.approx([0.5, 0.5], abs=0.05)


def test_nothing_known_is_no_outlook_and_equal_scores_are_sure():
    assert not len(foresee([], (), 0.02, 128).log_chances)
    same = Scores(tuple(BASE), tuple(BASE * 0.99))
    assert np.exp(foresee([same], [Tried(same, same)], 0.02, 128).log_chances)[0] == 1.0
    assert np.exp(foresee([same], (), 0.005, 128).log_chances)[0] == 0.0


def test_what_is_tried_first_is_worth_more_than_any_other_order():
    """A slow sure one, a fast unlikely one and one between: all orders by hand."""
    from itertools import permutations
    from math import exp, log

    candidates = [(0.2, log(0.99)), (0.5, log(0.02)), (0.3, log(0.6))]

    def worth(order):
        value, reached = 0.0, 1.0
        for log_speedup, log_chance in order:
            value += reached * (exp(log_chance) * log_speedup - COST)
            reached *= 1 - exp(log_chance)
        return value

    def by_priority(known):
        return priority(*known)

    kept = [known for known in candidates if by_priority(known) > 0.2 - COST / 0.99 - 1e-9]
    best = max(
        (order for count in (1, 2, 3) for order in permutations(candidates, count)), key=worth
    )
    assert list(best) == sorted(kept, key=by_priority, reverse=True)
    assert worth_of(candidates, 0.0) == pytest.approx(
        0.6 * 0.3 + 0.4 * (0.99 * 0.2 + 0.01 * 0.02 * 0.5), rel=1e-6
    )
    assert worth_of((), 0.07) == 0.07


def test_one_is_reached_where_all_that_come_before_it_fail():
    known = [(0.5, np.log(0.5)), (0.3, np.log(0.8))]
    sure = np.log(np.full(3, 0.99))
    reached = reach_of(known, np.array([0.6, 0.4, 0.2]), sure)
    assert reached == pytest.approx([1.0, 0.5, 0.5 * 0.2])
    assert reach_of((), np.array([0.6, 0.0]), sure[:2]) == pytest.approx([1.0, 1.0])
    many = [(0.5, np.log(0.2))] * 20
    assert reach_of(many, np.array([0.1]), sure[:1]) == 0.0  # No more are tried than MAX_TRIED.


def test_a_single_prompt_leaves_it_open_what_others_would_say():
    one = Scores((30.0,), (27.0,))
    chance = np.exp(foresee([one, one], (), 0.02, 128).log_chances)
    assert (chance > 0.1).all() and (chance < 0.5).all()
