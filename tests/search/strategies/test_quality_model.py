"""The quality model: what few scores say of all candidates, and how surely."""

from pathlib import Path

import numpy as np
import pytest

from accel_search.core.assessment import tail_loss
from accel_search.core.trial import Goal, Measurement
from accel_search.search.replay import replay_space
from accel_search.search.space import JointSpace
from accel_search.search.step_plans import plans_in
from accel_search.search.strategies.quality_model import (
    QualityModel,
    Scored,
    bounds_of,
    inputs,
    scored,
    to_scale,
)
from accel_search.storage.trials_file import read_trials
from tests.support.fakes import WORKLOAD

TABLES = Path(__file__).parents[2] / "data" / "tables"
LIMIT = float(to_scale(np.ones(1))[0])


def measured(scores, **likeness):
    return Measurement((0.5,), (1.0,), tuple(scores), 4, **likeness)


def test_a_bound_is_used_up_by_the_loss_over_all_prompts():
    baseline = measured([20.0, 30.0, 40.0, 30.0])
    own = measured([19.0, 30.0, 38.8, 30.0])
    (used,) = bounds_of(Goal(0.02))
    (found,) = scored([(5, own)], baseline, used)
    loss = 1 - np.mean(own.scores) / np.mean(baseline.scores)
    assert found.position == 5
    assert found.value == pytest.approx(loss / 0.02)
    assert found.sd == 0.0  # No prompt is left that could say otherwise.


def test_a_few_prompts_say_less_than_many():
    before = np.full(32, 30.0)
    baseline, after = measured(before), before - np.tile([1.5, -0.5], 16)
    (used,) = bounds_of(Goal(0.02))
    spreads = [scored([(0, measured(after[:n]))], baseline, used)[0].sd for n in (4, 8, 16, 30)]
    assert spreads == sorted(spreads, reverse=True) and spreads[-1] > 0


def test_a_single_prompt_rules_nothing_out():
    """It lost 20 times the bound, and the others may lose nothing."""
    before = np.full(4, 30.0)
    baseline, own = measured(before), measured(before[:1] * 0.6)
    (used,) = bounds_of(Goal(0.02))
    (found,) = scored([(0, own)], baseline, used)
    assert found.sd == pytest.approx(20 * np.sqrt(1 - 1 / 4))
    model = QualityModel(np.linspace(0, 1, 8)[:, None])
    assert 0.05 < model.within([found])[0] < 0.5


def test_first_prompts_that_lose_little_of_all_candidates_do_not_stand_for_the_others():
    rng = np.random.default_rng(0)
    before = np.full(32, 30.0)
    # No candidate loses on the first four prompts; on the others each loses its own.
    hard = np.arange(32) >= 4
    truths = [0.02, 0.03, 0.04, 0.03, 0.025]
    after = [before * (1 - 32 / 28 * loss * hard * rng.uniform(0.5, 1.5, 32)) for loss in truths]
    baseline = measured(before)
    (used,) = bounds_of(Goal(0.01))
    few = [(0, measured(after[0][:4]))]
    (alone,) = scored(few, baseline, used)
    assert alone.value + 2 * alone.sd < 1  # It seems to be within the bound for sure.
    others = [(at, measured(after[at])) for at in range(1, 5)]
    (known, *_) = scored(few + others, baseline, used)
    assert known.value > 1 and known.sd > 0.2
    assert abs(known.value - 2) < 2 * known.sd + 0.5


def test_what_the_first_prompts_missed_of_the_worst_ones_is_by_their_own_worst():
    rng = np.random.default_rng(0)
    before = np.full(32, 30.0)
    baseline = measured(before)
    after = [before * (1 - rng.permutation(np.linspace(0, 0.1, 32))) for _ in range(6)]
    _, tail = bounds_of(Goal(0.02, max_tail_loss=0.1))
    whole = [(at, measured(scores)) for at, scores in enumerate(after[1:], 1)]
    (alone,) = scored([(0, measured(after[0][:8]))], baseline, tail)
    (known, *_) = scored([(0, measured(after[0][:8])), *whole], baseline, tail)
    missed = [tail_loss(before, scores) - tail_loss(before[:8], scores[:8]) for scores in after[1:]]
    assert known.value - alone.value == pytest.approx(sum(missed) / 6 / 0.1)


def test_bounds_on_likeness_are_used_up_the_farther_from_the_baselines_images():
    _, psnr, ssim = bounds_of(Goal(0.02, min_psnr=20.0, min_ssim=0.9))
    own = measured([30.0] * 3, psnr=(50.0, 20.0, 5.0), ssim=(1.0, 0.9, 0.8))
    assert psnr(own, own) == pytest.approx([0.0, 1.0, 1.5])
    assert ssim(own, own) == pytest.approx([0.0, 1.0, 2.0])


def test_a_bound_on_the_worst_prompts_is_used_up_by_them_alone():
    _, used = bounds_of(Goal(0.02, max_tail_loss=0.2))
    baseline = measured([30.0] * 20)
    own = measured([30.0, 24.0, 18.0, *[30.0] * 17])
    assert used(own, baseline).mean() == pytest.approx(1.5)  # 20 and 40 %, of 20 % allowed.
    assert used(own, baseline).mean() == pytest.approx(tail_loss(baseline.scores, own.scores) / 0.2)
    assert used(baseline, baseline).mean() == pytest.approx(0.0)


