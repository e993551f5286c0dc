"""Measure how long a report of many trials takes to be written, and a browser to open it."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # The fake trials are the tests' own.

OPENED = "performance.getEntriesByType('navigation')[0].loadEventEnd"
DRAWN = "new Promise(r => requestAnimationFrame(() => setTimeout(() => r(performance.now()))))"


def main() -> None:
    """Print the figures."""
    from playwright.sync_api import sync_playwright
    from tests.support.pages import many_trials

    from accel_search.report.html.page import search_page
    from accel_search.storage.run_reader import read_run

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        began = time.perf_counter()
        run = read_run(many_trials(Path(folder) / "trials.json", options.trials))
        read = time.perf_counter()
        path.write_text(search_page(run))
        size = path.stat().st_size / 1e6
        print(f"{options.trials:,} trials: read and assessed in {read - began:.1f} s")
        print(f"page of {size:.2f} MB written in {time.perf_counter() - read:.1f} s")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=options.chromium, args=["--no-sandbox"]
            )
            for _ in range(3):
                page = browser.new_page()
                page.goto(path.as_uri())
                print(
                    f"loaded in {page.evaluate(OPENED) / 1000:.2f} s, "
                    f"drawn after {page.evaluate(DRAWN) / 1000:.2f} s"
                )
                page.close()
            browser.close()


if __name__ == "__main__":
    main()
