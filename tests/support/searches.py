"""A search of the fake evaluator."""

import logging

from accel_search.core.candidate import Candidate
from accel_search.core.trial import Goal
from accel_search.report.console.progress import Progress
from accel_search.search.loop import Budget, Search
from accel_search.search.space import JointSpace
from accel_search.search.strategies import get
from accel_search.search.strategies.base import Task
from accel_search.storage.trials_db import TrialStore


def point(interval, branch):
    return Candidate({"deepcache": {"cache_interval": interval, "cache_branch_id": branch}})


def run(
    evaluator,
    *,
    bound=0.02,
    speedup=None,
    budget=None,
    url=None,
    strategy="grid",
    targets=("deepcache",),
    min_psnr=None,
    max_tail_loss=None,
    watchdog=None,
    space=None,
):
    space = JointSpace(targets, evaluator.workload, space)
    store = TrialStore(url, "study", space.values())
    goal = Goal(bound, speedup, min_psnr, max_tail_loss=max_tail_loss)
    cls = get(strategy)
    task = Task(
        space, goal, evaluator.prompt_count, evaluator.chunk, 0, next(iter(cls.samplers), "")
    )
    with Progress(logging.getLogger("test"), len(space), goal, show_bar=False) as observer:
        budget = budget or Budget()
        return Search(evaluator, cls(task), store, goal, budget, observer, watchdog).run()
