"""The speed model: what single calls tell of step types, and what candidates have in common."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from accel_search.accelerators.computation import describe_steps, numbered
from accel_search.core.step_times import StepTimes, steps_to_probe
from accel_search.core.trial import Measurement
from accel_search.search.space import JointSpace
from accel_search.search.strategies.speed_model import SpeedModel, likeness, noise_of_look
from tests.support.fakes import WORKLOAD

TGATE = {"gate_step": 8, "sp_interval": 3, "fi_interval": 2, "warmup": 3}


@cache
def space_of(*targets):
    return JointSpace(targets, WORKLOAD, {"tgate": {"gate_step": (6, 8, 12)}})


def cost(step):
    """Return the time of a UNet call, in units of a plain one's."""
    costs = {"tgate gated": -0.6, "tgate self-attention cached": -0.3, "tgate cached": -0.3}
    return math.exp(sum(costs.get(each.name, -0.2) * each.amount for each in step))


def one_call(candidate, pace=1.0, drop=0):
    """Return the measurement of one call, timed by its UNet calls alone."""
    steps = describe_steps(candidate, WORKLOAD)
    seconds = tuple(pace * cost(step) for step in steps)[drop:]
    kinds = tuple(numbered(steps))[drop:]
    probes = tuple((at, pace) for at in steps_to_probe(kinds))
    calls = WORKLOAD.unet_calls
    times = StepTimes(pace * 0.08 * calls + sum(seconds), seconds, kinds, calls, probes)
    return Measurement((times.call,), (), (), 4, step_times=(times,))


def test_the_types_of_every_candidate_are_those_of_the_plans():
    space = space_of("deepcache", "tgate")
    types = set(SpeedModel(space).plans.types)
    for position in range(0, len(space), 7):
        assert types.issuperset(describe_steps(space.candidate_at(position), WORKLOAD))


@pytest.mark.parametrize("pace", [1.0, 3.0])
def test_one_call_tells_what_each_of_its_step_types_costs(pace):
    space = space_of("tgate")
    position = next(at for at in range(len(space)) if space.candidate_at(at)["tgate"] == TGATE)
    model = SpeedModel(space)
    candidate = space.candidate_at(position)
    types = sorted(set(describe_steps(candidate, WORKLOAD)), key=str)
    assert len(types) >= 4  # A plain one and three others.
    numbers = [model.plans.types.index(step) for step in types]
    model.speeds([(position, one_call(candidate, pace))], 0.01)
    told = model.latency.step_log_times[numbers]
    assert told == pytest.approx([math.log(cost(step)) for step in types], abs=0.05)


def test_a_pairs_call_without_plain_ones_hides_no_later_call():
    space = space_of("tgate")
    probed = one_call(space.candidate_at(40))
    bare = replace(probed.step_times[0], probes=())
    judge = replace(probed, step_times=(bare, *probed.step_times))
    alone, behind = SpeedModel(space), SpeedModel(space)
    alone.speeds([(40, probed)], 0.01)
    behind.speeds([(40, judge)], 0.01)
    assert behind.latency.step_log_times == pytest.approx(alone.latency.step_log_times)
    assert noise_of_look([judge], 0.1) == noise_of_look([probed], 0.1) < 0.1


def test_a_call_that_was_not_made_as_described_tells_of_no_type():
    space = space_of("tgate")
    candidate = space.candidate_at(40)
    whole, short = SpeedModel(space), SpeedModel(space)
    whole.speeds([(40, one_call(candidate))], 0.01)
    short.speeds([(40, one_call(candidate, drop=1))], 0.01)
    assert np.isfinite(short.latency.step_log_times).all()
    assert not np.allclose(whole.latency.step_log_times, short.latency.step_log_times)


def test_candidates_share_as_much_as_they_have_parameters_in_common():
    alike = likeness(np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.5, 1.0, 1.0]]))
    # The third parameter is the same for all and says nothing.
    assert alike @ alike.T == pytest.approx(np.array([[1, 0.5, 0], [0.5, 1, 0.5], [0, 0.5, 1]]))
    assert likeness(np.ones((3, 2))).shape == (3, 0)


def test_a_value_that_no_candidate_had_is_unmet():
    space = space_of("deepcache")
    model = SpeedModel(space)
    assert model.has_unmet([]).all()
    first = space.candidate_at(0)["deepcache"]
    unmet = model.has_unmet([0])
    for position in range(len(space)):
        params = space.candidate_at(position)["deepcache"]
        assert unmet[position] == any(params[name] != first[name] for name in params)
    assert not model.has_unmet(range(len(space))).any()
