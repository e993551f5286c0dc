"""Entry of `accel-search`: parse, wire, exit code."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accel_search.cli.program import run_program
from accel_search.core.packages import check_packages
from accel_search.errors import (
    ConfigurationError,
    ExitCode,
    NothingMeasured,
)
from accel_search.report import trackers
from accel_search.search import strategies
from accel_search.settings import Settings, from_command_line, search_parser

if TYPE_CHECKING:
    from accel_search.search.watchdog import Watchdog
    from accel_search.session import Searched

OF_VERDICT = {
    "pass": ExitCode.DONE,
    "fail": ExitCode.NOTHING_FOUND,
    "inconclusive": ExitCode.INCONCLUSIVE,
}
"""Verdict on settings that were chosen before -> exit code."""
DESCRIPTION = (
    "Find the fastest settings of DeepCache, ToMe and T-GATE for a Stable Diffusion pipeline "
    "that lose at most a stated part of its CLIP score, measured on this machine."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `accel-search` and return its exit code; every user error is one line.

    Args:
        arguments: Those of a call within another program, whose process is never restarted. None
            takes the process's arguments, and restarts it after a candidate has hung.
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
    """Run one search and return the exit code.

    Args:
        settings: The options.
        is_program: Whether the process may be restarted after a candidate has hung.
    """
    if settings.list:
        return _list(settings)
    check_packages("accel-search")
    from accel_search import session
    from accel_search.runtime.loading.lora.files import check_loras
    from accel_search.runtime.loading.prompts import check_prompts
    from accel_search.runtime.loading.single_file.load import check_file
    from accel_search.search.watchdog import Watchdog
    from accel_search.session_parts import clear_verdicts

    strategies.check(settings.strategy, settings.sampler)
    trackers.check(settings)
    check_file(settings, check_prompts(settings))
    check_loras(settings)
    logger = _set_up_logging(settings)
    is_watched = is_program and settings.replay is None
    watchdog = session.open_watchdog(settings, logger) if is_watched else Watchdog()
    clear_verdicts(settings)
    if settings.verify:
        return _verify(settings, logger, watchdog)
    if settings.candidate:
        return _measure_named(settings, logger, watchdog)
    if settings.latency_only:
        return _bound_speed(settings, logger, watchdog)
    return _search(settings, logger, watchdog)


def _search(settings: Settings, logger: logging.Logger, watchdog: Watchdog) -> int:
    """Search, or answer from the result file, print that, and return the exit code."""
    from accel_search import session
    from accel_search.report import ci
    from accel_search.report.console.color import takes_colour
    from accel_search.report.console.summary import snippet, summary
    from accel_search.search.explain import nothing_found

    try:
        searched = session.search(settings, logger, watchdog, show_bar=_has_bar(settings))
    except NothingMeasured as error:
        return _nothing_to_search(str(error), settings)
    outcome, entry, no_gain = searched.outcome, searched.entry, searched.no_gain
    if outcome is None:
        return _answer_from(searched, settings, logger)
    if settings.json:
        document = entry.as_dict() if entry else nothing_found(outcome, settings.goal, no_gain)
        print(json.dumps(document, allow_nan=False))
    else:
        use = [] if entry is None else snippet(entry, settings, searched.workload)
        colour = takes_colour(sys.stdout)
        text = summary(outcome, settings, searched.space, use=use, no_gain=no_gain, colour=colour)
        print(f"\n{text}")
    note = f"No candidate meets the goal: {outcome.stopped}." if entry is None else ""
    checks = ci.of_search(entry, settings, searched.record.provenance, note)
    _print_written([*searched.written, *ci.write(checks, settings)], settings)
    return ExitCode.NOTHING_FOUND if entry is None else ExitCode.DONE


def _nothing_to_search(why: str, settings: Settings) -> int:
    """Print that no candidate changes anything, and return the exit code."""
    from accel_search.report import ci

    if settings.json:
        print(json.dumps({"speedup": None, "stopped": why}))
    else:
        print(f"\nNothing to search: {why}.")
    checks = ci.of_search(None, settings, None, f"Nothing to search: {why}.")
    _print_written(ci.write(checks, settings), settings)
    return ExitCode.NOTHING_FOUND


def _list(settings: Settings) -> int:
    """Print what the result file holds, and return the exit code."""
    from accel_search.report.console.listing import as_json, listing, stored_in

    path = Path(settings.output)
    stored = stored_in(path)
    print(json.dumps(as_json(stored), allow_nan=False) if settings.json else listing(stored, path))
    return ExitCode.DONE if stored else ExitCode.NOTHING_FOUND


def _answer_from(searched: Searched, settings: Settings, logger: logging.Logger) -> int:
    """Print an earlier search's result, and report on its run folder."""
    from accel_search.report import ci
    from accel_search.report.console.summary import snippet, stored_summary
    from accel_search.session import report_on_stored

    entry = searched.entry
    assert entry is not None
    if settings.json:
        print(json.dumps(entry.as_dict(), allow_nan=False))
    else:
        print(stored_summary(entry, settings, snippet(entry, settings, searched.workload)))
    note = f"{settings.output} holds this result; --verify measures it again."
    files = ci.write(ci.of_search(entry, settings, entry.provenance, note), settings)
    _print_written([*report_on_stored(settings, logger, entry), *files], settings)
    return ExitCode.DONE


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


