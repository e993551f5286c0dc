"""Entry of `accel-search`: parse, wire, exit code."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_search.cli.program import run_program
from accel_search.errors import (
    AccelSearchError,
    ConfigurationError,
    ExitCode,
    NothingMeasured,
)
from accel_search.report import trackers
from accel_search.search import strategies
from accel_search.settings import Settings, from_command_line, search_parser

if TYPE_CHECKING:
    from accel_search.core.outcome import Outcome
    from accel_search.core.workload import Workload
    from accel_search.search.evaluator import Evaluator
    from accel_search.search.space import JointSpace
    from accel_search.search.watchdog import Watchdog
    from accel_search.storage.trials_db import TrialStore

DESCRIPTION = (
    "Find the fastest settings of DeepCache, ToMe and T-GATE for a Stable Diffusion pipeline "
    "that lose at most a stated part of its CLIP score, measured on this machine."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `accel-search` and return its exit code; every user error is one line.

    Args:
        arguments: Of a call within another program, whose process is its own: what hangs is left
            alone there. None takes the process's arguments, and may begin it anew.
    """
    from accel_search import __version__

    return run_program(
        "accel-search",
        lambda: from_command_line(
            search_parser(
                "accel-search", DESCRIPTION, __version__, {"strategy": strategies.all_strategies}
            ),
            arguments,
        ),
        lambda settings: run(settings, is_program=arguments is None),
        lambda settings: settings.log_level,
        "run the same command again to resume",
    )


def run(settings: Settings, *, is_program: bool = False) -> int:
    """Carry out one search as the settings say, and return the exit code.

    Args:
        settings: What is asked for.
        is_program: Whether the process is ours, to be begun anew where a candidate hangs in it.
    """
    from accel_search.report.console.color import takes_colour
    from accel_search.report.console.summary import snippet, summary
    from accel_search.report.trackers.tracking import tracked
    from accel_search.search.explain import of_search
    from accel_search.search.watchdog import Watchdog
    from accel_search.session import keep, open_store, run_search
    from accel_search.storage import search_results

    strategies.check(settings.strategy, settings.sampler)
    trackers.check(settings)
    logger = _set_up_logging(settings)
    is_watched = is_program and settings.replay is None
    watchdog = _watchdog(settings, logger) if is_watched else Watchdog()
    if settings.verify:
        return _verify(settings, logger, watchdog)
    if settings.latency_only:
        return _bound_speed(settings, logger, watchdog)
    evaluator, space = _open(settings, logger)
    output = Path(settings.output)
    if not settings.force and settings.replay is None:
        entry = _stored_here(settings, logger, evaluator, space)
        if entry is not None:
            return _answer_from(entry, settings, logger, evaluator.workload)
    _ensure_writable(settings)
    store = open_store(_going_on(settings, watchdog), evaluator, space)
    provenance = evaluator.provenance
    with tracked(settings, evaluator.workload, provenance, store.name, logger) as tracking:
        show_bar = _has_bar(settings)
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
        if settings.trials_out is not None:
            _write_trials(settings.trials_out, space, evaluator, outcome, store)
        entry, no_gain = None, of_search(outcome, space, provenance)
        if outcome.winner is not None:
            entry = search_results.entry_of(
                outcome, settings, space.summary(), provenance, store.name, no_gain
            )
            if settings.replay is None:
                keys = search_results.save(output, evaluator.workload, settings, entry)
                logger.debug("written to %s under %s", output, " and ".join(keys))
        # The result is safe before pictures are made, which may fail in ways of their own.
        story = keep(settings, logger, evaluator, space, store, outcome, no_gain)
        store.finish()
        written = _write_report(settings, outcome, story, store)
        stored = [output] if entry is not None and settings.replay is None else []
        trials = [] if settings.trials_out is None else [Path(settings.trials_out)]
        tracking.end(entry, outcome, [*stored, *trials, *written])
    if settings.json:
        nothing = {"speedup": None, "stopped": outcome.stopped, "no_gain": no_gain}
        print(json.dumps(entry or nothing, allow_nan=False))
    else:
        use = [] if entry is None else snippet(entry, settings, evaluator.workload)
        colour = takes_colour(sys.stdout)
        print("\n" + summary(outcome, settings, space, use=use, no_gain=no_gain, colour=colour))
    _say_written(written, settings)
    return ExitCode.NOTHING_FOUND if entry is None else ExitCode.DONE


