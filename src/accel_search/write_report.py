"""Entry of `accel-report`: parse, wire, exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from accel_search.cli.options import build_parser, check_value, declare, given_options
from accel_search.cli.program import run_program
from accel_search.core.packages import check_packages
from accel_search.errors import ConfigurationError, ExitCode
from accel_search.settings import Settings

DESCRIPTION = (
    "Write the report of a finished or interrupted search, or of a sweep, as one HTML page that "
    "needs no other file, with its charts as PNG beside it."
)


@dataclass(frozen=True)
class ReportSettings:
    """The options of `accel-report`, checked on construction."""

    run: str | None = None
    """A run folder, a file of trials or a file of bounds; None is the default run folder, whose
    trials are in `storage`."""
    # fmt: off
    output: str | None = declare(None,
        "the page (default: report.html in a run folder, else beside the file)", metavar="FILE")
    export: str | None = declare(None, "write a Python script that uses the winner instead",
        metavar="FILE")
    study: str | None = declare(None,
        "which study of a run folder (default: the one that ended last)")
    storage: str | None = declare(None, "Optuna storage URL of the search, where it had one",
        metavar="URL")
    req_score_loss: float = declare(Settings.req_score_loss,
        "loss of score that is allowed, if the run does not record it", parse=float, least=0.0,
        most=1.0, expected="a fraction from 0 to 1")
    run_dir: str = declare(Settings.run_dir,
        "of a sweep: its run folder, for each configuration's report", metavar="DIR")
    # fmt: on

    def __post_init__(self) -> None:
        for option in fields(self):
            check_value(option, getattr(self, option.name))
        if self.storage is None and (self.run is None or not Path(self.run).exists()):
            raise ConfigurationError(
                f"{self.run or 'RUN'}: no such file or folder; give the --run_dir of a search, a "
                "--trials_out file, or a speedup_bounds.json"
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
    """Write a report and print its files."""
    check_packages("accel-report")
    for path in write_report(settings):
        print(path)
    return ExitCode.DONE


def from_command_line(arguments: Sequence[str] | None = None) -> ReportSettings:
    """Return the settings of a command line.

    Raises:
        ConfigurationError: An option is unknown or out of range, or there is no such run.
    """
    options = fields(ReportSettings)
    return ReportSettings(**given_options(report_parser(), arguments, options))


def report_parser() -> argparse.ArgumentParser:
    """Return the command line of `accel-report`."""
    from accel_search import __version__

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


def write_report(settings: ReportSettings) -> list[Path]:
    """Write the requested files and return them.

    Raises:
        ConfigurationError: There is nothing to report, or a file cannot be written.
        LoadError: A file is corrupt or of another kind.
    """
    from accel_search.report.html.script import write_script
    from accel_search.report.html.write import PAGE, write_search
    from accel_search.storage.run_reader import read_run
    from accel_search.sweep.page import write_sweep

    path = Path(settings.run or settings.run_dir)
    if path.is_file() and _is_bounds(path):
        if settings.export is not None:
            raise ConfigurationError(
                f"--export: {path} holds a sweep's bounds; give the run folder of a search"
            )
        page = Path(settings.output) if settings.output else path.with_suffix(".html")
        return write_sweep(path, Path(settings.run_dir), page, settings.storage)
    if settings.storage is not None and path.is_file():
        raise ConfigurationError(
            f"{path} and --storage: choose one; that file holds its own trials"
        )
    run = read_run(path, settings.study, settings.req_score_loss, settings.storage)
    if settings.export is not None:
        write_script(run, Path(settings.export))
        return [Path(settings.export)]
    is_folder = path.is_dir() or settings.storage is not None
    place = path / PAGE if is_folder else path.with_name(path.name.split(".")[0] + ".html")
    return write_search(run, Path(settings.output) if settings.output else place)


def _is_bounds(path: Path) -> bool:
    from accel_search.storage.json_files import Unreadable, load_json
    from accel_search.storage.speedup_bounds import is_bounds

    try:
        return is_bounds(load_json(path))
    except Unreadable:
        return False  # Reading it as a file of trials will raise the error.


if __name__ == "__main__":
    sys.exit(main())
