"""The settings that a user names (`--candidate`), measured: from settings to what is on disk."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accel_search.core import extras
from accel_search.core.assessment import assess
from accel_search.core.candidate import Candidate
from accel_search.core.named import NamedOutcome
from accel_search.core.trial import Measurement, Trial
from accel_search.core.workload import Provenance, Workload
from accel_search.errors import ConfigurationError
from accel_search.report.html.write import write_of
from accel_search.report.trackers.tracking import tracked
from accel_search.search.evaluator import Evaluator
from accel_search.search.named import NamedRun, NamedSpace
from accel_search.search.replay import open_named_replay, warn_of_ignored
from accel_search.search.space import JointSpace
from accel_search.search.stored_evaluator import StoredEvaluator
from accel_search.search.watchdog import Watchdog
from accel_search.session_parts import (
    ensure_results_writable,
    going_on,
    make_pictures,
    observed,
    open_store,
    storage_url,
)
from accel_search.settings import NAMED, Settings
from accel_search.storage.answers import measured_as
from accel_search.storage.run import Run
from accel_search.storage.run_folder import (
    RunRecord,
    begun_record,
    ended_record,
    reopen_record,
    write_record,
)
from accel_search.storage.run_reader import of_outcome
from accel_search.storage.trials_db import (
    TrialStore,
    read_study,
    study_name,
    study_names,
)
from accel_search.storage.trials_file import write_trials


@dataclass(frozen=True)
class Measured:
    """The result of measuring named settings."""

    outcome: NamedOutcome
    workload: Workload
    provenance: Provenance | None
    """None for recorded trials."""
    study: str
    run: Run
    """What a report shows."""
    written: Sequence[Path]
    """The requested files."""


def measure_named(
    settings: Settings,
    logger: logging.Logger,
    watchdog: Watchdog,
    *,
    show_bar: bool,
    evaluator: Evaluator | None = None,
) -> Measured:
    """Measure the named candidates and write what the settings request.

    The result file is neither read nor written: what someone names is not what a search found.
    The arguments are those of `session.bound_speed`.

    Raises:
        AccelSearchError: As `NamedRun.run`; a candidate is not possible; a file cannot be written.
    """
    settings = replace(going_on(settings, watchdog), strategy=NAMED)
    ensure_results_writable(settings, None)
    evaluator, space = _opened(settings, logger, evaluator)
    _say_what_coincides(settings, space, logger)
    load, where = evaluator.workload, evaluator.provenance
    # No search is over a space without values: theirs are other studies.
    store = open_store(settings, evaluator, {}, "named settings")
    if settings.replay is None and not settings.force:
        _adopt(settings, evaluator, space, store)
    with tracked(settings, load, where, store.name, logger) as tracking:
        if settings.replay is None:
            begun = begun_record(settings, space.summary(), load, where, store.name)
            reopen_record(settings.run_dir, _without_output(begun))
        measuring = StoredEvaluator(evaluator, store, watchdog)
        with observed(settings, logger, tracking, len(space), show_bar=show_bar) as observers:
            parts = (evaluator, measuring, space, store, settings.goal, observers)
            named = NamedRun(*parts).run()
        outcome, written = named.outcome, []
        if settings.trials_out is not None:
            written.append(Path(settings.trials_out))
            trials = [assessed.trial for assessed in outcome.trials]
            parts_of_file = (evaluator.workload, outcome.baseline, trials, store.extras())
            write_trials(written[0], space.coinciding, *parts_of_file)
        where = evaluator.provenance
        parts_of_record = (settings, space.summary(), load, where, store.name, None)
        record = _without_output(ended_record(outcome, *parts_of_record))
        if settings.replay is None:
            write_record(settings.run_dir, record)
        make_pictures(settings, evaluator, _to_picture(named), store.name, logger)
        store.finish()
        run_dir = None if settings.replay is not None else settings.run_dir
        run = of_outcome(outcome, record, store.extras(), run_dir)
        written += write_of(run, settings)
        tracking.end(None, outcome, written)
    return Measured(named, load, where, store.name, run, written)


def _opened(
    settings: Settings, logger: logging.Logger, evaluator: Evaluator | None
) -> tuple[Evaluator, NamedSpace]:
    """Return the evaluator, of a pipeline or of recorded trials, and the space of candidates."""
    if settings.replay is not None:
        replay, space = open_named_replay(Path(settings.replay), settings.candidate, settings.goal)
        warn_of_ignored(settings, replay, logger)
        return replay, space
    if evaluator is None:
        from accel_search.runtime import workbench

        evaluator = workbench.open_evaluator(settings, logger)
    return evaluator, NamedSpace(settings.candidate, evaluator.workload)


def _say_what_coincides(settings: Settings, space: NamedSpace, logger: logging.Logger) -> None:
    for candidate, count in Counter(settings.candidate).items():
        if count > 1:
            logger.info("%s is named %d times and measured once", candidate, count)
    for first, *others in space.distinct:
        for other in others:
            logger.info("%s is the same computation as %s here: measured once", other, first)
    for name in ("max_trials", "time_budget"):
        if getattr(settings, name) is not None:
            logger.warning("--%s: ignored, all named candidates are measured", name)


def _adopt(settings: Settings, evaluator: Evaluator, space: NamedSpace, store: TrialStore) -> None:
    """Copy what searches have measured of the candidates, with the baselines beside it."""
    known = {space.key(trial.candidate) for trial in store.trials()}
    wanted = {space.key(first): first for first, *_ in space.distinct}
    for trials, beside in _searches(settings, evaluator, space):
        for trial in trials:
            key, measured = space.key(trial.candidate), trial.measurement
            if key not in wanted or key in known or measured is None:
                continue
            name = extras.baseline("search", measured.batch_size)
            baseline = beside.get(name)
            if baseline is None or len(measured.scores) < len(baseline.scores):
                continue  # It was given up at an early stage.
            if store.load_extra(name) is None:
                store.save_extra(name, baseline)
            bound = settings.req_score_loss
            store.add(Trial(wanted[key], measured), assess(measured, baseline, bound), bound)
            known.add(key)


def _searches(
    settings: Settings, evaluator: Evaluator, space: NamedSpace
) -> Iterator[tuple[list[Trial], Mapping[str, Measurement]]]:
    """Yield the trials and extra measurements of searches of the same, by the candidates' targets.

    Raises:
        ConfigurationError: The storage cannot be read.
    """
    url = storage_url(settings)
    for targets in {tuple(candidate) for group in space.distinct for candidate in group}:
        try:
            values = JointSpace(targets, evaluator.workload, settings.space).values()
        except ConfigurationError:
            continue  # No search of them is possible here.
        identity = measured_as(settings, evaluator.workload, values, evaluator.provenance)
        prefix = f"{study_name(identity)}-run"
        try:
            runs = [name for name in study_names(url) if name.startswith(prefix)]
            if runs:
                yield read_study(url, max(runs, key=lambda name: int(name.removeprefix(prefix))))
        except Exception as error:  # Any database driver may raise its own.
            raise ConfigurationError(f"--storage {url}: cannot be read: {error}") from error


def _without_output(record: RunRecord) -> RunRecord:
    """Return a record that does not say that the result is in the result file."""
    assert record.asked is not None
    return replace(record, asked=replace(record.asked, output=None))


def _to_picture(named: NamedOutcome) -> dict[str, Candidate]:
    """Return the candidates to show side by side, by their part."""
    winner = named.outcome.winner
    shown = {"baseline": Candidate()}
    for number, one in enumerate(named.named, 1):
        part = "winner" if one.assessed is winner and len(named.named) == 1 else f"named-{number}"
        shown[part] = one.candidate
    return shown