def _bound_speed(settings: Settings, logger: logging.Logger, watchdog: Watchdog) -> int:
    """Find the fastest candidate, whatever its quality, and return the exit code."""
    from accel_search import session
    from accel_search.report.console.summary import bound_summary, nothing_timed

    try:
        explored = session.bound_speed(settings, logger, watchdog, show_bar=_has_bar(settings))
    except NothingMeasured as error:
        nothing = {"measured_max_speedup": None, "stopped": str(error)}
        print(json.dumps(nothing) if settings.json else f"\n{nothing_timed(error)}")
        return ExitCode.NOTHING_FOUND
    if settings.json:
        print(json.dumps(explored.entry.as_dict(), allow_nan=False))
    else:
        print("\n" + bound_summary(explored.entry, settings))
    return ExitCode.DONE if explored.is_gain else ExitCode.NOTHING_FOUND


def _verify(settings: Settings, logger: logging.Logger, watchdog: Watchdog) -> int:
    """Measure a stored result again, print whether it holds, and return the exit code."""
    from accel_search import session
    from accel_search.report import ci
    from accel_search.report.console.color import takes_colour
    from accel_search.report.console.verification import verified_json, verified_text

    verification = session.verify_stored(settings, logger, watchdog, show_bar=_has_bar(settings))
    if settings.json:
        print(json.dumps(verified_json(verification), allow_nan=False))
    else:
        print("\n" + verified_text(verification, settings, colour=takes_colour(sys.stdout)))
    _print_written(ci.write(ci.of_verification(verification, settings), settings), settings)
    return OF_VERDICT[verification.verdict]


def _measure_named(settings: Settings, logger: logging.Logger, watchdog: Watchdog) -> int:
    """Measure the named candidates, print the verdicts, and return the exit code."""
    from accel_search.named_session import measure_named
    from accel_search.report import ci
    from accel_search.report.console.color import takes_colour
    from accel_search.report.console.named import named_json, named_text

    measured = measure_named(settings, logger, watchdog, show_bar=_has_bar(settings))
    outcome, where = measured.outcome, measured.provenance
    if settings.json:
        document = named_json(outcome, settings, measured.study, where)
        print(json.dumps(document, allow_nan=False))
    else:
        print("\n" + named_text(outcome, settings, colour=takes_colour(sys.stdout)))
    files = ci.write(ci.of_candidates(outcome, settings, where), settings)
    _print_written([*measured.written, *files], settings)
    return OF_VERDICT[outcome.verdict]


def _has_bar(settings: Settings) -> bool:
    return sys.stderr.isatty() and not (settings.json or settings.quiet)


def _print_written(files: Sequence[Path], settings: Settings) -> None:
    if files and not settings.json:
        print("".join(f"\nWritten: {path}" for path in files))


if __name__ == "__main__":
    sys.exit(main())
