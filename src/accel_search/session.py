"""One search, from its settings to what it leaves on disk: for both programs and every worker."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accel_search.core.outcome import Outcome
from accel_search.core.workload import Provenance, Workload
from accel_search.errors import NothingMeasured
from accel_search.report.console.progress import Progress
from accel_search.report.trackers.tracking import Tracking, tracked
from accel_search.search import strategies
from accel_search.search.evaluator import Evaluator
from accel_search.search.events import Observers
from accel_search.search.explain import of_bound, of_search
from accel_search.search.loop import Budget, Search
from accel_search.search.space import JointSpace
from accel_search.search.speed_bound import SpeedBoundSearch
from accel_search.search.strategies.base import Task
from accel_search.search.watchdog import Watchdog
from accel_search.settings import UPPER_BOUND, Settings
from accel_search.storage import search_results, speedup_bounds
from accel_search.storage.answers import measured_as
from accel_search.storage.keys import search_key
from accel_search.storage.run_folder import (
    begun_story,
    pictures_path,
    reopen_story,
    story_of,
    to_picture,
    write_story,
)
from accel_search.storage.trials_db import TrialStore, default_url, study_name


def open_store(settings: Settings, evaluator: Evaluator, space: JointSpace) -> TrialStore:
    """Open the study of all searches that measure the same thing; a replay's is in memory.

    Raises:
        ConfigurationError: The storage cannot be opened.
    """
    values = space.values()
    if settings.replay is not None:
        return TrialStore(None, "replay", values)
    provenance = evaluator.provenance
    identity = measured_as(settings, evaluator.workload, values, provenance)
    url = settings.storage or default_url(settings.run_dir)
    about = _about(evaluator.workload, provenance, space)
    return TrialStore(url, study_name(identity), values, fresh=settings.force, about=about)


def _about(load: Workload, provenance: Provenance | None, space: JointSpace) -> str:
    """Say what a study is of: its name is a digest."""
    where = load.device if provenance is None else provenance.device_name
    return (
        f"{load.pipeline}, {' + '.join(space.targets)}: {load.scheduler_class}, "
        f"{load.steps} steps, {load.height} × {load.width} pixels, batch size {load.batch_size}, "
        f"{load.dtype}, {where}"
    )


def keep(
    settings: Settings,
    logger: logging.Logger,
    evaluator: Evaluator,
    space: JointSpace,
    store: TrialStore,
    outcome: Outcome,
    no_gain: str | None,
) -> dict[str, Any]:
    """Leave in the run folder what a report needs beside the trials, and return its story.

    A replay leaves nothing: it measured nothing.

    Args:
        settings: What was asked.
        logger: Gets the lines.
        evaluator: Measured; makes the pictures.
        space: What was searched.
        store: Keeps the trials.
        outcome: What the search found.
        no_gain: What is to be said of targets that gain nothing.
    """
    load, where = evaluator.workload, evaluator.provenance
    story = story_of(outcome, settings, space.summary(), load, where, store.name, no_gain)
    if settings.replay is None:
        write_story(settings.run_dir, story)
        if settings.pictured and not settings.latency_only:
            from accel_search.runtime.measuring.evaluator import PipelineEvaluator
            from accel_search.runtime.pictures import write_pictures

            assert isinstance(evaluator, PipelineEvaluator)
            folder = pictures_path(settings.run_dir, store.name)
            write_pictures(evaluator, to_picture(outcome), settings.pictured, folder, logger)
    return story


def run_search(
    settings: Settings,
    logger: logging.Logger,
    evaluator: Evaluator,
    space: JointSpace,
    store: TrialStore,
    *,
    show_bar: bool,
    tracking: Tracking | None = None,
    watchdog: Watchdog | None = None,
) -> Outcome:
    """Run the search that the settings ask for.

    Args:
        settings: Give strategy, goal and budget.
        logger: Gets a line a trial.
        evaluator: Measures.
        space: What is searched.
        store: Keeps the trials.
        show_bar: Whether a bar is drawn on standard error.
        tracking: Who else is told; None is nobody.
        watchdog: Ends what hangs; None lets it hang.
    """
    if settings.replay is None:
        load, where = evaluator.workload, evaluator.provenance
        begun = begun_story(settings, space.summary(), load, where, store.name)
        reopen_story(settings.run_dir, begun)
    cls = strategies.get(settings.strategy)
    goal = settings.goal
    task = Task(
        space,
        goal,
        prompts=evaluator.prompt_count,
        chunk=evaluator.chunk,
        seed=settings.seed,
        sampler=settings.sampler or next(iter(cls.samplers), ""),
    )
    budget = Budget(settings.max_trials, settings.time_budget)
    with Progress(logger, len(space), goal, show_bar=show_bar) as progress:
        observers = Observers(progress, (tracking or Tracking({}, logger)).tell)
        return Search(evaluator, cls(task), store, goal, budget, observers, watchdog).run()


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
