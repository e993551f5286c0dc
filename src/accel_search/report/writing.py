"""Where a report goes, and the writing of it: the page, the plots, the script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_search.cli.options import declare
from accel_search.errors import AccelSearchError, ConfigurationError
from accel_search.report.export import write_script
from accel_search.report.page import search_page
from accel_search.report.plots import write_plots
from accel_search.report.sweep_page import read_bounds, sweep_page
from accel_search.settings import Settings
from accel_search.storage.json_files import write_atomically
from accel_search.storage.keys import Configuration, parse_key
from accel_search.storage.run import DEFAULT_BOUND, Run
from accel_search.storage.run_reader import read_run
from accel_search.storage.speedup_bounds import FAILED
from accel_search.sweep.settings import SweepSettings

PAGE = "report.html"
AUTO = "auto"
"""What `--report` without a value asks for: the default place."""


@dataclass(frozen=True)
class ReportSettings:
    """Everything that decides what `accel-report` writes. Values are checked on construction."""

    run: str | None = None
    """The run folder, file of trials or file of bounds; None, with a storage, is the default run
    folder."""
    output: str | None = declare(
        None, "the page (default: report.html in a run folder, else beside the file)",
        metavar="FILE",
    )  # fmt: skip
    export: str | None = declare(
        None, "write a Python script that uses the winner instead", metavar="FILE"
    )
    study: str | None = declare(
        None, "which study of a run folder (default: the one that ended last)"
    )
    storage: str | None = declare(
        None, "Optuna storage URL of the search, where it had one", metavar="URL"
    )
    req_score_loss: float = declare(
        DEFAULT_BOUND, "loss of score that is allowed, where the run does not say", parse=float
    )
    run_dir: str = declare(
        Settings.run_dir, "of a sweep: its run folder, for each configuration's report",
        metavar="DIR",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 <= self.req_score_loss <= 1:
            raise ConfigurationError(
                f"--req_score_loss {self.req_score_loss}: expected a fraction from 0 to 1"
            )
        if self.storage is None and (self.run is None or not Path(self.run).exists()):
            raise ConfigurationError(
                f"{self.run or 'RUN'}: no such file or folder; give the --run_dir of a search, a "
                "--trials_out file, or a speedup_bounds.json"
            )


def write_report(settings: ReportSettings) -> list[Path]:
    """Write what the settings ask for, and return the files.

    Raises:
        ConfigurationError: There is nothing to report, or a file cannot be written.
        LoadError: A file cannot be read as what it should be.
    """
    path = Path(settings.run or settings.run_dir)
    if path.is_file() and _is_bounds(path):
        if settings.export is not None:
            raise ConfigurationError("--export: takes a search's run, not a sweep's bounds")
        page = Path(settings.output) if settings.output else path.with_suffix(".html")
        return write_sweep(path, Path(settings.run_dir), page, settings.storage)
    if settings.storage is not None and path.is_file():
        raise ConfigurationError(
            f"{path} and --storage: choose one; that file holds its trials itself"
        )
    run = read_run(path, settings.study, settings.req_score_loss, settings.storage)
    if settings.export is not None:
        write_script(run, Path(settings.export))
        return [Path(settings.export)]
    is_folder = path.is_dir() or settings.storage is not None
    place = path / PAGE if is_folder else path.with_name(path.name.split(".")[0] + ".html")
    return write_search(run, Path(settings.output) if settings.output else place)


def write_search(run: Run, page: Path) -> list[Path]:
    """Write a search's page, and the plots beside it; return the files.

    Raises:
        ConfigurationError: They cannot be written.
    """
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(page, search_page(run))
        return [page, *write_plots(run, page.parent)]
    except OSError as error:
        raise ConfigurationError(f"--report {page}: {error.strerror}") from error


def write_of(run: Run, settings: Settings) -> list[Path]:
    """Write what a search's settings ask for, and return the files; raises as `write_search`."""
    written: list[Path] = []
    if settings.report is not None:
        default = Path(settings.run_dir) / PAGE
        written += write_search(run, default if settings.report == AUTO else Path(settings.report))
    if settings.export is not None and run.winner is not None:
        write_script(run, Path(settings.export))
        written.append(Path(settings.export))
    return written


def write_sweep_of(settings: SweepSettings) -> list[Path]:
    """Write the page that a sweep's settings ask for; raises as `write_sweep`."""
    bounds = Path(settings.search_settings(settings.table[0]).bounds)
    automatic = settings.report in (None, AUTO)
    page = bounds.with_suffix(".html") if automatic else Path(str(settings.report))
    return write_sweep(bounds, Path(settings.run_dir), page, settings.common.get("storage"))


def write_sweep(bounds: Path, run_dir: Path, page: Path, storage: str | None = None) -> list[Path]:
    """Write a sweep's page, and a page for each configuration whose run is there.

    Args:
        bounds: What was explored.
        run_dir: Holds the configurations' own run folders.
        page: Is written.
        storage: Optuna storage URL that their trials are in, if not in those folders.

    Raises:
        ConfigurationError: They cannot be written, or nothing was explored.
        LoadError: The file of bounds is none.
    """
    explored = read_bounds(bounds)
    folder = page.with_name(f"{page.stem}_files")
    links: dict[Configuration, str] = {}
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for each in explored:
            own_page = _page_of(run_dir, each.configuration, each.entry, storage)
            if own_page is not None:
                own = folder / f"{each.configuration.slug}.html"
                own.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(own, own_page)
                links[each.configuration] = f"{folder.name}/{own.name}"
        write_atomically(page, sweep_page(explored, links))
    except OSError as error:
        raise ConfigurationError(f"--report {page}: {error.strerror}") from error
    return [page]


def _page_of(
    run_dir: Path,
    configuration: Configuration,
    entry: Mapping[str, Any] | None,
    storage: str | None,
) -> str | None:
    """Return the page of a configuration's own run; None where that is not at hand or damaged."""
    folder = run_dir / configuration.slug
    if entry is None or (storage is None and not folder.is_dir()):
        return None
    study = None if storage is None else (entry.get("evidence") or {}).get("study", "")
    try:
        return search_page(read_run(folder, study, storage=storage))
    except AccelSearchError:
        # A sweep's report must not fail for one of its hundred runs.
        return None


def _is_bounds(path: Path) -> bool:
    """Tell by its beginning whether a file is one of bounds, not of trials."""
    import json

    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False  # The reader of trials says what is wrong with it.
    return (
        isinstance(content, dict)
        and "format" not in content
        and (FAILED in content or any(parse_key(text) is not None for text in content))
    )
