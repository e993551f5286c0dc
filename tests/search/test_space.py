"""The joint space: what coincides, what is left out, in which order it is walked."""

import ast
from dataclasses import replace

import pytest

from accel_search.core.candidate import Candidate
from accel_search.errors import ConfigurationError
from accel_search.search.space import JointSpace
from accel_search.storage.keys import search_key
from tests.support.fakes import WORKLOAD, with_steps


def walk(space):
    return [space.candidate_at(position) for position in range(len(space))]


def test_the_missions_grids_have_their_sizes():
    sizes = {
        name: JointSpace((name,), WORKLOAD).point_count for name in ("deepcache", "tome", "tgate")
    }
    assert sizes == {"deepcache": 16, "tome": 36, "tgate": 1800}


@pytest.mark.parametrize(("steps", "distinct"), [(20, 1211), (25, 1365), (50, 1365)])
def test_tgate_points_with_one_schedule_are_one_candidate(steps, distinct):
    assert len(JointSpace(("tgate",), with_steps(steps))) == distinct


def test_a_joint_space_is_the_product_of_its_targets():
    space = JointSpace(("deepcache", "tome"), WORKLOAD)
    assert space.point_count == 16 * 36
    assert len(space) == 16 * len(JointSpace(("tome",), WORKLOAD))


def test_every_distinct_candidate_is_walked_once_and_stands_for_its_whole_group():
    space = JointSpace(("tome",), WORKLOAD)
    candidates = walk(space)
    assert len({space.key(each) for each in candidates}) == len(candidates) == len(space)
    covered = [point for each in candidates for point in space.coinciding(each)]
    assert len(covered) == len(set(covered)) == 36


def test_tome_levels_that_a_unet_does_not_have_coincide():
    space = JointSpace(("tome",), WORKLOAD)
    two = Candidate({"tome": {"ratio": 0.3, "max_downsample": 2}})
    three = Candidate({"tome": {"ratio": 0.3, "max_downsample": 3}})
    four = Candidate({"tome": {"ratio": 0.3, "max_downsample": 4}})
    assert space.key(two) == space.key(three) != space.key(four)
    clamped = [Candidate({"tome": {"ratio": r, "max_downsample": 1}}) for r in (0.8, 0.9)]
    assert space.key(clamped[0]) == space.key(clamped[1])


def test_a_point_that_does_nothing_is_the_baseline_and_never_walked():
    sdxl = replace(WORKLOAD, latent_height=128, latent_width=128, attention_downsamples=(2, 4))
    space = JointSpace(("tome",), sdxl)
    nothing = Candidate({"tome": {"ratio": 0.5, "max_downsample": 1}})
    assert space.key(nothing) == ()
    assert all(space.key(each) != () for each in walk(space))
    joint = JointSpace(("deepcache", "tome"), sdxl)
    alone = Candidate({"deepcache": {"cache_interval": 2, "cache_branch_id": 0}})
    with_nothing = Candidate({**alone, **nothing})
    assert joint.key(alone) == joint.key(with_nothing) != ()


def test_gate_steps_beyond_the_last_step_are_not_in_the_space():
    space = JointSpace(("tgate",), with_steps(8))
    assert {each["tgate"]["gate_step"] for each in walk(space)} == {5, 6, 7}


def test_a_space_with_no_possible_value_is_refused_in_one_line():
    with pytest.raises(ConfigurationError, match="gate_step.*5 steps") as refused:
        JointSpace(("tgate",), with_steps(5))
    assert "\n" not in str(refused.value)


def test_targets_that_leave_each_other_no_room_are_refused_in_one_line():
    # 5 steps at most, and a gate before the last of them at 5 or later.
    with pytest.raises(ConfigurationError, match="steps,tgate.*6 steps") as refused:
        JointSpace(("tgate", "steps"), with_steps(6))
    assert "\n" not in str(refused.value)


def test_fewer_steps_change_what_the_other_targets_mean():
    space = JointSpace(("steps", "tgate"), WORKLOAD)
    candidates = walk(space)
    assert len(candidates) == len({space.key(each) for each in candidates})
    for each in candidates:
        assert each["tgate"]["gate_step"] < each["steps"]["num_inference_steps"] < 20
        assert space.position(each) is not None
    # At 6 steps there is one gate, and after it a single step: the interval there means nothing.
    short = [each for each in candidates if each["steps"]["num_inference_steps"] == 6]
    assert {each["tgate"]["fi_interval"] for each in short} == {1, 2}


def test_deepcache_counts_anew_from_the_gate():
    space = JointSpace(("deepcache", "tgate"), with_steps(8))
    points = [
        Candidate(
            {
                "deepcache": {"cache_interval": interval, "cache_branch_id": 0},
                "tgate": {"gate_step": 5, "sp_interval": 2, "fi_interval": 1, "warmup": 1},
            }
        )
        for interval in (3, 4, 5)
    ]
    # Full at 0, 4, 5 for both: the interval never runs out between two restarts.
    assert space.key(points[1]) == space.key(points[2]) != space.key(points[0])
    assert space.position(points[1]) == space.position(points[2])


def test_coordinates_run_from_mild_to_harsh():
    space = JointSpace(("deepcache", "steps"), WORKLOAD)
    coordinates = space.coordinates()
    assert coordinates.shape == (len(space), 3)
    for position in range(0, len(space), 17):
        candidate = space.candidate_at(position)
        interval, branch, steps = coordinates[position]
        assert interval == pytest.approx((candidate["deepcache"]["cache_interval"] - 2) / 3)
        assert branch == pytest.approx(1 - candidate["deepcache"]["cache_branch_id"] / 3)
        assert steps == pytest.approx((19 - candidate["steps"]["num_inference_steps"]) / 15)


def test_positions_and_candidates_go_both_ways():
    for targets in (("tome",), ("deepcache", "tgate"), ("deepcache", "steps")):
        space = JointSpace(targets, WORKLOAD)
        for position in range(0, len(space), max(1, len(space) // 50)):
            assert space.position(space.candidate_at(position)) == position
    assert space.position(Candidate()) is None


def test_overrides_replace_the_values():
    space = JointSpace(("deepcache",), WORKLOAD, {"deepcache": {"cache_interval": (2, 7)}})
    assert space.point_count == 8
    assert space.values()["deepcache"]["cache_interval"] == [2, 7]


def test_the_walk_is_coarse_to_fine():
    space = JointSpace(
        ("deepcache",),
        WORKLOAD,
        {"deepcache": {"cache_interval": range(2, 9), "cache_branch_id": (0,)}},
    )
    order = [each["deepcache"]["cache_interval"] for each in walk(space)]
    assert order[0] == 5
    assert set(order[1:3]) == {3, 7}
    assert set(order) == set(range(2, 9))


def test_search_key_is_the_text_of_a_python_tuple():
    key = search_key(WORKLOAD, "upbound_speedup", 0.02, ("tome", "deepcache"))
    assert ast.literal_eval(key) == (
        "StableDiffusionPipeline",
        "DDIMScheduler",
        "20",
        "upbound_speedup",
        0.02,
        ["deepcache", "tome"],
    )
