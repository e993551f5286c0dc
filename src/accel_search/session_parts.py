"""What every session does, whether it searches or measures named settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from accel_search.core.candidate import Candidate
from accel_search.errors import first_line
from accel_search.report.console.progress import Progress
from accel_search.report.trackers.tracking import Tracking
from accel_search.search.evaluator import Evaluator
from accel_search.search.events import Observers
from accel_search.search.watchdog import Watchdog
from accel_search.settings import Settings
from accel_search.storage.answers import measured_as
from accel_search.storage.json_files import ensure_writable
from accel_search.storage.run_folder import pictures_path
from accel_search.storage.search_results import Values
from accel_search.storage.trials_db import TrialStore, default_url, study_name

if TYPE_CHECKING:
    from accel_search.runtime.measuring.evaluator import PipelineEvaluator


def going_on(settings: Settings, watchdog: Watchdog) -> Settings:
    """Return the settings without `force` in a process that was restarted after a hang."""
    return replace(settings, force=False) if watchdog.hangs else settings


def open_store(settings: Settings, evaluator: Evaluator, values: Values, what: str) -> TrialStore:
    """Open the study shared by all that measure the same; a replay's is in memory.

    Args:
        settings: The options.
        evaluator: Gives what is measured, where.
        values: Accelerator -> parameter -> values of the space; none of named settings.
        what: What is measured, for the description of the study, whose name is a digest.

    Raises:
        ConfigurationError: The storage cannot be opened.
    """
    if settings.replay is not None:
        return TrialStore(None, "replay", values)
    load, where = evaluator.workload, evaluator.provenance
    name = study_name(measured_as(settings, load, values, where))
    device = load.device if where is None else where.device_name
    about = (
        f"{load.pipeline}, {what}: {load.scheduler_class}, {load.steps} steps, {load.height} × "
        f"{load.width} pixels, batch size {load.batch_size}, {load.dtype}, {device}"
    )
    return TrialStore(storage_url(settings), name, values, fresh=settings.force, about=about)


def storage_url(settings: Settings) -> str:
    """Return the URL of the trials' database."""
    return settings.storage or default_url(settings.run_dir)


def say_what_few_steps_leave(
    settings: Settings, logger: logging.Logger, evaluator: Evaluator | None
) -> None:
    """Log what few UNet calls leave to gain, before gigabytes are loaded; raises as `check_gain`.

    A replay has its own trials; of a pipeline in memory the evaluator knows the calls.
    """
    if settings.replay is not None:
        return
    from accel_search.runtime.loading.expected import expected_workload
    from accel_search.search.few_steps import check_gain

    workload = expected_workload(settings) if evaluator is None else evaluator.workload
    for line in [] if workload is None else check_gain(settings, workload):
        logger.info("%s", line)


def ensure_results_writable(settings: Settings, output: str | None) -> None:
    """Check before measuring that the results can be written; `output` is None if that is not."""
    page = None if settings.report == "auto" else settings.report
    for path in (output, settings.trials_out, page, settings.export):
        if path is not None:
            ensure_writable(Path(path))


def clear_verdicts(settings: Settings) -> None:
    """Check that the files for a CI can be written, and remove those of an earlier run.

    Where this run ends in an error, a CI must not take an earlier verdict for its own.
    """
    for name in (settings.junit, settings.markdown):
        if name is not None:
            ensure_writable(Path(name))
            Path(name).unlink(missing_ok=True)


@contextmanager
def observed(
    settings: Settings, logger: logging.Logger, tracking: Tracking, total: int, *, show_bar: bool
) -> Iterator[Observers]:
    """Pass a search's events on to the console and the trackers for the length of the block."""
    with Progress(logger, total, settings.goal, show_bar=show_bar) as progress:
        yield Observers({"progress": progress, "trackers": tracking}, logger)


def make_pictures(
    settings: Settings,
    evaluator: Evaluator,
    shown: Mapping[str, Candidate],
    study: str,
    logger: logging.Logger,
) -> None:
    """Make the images that the report of a saved result shows, where the settings ask for any."""
    if not settings.pictured or settings.replay is not None:
        return
    from accel_search.runtime import pictures

    pipeline = cast("PipelineEvaluator", evaluator)
    folder = pictures_path(settings.run_dir, study)
    try:
        pictures.write_pictures(pipeline, shown, settings.pictured, folder, logger)
    except Exception as error:  # The result is saved, and worth more than its images.
        logger.warning(
            "no pictures (%s): the result is stored, the report is without them",
            first_line(error),
        )
