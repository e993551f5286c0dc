"""One search, from its settings to what it leaves on disk: for both programs and every worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from accel_search.cli.restart import RESUME, Carried, end, restart_process
from accel_search.cli.restart import carried as inherited
from accel_search.core.outcome import Outcome, SpeedBound
from accel_search.core.workload import Provenance, Workload, in_words
from accel_search.errors import AccelSearchError, NothingMeasured
from accel_search.report.console.progress import Progress
from accel_search.report.html.write import write_of
from accel_search.report.trackers.tracking import Tracking, tracked
from accel_search.search import strategies
from accel_search.search.evaluator import Evaluator
from accel_search.search.events import Observers
from accel_search.search.explain import of_bound, of_search
from accel_search.search.loop import Budget, Search
from accel_search.search.replay import open_replay, warn_of_ignored
from accel_search.search.space import JointSpace
from accel_search.search.speed_bound import SpeedBoundSearch
from accel_search.search.stored_evaluator import StoredEvaluator
from accel_search.search.strategies.base import Task
from accel_search.search.verification import Verification, check_stored, find_stored, verify
from accel_search.search.watchdog import Watchdog, restarting_watchdog
from accel_search.session_parts import (
    ensure_results_writable,
    going_on,
    make_pictures,
    observed,
    open_store,
    say_what_few_steps_leave,
)
from accel_search.settings import UPPER_BOUND, Settings
from accel_search.storage import search_results, speedup_bounds
from accel_search.storage.answers import stored_answer
from accel_search.storage.choice import WORKLOAD
from accel_search.storage.entries import BoundEntry, SearchEntry
from accel_search.storage.json_files import ensure_writable
from accel_search.storage.keys import search_key
from accel_search.storage.run import Run
from accel_search.storage.run_folder import (
    RunRecord,
    begun_record,
    ended_record,
    reopen_record,
    to_picture,
    write_record,
)
from accel_search.storage.run_reader import of_outcome, read_run
from accel_search.storage.trials_db import TrialStore
from accel_search.storage.trials_file import write_trials


@dataclass(frozen=True)
class Exploration:
    """The result of exploring one configuration."""

    key: str
    """Of `speedup_bounds.json`."""
    label: str
    """Distinguishes its model from others of the same pipeline class."""
    entry: BoundEntry
    is_gain: bool
    """Whether any candidate is faster than the baseline beyond the noise."""
    winner: SearchEntry | None
    """None where no candidate keeps the bound on the loss, or none was scored."""


def explore(
    settings: Settings,
    evaluator: Evaluator,
    logger: logging.Logger,
    *,
    show_bar: bool = False,
    watchdog: Watchdog | None = None,
    save: Callable[[Exploration], None] = lambda exploration: None,
) -> Exploration:
    """Search one configuration and find the fastest candidate of its space.

    Every trial is stored once measured; an interrupted exploration continues.

    Args:
        settings: The configuration, as a search's settings; `latency_only` scores nothing.
        evaluator: Measures candidates.
        logger: Receives a line per trial.
        show_bar: Whether a bar is drawn on standard error.
        watchdog: Ends a measurement that hangs; None waits for it.
        save: Writes the result, before any image is made.

    Raises:
        NothingMeasured: No candidate could be measured.
        AccelSearchError: As `Search.run` and `SpeedBoundSearch.run`.
    """
    space = JointSpace(settings.targets, evaluator.workload, settings.space)
    with _begun(settings, logger, evaluator, space, watchdog, show_bar) as session:
        StoredEvaluator(evaluator, session.store).share_baselines()
        searched = None if settings.latency_only else session.search()
        bound = session.bound_speed()
        outcome = None if searched is None else searched.outcome
        winner = None if searched is None else searched.entry
        entry = speedup_bounds.entry_of(
            settings,
            space.summary(),
            evaluator.provenance,
            session.store.name,
            bound,
            outcome,
            winner,
            of_bound(bound, space.targets, evaluator.provenance),
        )
        exploration = Exploration(
            key=search_key(
                evaluator.workload, UPPER_BOUND, settings.req_score_loss, settings.targets
            ),
            label=speedup_bounds.label_of(settings.pipe, settings.latency_only),
            entry=entry,
            is_gain=bound.is_gain,
            winner=winner,
        )
        save(exploration)
        session.finish(outcome)
        session.tracking.end(winner, outcome, (), entry)
    return exploration


def bound_speed(
    settings: Settings,
    logger: logging.Logger,
    watchdog: Watchdog,
    *,
    show_bar: bool,
    evaluator: Evaluator | None = None,
) -> Exploration:
    """Find the fastest candidate, whatever its quality, and write it to the file of bounds.

    Args:
        settings: The options.
        logger: Receives a line per trial.
        watchdog: Ends a measurement that hangs.
        show_bar: Whether a bar is drawn.
        evaluator: Of a pipeline in memory; None loads the settings' own.

    Raises:
        NothingMeasured: No candidate could be timed.
        AccelSearchError: As `explore`.
    """
    path = Path(settings.bounds)
    ensure_writable(path)
    say_what_few_steps_leave(settings, logger, evaluator)
    return explore(
        going_on(settings, watchdog),
        open_evaluator(settings, logger, evaluator)[0],
        logger,
        show_bar=show_bar,
        watchdog=watchdog,
        save=lambda bound: speedup_bounds.save(path, bound.key, bound.label, bound.entry),
    )


@dataclass(frozen=True)
class Searched:
    """The result of a search."""

    workload: Workload
    entry: SearchEntry | None
    """Its result; None where nothing is within the goal."""
    space: JointSpace
    outcome: Outcome | None = None
    """None where an earlier search's result answers."""
    no_gain: str | None = None
    """Explains targets that gain nothing."""
    record: RunRecord = field(default_factory=RunRecord)
    run: Run | None = None
    """What a report shows; None where an earlier search's result answers."""
    written: Sequence[Path] = ()
    """The requested page and script."""