def _stored_here(
    settings: Settings, logger: logging.Logger, evaluator: Evaluator, space: JointSpace
) -> dict[str, Any] | None:
    """Return the result that an earlier search stored; None if none did, or only elsewhere."""
    from accel_search.storage.answers import stored_answer

    entry, differences = stored_answer(
        Path(settings.output), evaluator.workload, settings, space.values(), evaluator.provenance
    )
    if entry is None and differences:
        logger.warning(
            "%s holds such a result, but measured elsewhere (other %s); searching here "
            "(--verify measures that one again instead)",
            settings.output,
            ", ".join(differences),
        )
    return entry


def _ensure_writable(settings: Settings) -> None:
    """Find out before anything is measured whether its result can be written."""
    from accel_search.storage.json_files import ensure_writable

    page = None if settings.report == "auto" else settings.report
    output = None if settings.replay is not None else settings.output
    for path in (output, settings.trials_out, page, settings.export):
        if path is not None:
            ensure_writable(Path(path))


def _set_up_logging(settings: Settings) -> logging.Logger:
    """Send the search's lines and the package's warnings to the log file and the console."""
    from accel_search.cli.logging_utils import setup_logger

    console = not (settings.json or settings.quiet)
    try:
        # The package's own modules log under its name; both write to one file.
        setup_logger("accel_search", settings.log_file, settings.log_level, console=console)
        return setup_logger(
            "traversal_search", settings.log_file, settings.log_level, console=console
        )
    except OSError as error:
        raise ConfigurationError(
            f"--log_file {settings.log_file}: cannot be written: {error.strerror}"
        ) from error


def _watchdog(settings: Settings, logger: logging.Logger) -> Watchdog:
    """Return what begins this process anew where a candidate hangs, and ends it where nothing can.

    It goes on from what a process that hung before this one has left to it.
    """
    from accel_search.cli import restart
    from accel_search.search.watchdog import Watchdog, beginning_anew

    hangs, spent = restart.carried()
    return Watchdog(
        settings.trial_timeout,
        beginning_anew(logger, settings.log_file, hangs, "accel-search"),
        Path(settings.log_file).open("a", encoding="utf-8"),
        compiled=settings.compile,
        hangs=hangs,
        spent=spent,
    )


def _going_on(settings: Settings, watchdog: Watchdog) -> Settings:
    """Return the settings of this process: one that began anew goes on, also under --force."""
    return replace(settings, force=False) if watchdog.hangs else settings


def _open(settings: Settings, logger: logging.Logger) -> tuple[Evaluator, JointSpace]:
    """Return what measures, a pipeline or a file of recorded trials, and the space searched."""
    from accel_search.search.space import JointSpace

    if settings.replay is not None:
        from accel_search.search.replay import open_replay

        return open_replay(Path(settings.replay), settings.targets, settings.goal)
    from accel_search.runtime.workbench import open_evaluator

    evaluator = open_evaluator(settings, logger)
    return evaluator, JointSpace(settings.targets, evaluator.workload, settings.space)


def _bound_speed(settings: Settings, logger: logging.Logger, watchdog: Watchdog) -> int:
    """Find the fastest candidate, quality aside, and return the exit code."""
    from accel_search.report.console.summary import bound_summary, nothing_timed
    from accel_search.runtime.workbench import open_evaluator
    from accel_search.session import explore
    from accel_search.storage.json_files import ensure_writable
    from accel_search.storage.speedup_bounds import save

    ensure_writable(Path(settings.bounds))
    try:
        found = explore(
            _going_on(settings, watchdog),
            open_evaluator(settings, logger),
            logger,
            show_bar=_has_bar(settings),
            watchdog=watchdog,
        )
    except NothingMeasured as error:
        nothing = {"measured_max_speedup": None, "stopped": str(error)}
        print(json.dumps(nothing) if settings.json else f"\n{nothing_timed(error)}")
        return ExitCode.NOTHING_FOUND
    save(Path(settings.bounds), found.key, found.label, found.entry)
    if settings.json:
        print(json.dumps(found.entry, allow_nan=False))
    else:
        print("\n" + bound_summary(found.entry, settings))
    return ExitCode.DONE if found.is_gain else ExitCode.NOTHING_FOUND


