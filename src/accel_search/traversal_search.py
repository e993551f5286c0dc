"""Entry of `accel-search`: parse, wire, exit code."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accel_search.cli.program import run_program
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
    from accel_search import session
    from accel_search.report.console.color import takes_colour
    from accel_search.report.console.summary import snippet, summary
    from accel_search.search.watchdog import Watchdog

    strategies.check(settings.strategy, settings.sampler)
    trackers.check(settings)
    logger = _set_up_logging(settings)
    is_watched = is_program and settings.replay is None
    watchdog = session.open_watchdog(settings, logger) if is_watched else Watchdog()
    if settings.verify:
        return _verify(settings, logger, watchdog)
    if settings.latency_only:
        return _bound_speed(settings, logger, watchdog)
    found = session.search(settings, logger, watchdog, show_bar=_has_bar(settings))
    outcome, entry = found.outcome, found.entry
    if outcome is None:
        return _answer_from(found, settings, logger)
    if settings.json:
        nothing = {"speedup": None, "stopped": outcome.stopped, "no_gain": found.no_gain}
        print(json.dumps(entry.as_dict() if entry else nothing, allow_nan=False))
    else:
        use = [] if entry is None else snippet(entry, settings, found.workload)
        colour, no_gain = takes_colour(sys.stdout), found.no_gain
        text = summary(outcome, settings, found.space, use=use, no_gain=no_gain, colour=colour)
        print(f"\n{text}")
    _say_written(found.written, settings)
    return ExitCode.NOTHING_FOUND if entry is None else ExitCode.DONE


def _answer_from(found: Searched, settings: Settings, logger: logging.Logger) -> int:
    """Answer from an earlier search's result, and report on what it left in the run folder."""
    from accel_search.report.console.summary import snippet, stored_summary
    from accel_search.session import report_on_stored

    entry = found.entry
    assert entry is not None  # It is what answers.
    if settings.json:
        print(json.dumps(entry.as_dict(), allow_nan=False))
    else:
        print(stored_summary(entry, settings, snippet(entry, settings, found.workload)))
    _say_written(report_on_stored(settings, logger, entry), settings)
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
    """Find the fastest candidate, quality aside, and return the exit code."""
    from accel_search import session
    from accel_search.report.console.summary import bound_summary, nothing_timed

    try:
        found = session.bound_speed(settings, logger, watchdog, show_bar=_has_bar(settings))
    except NothingMeasured as error:
        nothing = {"measured_max_speedup": None, "stopped": str(error)}
        print(json.dumps(nothing) if settings.json else f"\n{nothing_timed(error)}")
        return ExitCode.NOTHING_FOUND
    if settings.json:
        print(json.dumps(found.entry.as_dict(), allow_nan=False))
    else:
        print("\n" + bound_summary(found.entry, settings))
    return ExitCode.DONE if found.is_gain else ExitCode.NOTHING_FOUND


def _verify(settings: Settings, logger: logging.Logger, watchdog: Watchdog) -> int:
    """Measure a stored result again, say whether it holds, and return the exit code."""
    from accel_search import session
    from accel_search.report.console.color import takes_colour
    from accel_search.report.console.verification import verified_json, verified_text

    found = session.verify_stored(settings, logger, watchdog, show_bar=_has_bar(settings))
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


def _say_written(files: Sequence[Path], settings: Settings) -> None:
    if files and not settings.json:
        print("".join(f"\nWritten: {path}" for path in files))


if __name__ == "__main__":
    sys.exit(main())