def search(
    settings: Settings,
    logger: logging.Logger,
    watchdog: Watchdog,
    *,
    show_bar: bool,
    evaluator: Evaluator | None = None,
) -> Searched:
    """Answer from the result file, or search and write what the settings request.

    The arguments are those of `bound_speed`.

    Raises:
        AccelSearchError: As `Search.run`; or a file cannot be written.
    """
    say_what_few_steps_leave(settings, logger, evaluator)
    evaluator, space = open_evaluator(settings, logger, evaluator)
    if not settings.force and settings.replay is None:
        entry = _stored_here(settings, logger, evaluator, space)
        if entry is not None:
            return Searched(evaluator.workload, entry, space)
    ensure_results_writable(settings, None if settings.replay is not None else settings.output)
    resumed = going_on(settings, watchdog)
    with _begun(resumed, logger, evaluator, space, watchdog, show_bar) as session:
        searched = session.search(settings.output)
        outcome, store = searched.outcome, session.store
        assert outcome is not None
        session.finish(outcome)
        run_dir = None if settings.replay is not None else settings.run_dir
        run = of_outcome(outcome, searched.record, store.extras(), run_dir)
        written = write_of(run, settings)
        stored = [settings.output] if searched.entry and settings.replay is None else []
        files = [Path(file) for file in (*stored, settings.trials_out) if file is not None]
        session.tracking.end(searched.entry, outcome, [*files, *written])
    return replace(searched, run=run, written=written)


def report_on_stored(
    settings: Settings, logger: logging.Logger, entry: SearchEntry
) -> Sequence[Path]:
    """Report on an earlier search's run folder; return the files written."""
    if settings.trials_out is not None:
        is_there = Path(settings.trials_out).exists()
        logger.log(
            logging.INFO if is_there else logging.WARNING,
            "--trials_out %s: %s, since a stored result answers; --force searches again",
            settings.trials_out,
            "left as it is" if is_there else "not written",
        )
    if settings.report is None and settings.export is None:
        return ()
    try:
        study = entry.evidence.study or None
        run = read_run(Path(settings.run_dir), study, storage=settings.storage)
    except AccelSearchError as error:  # The run folder may be gone.
        logger.warning("nothing to report on (%s): --force searches again", error)
        return ()
    return write_of(run, settings)


def verify_stored(
    settings: Settings,
    logger: logging.Logger,
    watchdog: Watchdog,
    *,
    show_bar: bool,
    evaluator: Evaluator | None = None,
) -> Verification:
    """Measure a stored result again; nothing is written.

    The arguments are those of `bound_speed`.

    Raises:
        AccelSearchError: As `find_stored` and `verify`.
    """
    check_stored(settings)
    evaluator, _ = open_evaluator(settings, logger, evaluator)
    stored = find_stored(settings, evaluator.workload, evaluator.provenance)
    with Progress(logger, 1, settings.goal, show_bar=show_bar) as progress:
        measuring = StoredEvaluator(evaluator, None, watchdog)
        progress.on_baseline(measuring.baseline())
        progress.on_start(stored.candidate)
        return verify(stored, evaluator, measuring)


def open_evaluator(
    settings: Settings, logger: logging.Logger, evaluator: Evaluator | None = None
) -> tuple[Evaluator, JointSpace]:
    """Return the evaluator, of a pipeline or of recorded trials, and the space to search.

    One that is given, of a pipeline in memory, is taken.
    """
    if settings.replay is not None:
        replay, space = open_replay(Path(settings.replay), settings.targets, settings.goal)
        warn_of_ignored(settings, replay, logger)
        return replay, space
    if evaluator is None:
        from accel_search.runtime import workbench

        evaluator = workbench.open_evaluator(settings, logger)
    return evaluator, JointSpace(settings.targets, evaluator.workload, settings.space)


def open_watchdog(settings: Settings, logger: logging.Logger) -> Watchdog:
    """Return the watchdog that restarts this process after a hang, or ends it with one line.

    It starts from the counts of the processes that hung before this one.
    """
    log = settings.log_file

    def restart(message: str, carried: Carried) -> NoReturn:
        logger.warning("%s: %s shows where it hung; restarting without it", message, log)
        restart_process(carried)

    return restarting_watchdog(
        settings,
        inherited(),
        Path(log).open("a", encoding="utf-8"),
        log,
        restart,
        lambda message: end(f"accel-search: error: {message}; {RESUME}"),
    )