def _verify(settings: Settings, logger: logging.Logger, watchdog: Watchdog) -> int:
    """Measure a stored result again, say whether it holds, and return the exit code."""
    from accel_search.report.console.color import takes_colour
    from accel_search.report.console.progress import Progress
    from accel_search.report.console.verification import verified_json, verified_text
    from accel_search.search.verification import bare, check_stored, find_stored, verify

    check_stored(settings)
    evaluator, _ = _open(settings, logger)
    stored = find_stored(settings, evaluator.workload, evaluator.provenance)
    with Progress(logger, 1, settings.goal, show_bar=_has_bar(settings)) as progress:
        with watchdog.over(None, evaluator.prompt_count):
            baseline = bare(evaluator)
        watchdog.learn(baseline)
        progress.on_baseline(baseline)
        progress.on_start(stored.candidate)
        with watchdog.over(stored.candidate, evaluator.prompt_count):
            found = verify(stored, evaluator, baseline)
    if settings.json:
        print(json.dumps(verified_json(found), allow_nan=False))
    else:
        print("\n" + verified_text(found, settings, colour=takes_colour(sys.stdout)))
    return {
        "pass": ExitCode.DONE,
        "fail": ExitCode.NOTHING_FOUND,
        "inconclusive": ExitCode.INCONCLUSIVE,
    }[found.verdict]


def _has_bar(settings: Settings) -> bool:
    return sys.stderr.isatty() and not (settings.json or settings.quiet)


def _write_trials(
    path: str, space: JointSpace, evaluator: Evaluator, outcome: Outcome, store: TrialStore
) -> None:
    from accel_search.storage.trials_file import write_trials

    write_trials(
        Path(path),
        space.coinciding,
        evaluator.workload,
        outcome.baseline,
        [each.trial for each in outcome.trials],
        store.remembered(),
    )


def _write_report(
    settings: Settings, outcome: Outcome, story: dict[str, Any], store: TrialStore
) -> Sequence[Path]:
    """Write the page and the script that were asked for, and return what was written."""
    if settings.report is None and settings.export is None:
        return ()
    from accel_search.report.html.write import write_of
    from accel_search.storage.run_reader import of_outcome

    run_dir = None if settings.replay is not None else settings.run_dir
    return write_of(of_outcome(outcome, story, store.remembered(), run_dir), settings)


def _answer_from(
    entry: dict[str, Any], settings: Settings, logger: logging.Logger, workload: Workload
) -> int:
    """Answer from a finished search's result, and report on what it left in the run folder."""
    from accel_search.report.console.summary import snippet, stored_summary

    if settings.json:
        print(json.dumps(entry, allow_nan=False))
    else:
        print(stored_summary(entry, settings, snippet(entry, settings, workload)))
    if settings.trials_out is not None:
        is_there = Path(settings.trials_out).exists()
        logger.log(
            logging.INFO if is_there else logging.WARNING,
            "--trials_out %s: %s, since a stored result answers; --force searches again",
            settings.trials_out,
            "left as it is" if is_there else "not written",
        )
    if settings.report is not None or settings.export is not None:
        from accel_search.report.html.write import write_of
        from accel_search.storage.run_reader import read_run

        study = (entry.get("evidence") or {}).get("study")
        try:
            found = read_run(Path(settings.run_dir), study, storage=settings.storage)
        except AccelSearchError as error:  # The result may be all that is left of that run.
            logger.warning("nothing to report on (%s): --force searches again", error)
            return ExitCode.DONE
        _say_written(write_of(found, settings), settings)
    return ExitCode.DONE


def _say_written(files: Sequence[Path], settings: Settings) -> None:
    if files and not settings.json:
        print("".join(f"\nWritten: {path}" for path in files))


if __name__ == "__main__":
    sys.exit(main())
