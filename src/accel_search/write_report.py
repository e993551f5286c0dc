"""Entry of `accel-report`: parse, wire, exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from accel_search.cli.options import build_parser, given_options
from accel_search.cli.program import run_program
from accel_search.errors import ExitCode

if TYPE_CHECKING:
    from accel_search.report.writing import ReportSettings

DESCRIPTION = (
    "Write the report of a finished or interrupted search, or of a sweep, as one HTML page that "
    "needs nothing else, with the same as PNG beside it."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `accel-report` and return its exit code; every user error is one line."""
    return run_program(
        "accel-report",
        lambda: from_command_line(arguments),
        run,
        lambda settings: "INFO",
        "run the same command again",
    )


def run(settings: ReportSettings) -> int:
    """Write a report and say where it is."""
    from accel_search.report.writing import write_report

    for path in write_report(settings):
        print(path)
    return ExitCode.DONE


def from_command_line(arguments: Sequence[str] | None = None) -> ReportSettings:
    """Return the settings of a command line.

    Raises:
        ConfigurationError: An option is unknown or out of range, or there is no such run.
    """
    from accel_search.report.writing import ReportSettings

    options = fields(ReportSettings)
    return ReportSettings(**given_options(report_parser(), arguments, options))


def report_parser() -> argparse.ArgumentParser:
    """Return the command line of `accel-report`."""
    from accel_search import __version__
    from accel_search.report.writing import ReportSettings

    groups = {"output": "what is written", "study": "what is read"}
    parser = build_parser("accel-report", DESCRIPTION, __version__, fields(ReportSettings), groups)
    parser.usage = "%(prog)s RUN [OPTION ...]"
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="the --run_dir of a search, a --trials_out file, or a speedup_bounds.json",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
