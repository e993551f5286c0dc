"""A thousand trials on recorded tables and a hundred of the real demo: nothing grows with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from statistics import median

import psutil
import pytest

from tests.support.evidence import journal, stored
from tests.support.processes import SOURCE, Run
from tests.support.recorded import METER, search

MEGABYTE = 2**20
RESIDENT = 64 * MEGABYTE
"""Most that the resident memory may grow by, after the first tenth of the trials."""
DATABASE_BYTES = 4_608
LOG_BYTES = 320
"""Most that a trial may add to the database, and to the log: either fails where a record or a line
is written twice."""
SLOWDOWN = 1.75
"""Most that the last trials' processor seconds may be of the first ones': the machine is shared."""

DEMO = ["--targets", "deepcache,tome", "--strategy", "grid", "--device", "cpu", "--threads", "1"]
DEMO += ["--batch_size", "2", "--num_samples", "2", "--held_out_samples", "0", "--steps", "6"]
# Of full size: pictures that were kept would show.
DEMO += ["--height", "128", "--width", "128", "--timing_pairs", "1"]


def steps(values, places):
    """Return the median difference of neighbouring values in the first and the last part."""
    each = [after - before for before, after in zip(values, values[1:])]
    return median(each[:places]), median(each[-places:])


def files(folder, looks):
    """Assert that database and log stay in bounds; return their bytes a look."""
    database = (folder / "accel_search_runs" / "trials.db").stat().st_size / looks
    log = (folder / "traversal_search.log").stat().st_size / looks
    told = re.findall(r" - trial \d+/", (folder / "traversal_search.log").read_text())
    assert len(told) == looks, "a line a look"
    assert database < DATABASE_BYTES and log < LOG_BYTES, (database, log)
    return database, log


@pytest.mark.torture
@pytest.mark.parametrize("strategy", ["grid", "random"])
def test_a_thousand_trials_cost_no_more_at_the_end_than_at_the_beginning(tmp_path, tell, strategy):
    count, part = 1000, 100
    arguments = ["--targets", "tgate", "--strategy", strategy, "--max_trials", str(count)]
    run = Run(tmp_path / "run", search, arguments, {METER: "1"})
    assert run.wait(580) in (0, 3), run.errors
    folder = run.folder
    lines = [each for each in journal(folder) if each["split"] == "search"]
    lines = [each for each in lines if not each["what"].startswith(("baseline", "steps("))]
    assert len({each["what"] for each in lines}) == count

    first, last = steps([each["statements"] for each in lines], part)
    assert last <= first, "more SQL statements a trial"
    cpu = steps([each["cpu_seconds"] for each in lines], part)
    assert cpu[1] < SLOWDOWN * cpu[0], cpu
    resident = [each["resident_bytes"] for each in lines]
    grown = max(resident) - resident[part]
    assert grown < RESIDENT
    opened = [each["open_files"] for each in lines]
    assert max(opened[part:]) <= max(opened[:part])
    database, log = files(folder, len(lines))

    (folder / "search_params.json").unlink(missing_ok=True)
    length = len(journal(folder))
    again = Run(folder, search, arguments, {METER: "1"})
    assert again.wait(580) in (0, 3), again.errors
    assert len(journal(folder)) == length
    assert "resumed: 1000 finished trials" in again.output
    tell(
        f"{count} trials, {strategy}, {len(lines)} looks: {last:.0f} SQL statements a look at the "
        f"end, {first:.0f} at the beginning; processor {1000 * cpu[1]:.0f} ms a look, "
        f"{1000 * cpu[0]:.0f} at the beginning; memory {max(resident) / MEGABYTE:.0f} MiB, grown "
        f"by {grown / MEGABYTE:.0f}; "
        f"{max(opened)} open files; {database:.0f} bytes of database and {log:.0f} of log a look"
    )


@pytest.mark.torture
def test_a_hundred_trials_of_the_demo_leave_nothing_open(tmp_path, tell):
    count, part = 100, 20
    process = subprocess.Popen(
        [sys.executable, "-m", "accel_search.traversal_search", *DEMO, "--max_trials", str(count)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "traversal_search.log"
    watched = psutil.Process(process.pid)
    readings = []
    while process.poll() is None:
        done = len(re.findall(r"trial \d+/", log.read_text())) if log.exists() else 0
        if done > len(readings):
            try:
                used = watched.cpu_times()
                readings += [
                    (watched.memory_info().rss, watched.num_fds(), used.user + used.system)
                ] * (done - len(readings))
            except psutil.Error:
                break
        time.sleep(0.02)
    assert process.wait() in (0, 3), process.stderr.read()
    assert len(readings) >= count - 1
    assert len(stored(tmp_path).trials) == count
    resident = [each[0] for each in readings]
    # Medians: single readings differ by tens of MiB, as calls come and go.
    grown = median(resident[-part:]) - median(resident[part : 2 * part])
    assert grown < RESIDENT / 2
    opened = [each[1] for each in readings]
    assert max(opened[part:]) <= max(opened[:part]) + 2
    cpu = steps([each[2] for each in readings], part)
    assert cpu[1] < SLOWDOWN * cpu[0], cpu
    database, written = files(tmp_path, count)
    tell(
        f"{count} trials of the demo: memory {max(resident) / MEGABYTE:.0f} MiB, grown by "
        f"{grown / MEGABYTE:.0f}; {max(opened)} open files; processor {cpu[1]:.2f} s a trial, "
        f"{cpu[0]:.2f} at the beginning; {database:.0f} bytes of database and {written:.0f} of log "
        "a trial"
    )
