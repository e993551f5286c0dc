"""One study, opened and run as the settings say."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

from accel_search.core.outcome import Outcome
from accel_search.core.workload import Provenance, Workload
from accel_search.report.console.progress import Progress
from accel_search.report.trackers.tracking import Tracking
from accel_search.search import strategies
from accel_search.search.evaluator import Evaluator
from accel_search.search.events import Observers
from accel_search.search.loop import Budget, Search
from accel_search.search.space import JointSpace
from accel_search.search.strategies.base import Task
from accel_search.search.watchdog import Watchdog
from accel_search.settings import Settings
from accel_search.storage.run_folder import (
    begun_story,
    pictures_path,
    reopen_story,
    story_of,
    to_picture,
    write_story,
)
from accel_search.storage.trials_db import TrialStore, default_url, study_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def open_store(settings: Settings, evaluator: Evaluator, space: JointSpace) -> TrialStore:
    """Open the study of all searches that measure the same thing; a replay's is in memory.

    Raises:
        ConfigurationError: The storage cannot be opened.
    """
    values = space.values()
    if settings.replay is not None:
        return TrialStore(None, "replay", values)
    provenance = evaluator.provenance
    identity: Mapping[str, object] = {
        "workload": asdict(evaluator.workload),
        "provenance": None if provenance is None else provenance.identity(),
        "timing_pairs": settings.timing_pairs,
        "values": values,
    }
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
