"""What every strategy must do; a new file in strategies/ is picked up by itself."""

import pytest

from accel_search.records import Candidate, Failure, Trial
from accel_search.space import JointSpace
from accel_search.strategies import all_strategies, get
from tests.fakes import WORKLOAD, FakeEvaluator

SPACES = {
    "deepcache": JointSpace(("deepcache",), WORKLOAD),
    "tome": JointSpace(("tome",), WORKLOAD),
    "deepcache,tome": JointSpace(("deepcache", "tome"), WORKLOAD),
}


@pytest.fixture(params=sorted(all_strategies()))
def strategy(request):
    return get(request.param)


def exhaust(strategy, space, seed=0, history=None):
    """Ask until nothing is left; every other trial fails."""
    history = list(history or [])
    chooser = strategy(space, seed)
    measured = FakeEvaluator(lambda candidate: (1.5, 0.01)).measure(Candidate())
    asked = []
    while (candidate := chooser.ask(history)) is not None:
        asked.append(candidate)
        failed = len(asked) % 2
        history.append(
            Trial(candidate, None, Failure("invalid_image", "black", 1.0))
            if failed
            else Trial(candidate, measured)
        )
        assert len(asked) <= len(space), "asked for more candidates than there are"
    return asked


def test_strategies_of_the_mission_are_there():
    assert {"grid", "random"} <= set(all_strategies())


@pytest.mark.parametrize("name", SPACES)
def test_each_distinct_candidate_is_asked_for_once(strategy, name):
    space = SPACES[name]
    asked = exhaust(strategy, space)
    keys = [space.key(each) for each in asked]
    assert len(keys) == len(set(keys)) == len(space)
    assert () not in keys


def test_the_seed_decides_everything(strategy):
    space = SPACES["deepcache"]
    assert exhaust(strategy, space, seed=3) == exhaust(strategy, space, seed=3)


def test_a_resumed_search_asks_for_what_is_left(strategy):
    space = SPACES["deepcache"]
    whole = exhaust(strategy, space, seed=1)
    history = [Trial(each, None, Failure("timeout", "", 1.0)) for each in whole[:7]]
    rest = exhaust(strategy, space, seed=1, history=history)
    assert {space.key(each) for each in whole[:7]}.isdisjoint({space.key(each) for each in rest})
    assert len(rest) == len(space) - 7


def test_a_point_that_coincides_with_a_measured_one_counts_as_measured(strategy):
    space = SPACES["tome"]
    twin = Candidate({"tome": {"ratio": 0.5, "max_downsample": 3}})
    history = [Trial(twin, None, Failure("timeout", "", 1.0))]
    asked = exhaust(strategy, space, history=history)
    assert space.key(twin) not in {space.key(each) for each in asked}


def test_asking_twice_without_news_gives_the_same_answer(strategy):
    chooser = strategy(SPACES["deepcache"], 0)
    assert chooser.ask([]) == chooser.ask([])


def test_random_orders_differ_by_seed():
    space = SPACES["deepcache,tome"]
    assert exhaust(get("random"), space, seed=0) != exhaust(get("random"), space, seed=1)
