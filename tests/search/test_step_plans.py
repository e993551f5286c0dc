"""Plans put together from the accelerators' parts are those that are described one by one."""

from collections import Counter

import numpy as np
import pytest

from accel_search.accelerators.base import PLAIN
from accel_search.accelerators.computation import describe_steps
from accel_search.core.candidate import Candidate
from accel_search.search.space import JointSpace
from accel_search.search.step_plans import plans_in
from tests.support.fakes import WORKLOAD, with_steps

NARROW = {
    "tgate": {"gate_step": (5, 10, 19), "sp_interval": (2, 5), "fi_interval": (1, 3)},
    "steps": {"num_inference_steps": (8, 15)},
}
SPACES = {
    "deepcache": JointSpace(("deepcache",), WORKLOAD),
    "tome": JointSpace(("tome",), WORKLOAD),
    "tgate": JointSpace(("tgate",), with_steps(25), NARROW),
    "deepcache,tome": JointSpace(("deepcache", "tome"), WORKLOAD),
    "deepcache,tgate": JointSpace(("deepcache", "tgate"), WORKLOAD, NARROW),
    "tgate,steps": JointSpace(("tgate", "steps"), WORKLOAD, NARROW),
    "deepcache,steps,tgate": JointSpace(("deepcache", "steps", "tgate"), WORKLOAD, NARROW),
}


def counted(plans, row):
    """Return what one candidate's calls are, by type."""
    counts = plans.counts[[row]].toarray()[0]
    return Counter({plans.types[at]: int(count) for at, count in enumerate(counts) if count})


@pytest.mark.parametrize("name", SPACES)
def test_every_candidates_calls_are_those_that_it_is_described_to_make(name):
    space = SPACES[name]
    chosen = np.random.default_rng(0).permutation(len(space))[:150].tolist()
    whole = plans_in(space)
    assert len(whole) == len(space)
    assert whole.baseline_calls == space.workload.unet_calls
    assert whole.types[0] == frozenset()
    for at in chosen:
        candidate = space.candidate_at(at)
        assert counted(whole, at) == Counter(describe_steps(candidate, space.workload)), candidate


def test_the_baseline_pipeline_makes_nothing_but_plain_calls():
    assert Counter(describe_steps(Candidate(), WORKLOAD)) == {PLAIN: WORKLOAD.unet_calls}


def test_without_a_workload_candidates_are_told_apart_by_their_parameters():
    space = JointSpace(("deepcache", "tome"), None)
    plans = plans_in(space)
    assert len({frozenset(counted(plans, row).items()) for row in range(len(space))}) == len(space)
