"""A search of the fake evaluator that leaves its result in a file."""

import logging
from dataclasses import replace
from functools import partial

from accel_search.report.console.progress import Progress
from accel_search.search.explain import of_search
from accel_search.search.loop import Budget, Search
from accel_search.search.space import JointSpace
from accel_search.search.strategies import get
from accel_search.search.strategies.base import Task
from accel_search.settings import Settings
from accel_search.storage.search_results import entry_of, save
from accel_search.storage.trials_db import TrialStore
from tests.support.fakes import PROVENANCE, WORKLOAD, FakeEvaluator, deepcache_truth

GRID = partial(Settings, strategy="grid")


def searched(path, settings, provenance=PROVENANCE, truth=deepcache_truth, evaluator=None):
    """Run a search on the fake and save its result; return the entry."""
    space = JointSpace(settings.targets, WORKLOAD, settings.space)
    store = TrialStore(None, "study", space.values())
    evaluator = evaluator or FakeEvaluator(truth)
    task = Task(space, settings.goal, evaluator.prompt_count, evaluator.chunk, settings.seed)
    with Progress(logging.getLogger("test"), 16, settings.goal, show_bar=False) as observer:
        outcome = Search(
            evaluator,
            get(settings.strategy)(task),
            store,
            settings.goal,
            Budget(settings.max_trials),
            observer,
        ).run()
    no_gain = of_search(outcome, space, provenance)
    summary = space.summary()
    entry = entry_of(outcome, settings, summary, WORKLOAD, provenance, store.name, no_gain)
    save(path, WORKLOAD, settings, entry)
    return entry


class Halved(FakeEvaluator):
    """Has room for half the batch that is asked for."""

    def _measurement(self, *arguments):
        return replace(super()._measurement(*arguments), batch_size=2)
