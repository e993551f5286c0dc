"""What `accel-explore` does for one configuration: search it, and bound the speed in its space."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accel_search.core.outcome import Outcome
from accel_search.errors import NothingMeasured
from accel_search.report.console.progress import Progress
from accel_search.report.trackers.tracking import tracked
from accel_search.search.evaluator import Evaluator
from accel_search.search.events import Observers
from accel_search.search.explain import of_bound, of_search
from accel_search.search.space import JointSpace
from accel_search.search.speed_bound import SpeedBoundSearch
from accel_search.search.watchdog import Watchdog
from accel_search.settings import UPPER_BOUND, Settings
from accel_search.storage import search_results, speedup_bounds
from accel_search.storage.keys import search_key
from accel_search.storage.trials_db import TrialStore
from accel_search.study import keep, open_store, run_search


@dataclass(frozen=True)
class Exploration:
    """What one configuration's exploration found, as the result files hold it."""

    key: str
    """Of `speedup_bounds.json`."""
    label: str
    """Tells its model from others of the same pipeline class."""
    entry: dict[str, Any]
    is_gain: bool
    """Whether anything in the space is faster than the baseline beyond the noise."""
    winner: Mapping[str, Any] | None
    """Entry of `search_params.json`; None where no candidate keeps the bound on the loss, or none
    was scored."""


def explore(
    settings: Settings,
    evaluator: Evaluator,
    logger: logging.Logger,
    *,
    show_bar: bool = False,
    watchdog: Watchdog | None = None,
) -> Exploration:
    """Search one configuration and find the fastest candidate of its space.

    Everything is stored as it is measured; an exploration that was interrupted goes on.

    Args:
        settings: The configuration, as a search's settings. With `latency_only` nothing is scored,
            and the speed alone is looked for.
        evaluator: Measures it.
        logger: Gets the lines.
        show_bar: Whether a bar is drawn on standard error.
        watchdog: Ends what hangs; None lets it hang.

    Raises:
        NothingMeasured: No candidate could be measured.
        AccelSearchError: As `Search.run` and `SpeedBoundSearch.run`.
    """
    space = JointSpace(settings.targets, evaluator.workload, settings.space)
    store = open_store(settings, evaluator, space)
    _share_baselines(evaluator, store)
    provenance = evaluator.provenance
    with tracked(settings, evaluator.workload, provenance, store.name, logger) as tracking:
        outcome: Outcome | None = None
        if not settings.latency_only:
            outcome = run_search(
                settings,
                logger,
                evaluator,
                space,
                store,
                show_bar=show_bar,
                tracking=tracking,
                watchdog=watchdog,
            )
            no_gain = of_search(outcome, space, provenance)
            keep(settings, logger, evaluator, space, store, outcome, no_gain)
        pairs = 1 if settings.latency_only else evaluator.pairs
        with Progress(logger, len(space), settings.goal, show_bar=show_bar) as progress:
            observers = Observers(progress, tracking.tell)
            timing = SpeedBoundSearch(evaluator, space, store, observers, pairs, watchdog)
            try:
                bound = timing.run()
            except NothingMeasured:  # Which is an end, too: what failed is tried again by --force.
                store.finish()
                raise
        winner = None
        if outcome is not None and outcome.winner is not None:
            no_gain = of_search(outcome, space, evaluator.provenance)
            winner = search_results.entry_of(
                outcome, settings, space.summary(), evaluator.provenance, store.name, no_gain
            )
        entry = speedup_bounds.entry_of(
            settings,
            space.summary(),
            evaluator.provenance,
            store.name,
            bound,
            outcome,
            winner,
            of_bound(bound, space.targets, evaluator.provenance),
        )
        store.finish()
        tracking.end(dict(entry) | dict(winner or {}), outcome, ())
    return Exploration(
        key=search_key(evaluator.workload, UPPER_BOUND, settings.req_score_loss, settings.targets),
        label=speedup_bounds.label_of(settings.pipe, settings.latency_only),
        entry=entry,
        is_gain=bound.is_gain,
        winner=winner,
    )


def _share_baselines(evaluator: Evaluator, store: TrialStore) -> None:
    """Take over what the evaluator measured of this workload a moment ago, for another method."""
    for split, measured in evaluator.baselines.items():
        name = f"baseline:{split}:{measured.batch_size}"
        is_of_size = measured.batch_size == evaluator.workload.batch_size
        if is_of_size and store.recall(name) is None:
            store.remember(name, measured)