def test_a_bound_of_nothing_can_be_told_apart_from_a_loss():
    (used,) = bounds_of(Goal(0.0))
    baseline = measured([30.0, 30.0])
    assert (used(measured([30.0, 30.0]), baseline) == 1).all()
    assert (used(measured([29.0, 29.0]), baseline) > 1).all()


def test_inputs_go_from_mild_to_harsh_and_leave_out_what_is_the_same_for_all():
    space = JointSpace(("deepcache", "tome"), WORKLOAD)
    found = inputs(space.coordinates(), plans_in(space))
    assert found.shape[0] == len(space)
    assert found.min() == 0 and found.max() == 1
    assert (np.ptp(found, axis=0) > 0).all()


def grid(count=9):
    one, other = np.meshgrid(np.linspace(0, 1, count), np.linspace(0, 1, count))
    return np.stack([one.ravel(), other.ravel()], axis=1)


def test_before_anything_is_scored_harsher_candidates_are_likelier_to_lose_too_much():
    points = grid()
    within = QualityModel(points).within([])
    order = np.argsort(points.sum(axis=1))
    assert within[order[0]] > 0.6 > within[order[-1]]
    assert ((within > 0.05) & (within < 0.999)).all()  # Nothing is taken for granted.


def test_it_learns_where_the_bound_lies_from_some_of_the_candidates():
    points = grid()
    truth = 2.5 * points[:, 0] ** 2 + 0.3 * points[:, 1]  # One input matters, the other hardly.
    chosen = np.random.default_rng(0).permutation(len(points))[:16]
    model = QualityModel(points)
    within = model.within([Scored(int(at), float(truth[at]), 0.05) for at in chosen])
    clear = np.abs(truth - 1) > 0.25
    others = np.setdiff1d(np.flatnonzero(clear), chosen)
    assert ((within > 0.5) == (truth <= 1))[others].mean() > 0.95


def test_what_was_scored_on_all_prompts_is_known_and_its_neighbours_nearly_so():
    points = grid()
    model = QualityModel(points)
    mean, sd = model.posterior([Scored(40, 0.2, 0.0), Scored(0, 0.0, 0.0), Scored(80, 3.0, 0.0)])
    assert mean[40] == pytest.approx(float(to_scale(np.array([0.2]))[0]), abs=0.02)
    assert sd[40] < 0.05 < sd[41] < sd[8]


def test_a_score_on_few_prompts_weighs_less():
    points = grid()
    sure, vague = (
        QualityModel(points).posterior([Scored(40, 3.0, sd), Scored(0, 0.0, 0.0)])
        for sd in (0.0, 2.0)
    )
    assert sure[0][40] > vague[0][40]
    assert sure[1][40] < vague[1][40]


def test_huge_losses_do_not_bend_what_is_said_of_small_ones():
    points = grid()
    truth = np.where(points[:, 0] > 0.8, 40.0, 0.2)
    chosen = [0, 3, 6, 30, 33, 60, 80, 8, 44, 62]
    scores = [Scored(at, float(truth[at]), 0.05) for at in chosen]
    within = QualityModel(points).within(scores)
    assert within[points[:, 0] < 0.5].min() > 0.6


@pytest.mark.parametrize(
    ("name", "bound"), [("tgate", 0.005), ("tgate", 0.02), ("deepcache-tgate", 0.02)]
)
def test_on_recorded_scores_its_probabilities_are_about_true(name, bound):
    recorded = read_trials(TABLES / f"{name}.json.gz")
    space = replay_space(recorded, tuple(name.split("-")))
    located = [(space.position(each.candidate), each.measurement) for each in recorded.trials]
    (used,) = bounds_of(Goal(bound))
    everything = scored(located, recorded.baseline, used)
    chosen = np.random.default_rng(0).permutation(len(everything))[:60]
    model = QualityModel(inputs(space.coordinates(), plans_in(space)))
    within = model.within([everything[at] for at in chosen])
    others = [each for at, each in enumerate(everything) if at not in set(chosen.tolist())]
    said = np.array([within[each.position] for each in others])
    is_so = np.array([each.value <= 1 for each in others])
    share = is_so.mean()
    # Better than always saying the share of all (Brier), and right where it is sure.
    assert np.mean((said - is_so) ** 2) < 0.4 * share * (1 - share)
    sure = (said > 0.95) | (said < 0.05)
    assert sure.mean() > 0.3 and ((said > 0.5) == is_so)[sure].mean() > 0.9


def test_what_is_known_of_some_holds_for_those_like_them():
    points = np.linspace(0, 10, 101)[:, None]
    model = QualityModel(points)
    spread = model.spread_out([10, 12], [0.5, 0.7], 0.1)
    assert spread[[10, 12]] == pytest.approx([0.5, 0.7], abs=0.06)
    assert 0.5 < spread[11] < 0.7
    assert spread[100] == pytest.approx(0.1, abs=0.01)  # Nothing like it is known.
    assert np.all(model.spread_out([], [], 0.3) == 0.3)
