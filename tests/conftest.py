"""What every test starts from."""

import logging
import os
import shutil
import tempfile

import pytest

from accel_search.core.schedulers import SCHEDULERS

pytest.register_assert_rewrite("tests.support")  # What is asserted there is told as elsewhere.


def pytest_configure(config):
    """Keep digests of the tests' files out of the user's cache, in all processes of a run."""
    if "ACCEL_SEARCH_CACHE" not in os.environ:
        config.own_cache = os.environ["ACCEL_SEARCH_CACHE"] = tempfile.mkdtemp()


def pytest_unconfigure(config):
    """Remove the cache of this run."""
    if hasattr(config, "own_cache"):
        shutil.rmtree(os.environ.pop("ACCEL_SEARCH_CACHE"))


@pytest.fixture(autouse=True)
def bare_loggers():
    """Take off what a run of the program hung on its loggers."""
    yield
    for name in ("accel_search", "traversal_search", "explore_upper_bounds"):
        logger = logging.getLogger(name)
        logger.propagate = True
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()


def pytest_terminal_summary(terminalreporter):
    """Print the conformance table from what its cells recorded, in whichever process they ran."""
    cells = [
        value
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        for name, value in report.user_properties
        if name == "conformance" and report.when == "call"
    ]
    if not cells:
        return
    columns = sorted({tuple(cell["column"]) for cell in cells})
    rows = sorted({cell["row"] for cell in cells}, key=lambda row: (row.count("+"), row))
    terminalreporter.section("accelerators: conformance")
    terminalreporter.line(
        "Largest difference from the package's latents (- where it has none to compare), "
        "R reversible, D deterministic."
    )
    width = max(len(row) for row in rows)
    short = {each: name for name, each in SCHEDULERS.items()}
    heads = [f"{kind} {short[scheduler]}" for kind, scheduler in columns]
    terminalreporter.line(" " * width + "".join(f"  {head:>17}" for head in heads))
    for row in rows:
        line = f"{row:{width}}"
        for column in columns:
            found = [c for c in cells if c["row"] == row and tuple(c["column"]) == column]
            line += f"  {_mark(found[0]) if found else '':>17}"
        terminalreporter.line(line)


def _mark(cell):
    gap = cell["difference"]
    exact = "-" if gap is None else f"{gap:g}"
    return f"{exact} {'R' if cell['reversible'] else '.'}{'D' if cell['deterministic'] else '.'}"