@contextmanager
def _begun(
    settings: Settings,
    logger: logging.Logger,
    evaluator: Evaluator,
    space: JointSpace,
    watchdog: Watchdog | None,
    show_bar: bool,
) -> Iterator[Session]:
    """Open the store and the trackers for the length of a `with` block."""
    store = open_store(settings, evaluator, space.values(), " + ".join(space.targets))
    load, where = evaluator.workload, evaluator.provenance
    with tracked(settings, load, where, store.name, logger) as tracking:
        yield Session(
            settings, logger, evaluator, space, store, tracking, where, watchdog, show_bar
        )


@dataclass(frozen=True)
class Session:
    """A search in progress; its order: run, save, make images, finish."""

    settings: Settings
    logger: logging.Logger
    evaluator: Evaluator
    space: JointSpace
    store: TrialStore
    tracking: Tracking
    provenance: Provenance | None
    """At the requested batch size."""
    watchdog: Watchdog | None = None
    """None waits for a candidate that hangs."""
    show_bar: bool = False

    def run(self) -> Outcome:
        """Run the search."""
        settings, space, evaluator = self.settings, self.space, self.evaluator
        if settings.replay is None:
            load, where = evaluator.workload, evaluator.provenance
            begun = begun_record(settings, space.summary(), load, where, self.store.name)
            reopen_record(settings.run_dir, begun)
        cls = strategies.get(settings.strategy)
        task = Task(
            space,
            settings.goal,
            prompts=evaluator.prompt_count,
            chunk=evaluator.chunk,
            seed=settings.seed,
            sampler=settings.sampler or next(iter(cls.samplers), ""),
        )
        budget = Budget(settings.max_trials, settings.time_budget)
        with self._observed() as observers:
            return Search(
                evaluator, cls(task), self.store, task.goal, budget, observers, self.watchdog
            ).run()

    def _observed(self) -> AbstractContextManager[Observers]:
        parts = (self.settings, self.logger, self.tracking, len(self.space))
        return observed(*parts, show_bar=self.show_bar)

    def search(self, output: str | None = None) -> Searched:
        """Search, and save the result in a file, if one is named, and in the run folder.

        A replay, which measures nothing, writes to neither.
        """
        settings, space, store = self.settings, self.space, self.store
        outcome = self.run()
        load, where = self.evaluator.workload, self.provenance
        if settings.trials_out is not None:
            trials = [tested.trial for tested in outcome.trials]
            extra = store.extras()
            path = Path(settings.trials_out)
            write_trials(path, space.coinciding, load, outcome.baseline, trials, extra)
        entry, no_gain = None, of_search(outcome, space, where)
        if outcome.winner is not None:
            parts = (outcome, settings, space.summary(), load, where, store.name, no_gain)
            entry = search_results.entry_of(*parts)
            if output is not None and settings.replay is None:
                keys = search_results.save(Path(output), load, settings, entry)
                self.logger.debug("written to %s under %s", output, " and ".join(keys))
        where = self.evaluator.provenance
        record = ended_record(outcome, settings, space.summary(), load, where, store.name, no_gain)
        if settings.replay is None:
            write_record(settings.run_dir, record)
        return Searched(load, entry, space, outcome, no_gain, record)

    def bound_speed(self) -> SpeedBound:
        """Find the fastest candidate, whatever its quality."""
        settings = self.settings
        pairs = 1 if settings.latency_only else self.evaluator.pairs
        with self._observed() as observers:
            parts = (self.evaluator, self.space, self.store, observers)
            timing = SpeedBoundSearch(*parts, pairs, self.watchdog, settings.max_trials)
            try:
                return timing.run()
            except NothingMeasured:  # The search has ended: --force tries the failed ones again.
                self.store.finish()
                raise

    def finish(self, outcome: Outcome | None) -> None:
        """Make the images of a saved result, and mark the search as ended."""
        if outcome is not None:
            shown = to_picture(outcome, self.settings.goal)
            parts = (self.settings, self.evaluator, shown, self.store.name, self.logger)
            make_pictures(*parts)
        self.store.finish()


def _stored_here(
    settings: Settings, logger: logging.Logger, evaluator: Evaluator, space: JointSpace
) -> SearchEntry | None:
    """Return the result of an earlier search on this machine, if there is one."""
    entry, differences = stored_answer(
        Path(settings.output), evaluator.workload, settings, space.values(), evaluator.provenance
    )
    if entry is None and differences:
        named = in_words(differences)
        if set(differences) <= set(WORKLOAD):
            logger.info(
                "%s holds results of other %s; this one is searched", settings.output, named
            )
        else:
            logger.warning(
                "%s holds such a result, but measured elsewhere (other %s); searching here "
                "(--verify measures that one again instead)",
                settings.output,
                named,
            )
    return entry
