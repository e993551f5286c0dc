"""Joint searches in which one target costs time."""

from __future__ import annotations

from dataclasses import replace

from accel_search.search import explain
from accel_search.search.space import JointSpace
from tests.support.fakes import PROVENANCE, WORKLOAD, FakeEvaluator
from tests.support.searches import run

FLASH = replace(PROVENANCE, attention_backend="native (flash)")


BOTH = JointSpace(
    ("deepcache", "tome"),
    WORKLOAD,
    {
        "deepcache": {"cache_interval": [2, 3], "cache_branch_id": [0]},
        "tome": {"ratio": [0.0, 0.5], "max_downsample": [1]},
    },
)
"""Of four points, two merge nothing."""


ALWAYS = JointSpace(
    ("deepcache", "tome"),
    WORKLOAD,
    {
        "deepcache": {"cache_interval": [2, 3], "cache_branch_id": [0]},
        "tome": {"ratio": [0.3, 0.5], "max_downsample": [1]},
    },
)
"""Each of its points merges."""


def jointly(cost, monkeypatch, space=BOTH, url=None):
    """Return the outcome, the calls, and what is said where ToMe multiplies the speed by `cost`."""

    def truth(candidate):
        interval = candidate["deepcache"]["cache_interval"] if "deepcache" in candidate else 1
        merges = "tome" in candidate and candidate["tome"]["ratio"] > 0
        return interval * (cost if merges else 1.0), 0.0

    monkeypatch.setattr("tests.support.searches.JointSpace", lambda *_: space)
    evaluator = FakeEvaluator(truth)
    outcome = run(evaluator, targets=space.targets, url=url)
    return outcome, evaluator.calls, explain.of_search(outcome, space, FLASH)
