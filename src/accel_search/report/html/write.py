"""Write a report: the page, the plots, the script."""

from __future__ import annotations

from pathlib import Path

from accel_search.errors import ConfigurationError
from accel_search.report.html.page import search_page
from accel_search.report.html.plots import write_plots
from accel_search.report.html.script import write_script
from accel_search.settings import Settings
from accel_search.storage.json_files import write_atomically
from accel_search.storage.run import Run

PAGE = "report.html"
AUTO = "auto"
"""Value of `--report` without a path: the default place."""


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
    """Write the report that a search's settings request; raises as `write_search`."""
    written: list[Path] = []
    if settings.report is not None:
        default = Path(settings.run_dir) / PAGE
        written += write_search(run, default if settings.report == AUTO else Path(settings.report))
    if settings.export is not None and run.winner is not None:
        write_script(run, Path(settings.export))
        written.append(Path(settings.export))
    return written
