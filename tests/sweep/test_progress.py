"""What a person reads of a sweep."""

from __future__ import annotations

import logging
from dataclasses import replace

from accel_search.storage.entries import Feasible
from accel_search.storage.keys import Configuration
from accel_search.sweep.answer import Answer, failure
from accel_search.sweep.progress import SweepProgress, in_a_line, legend, plan, table
from accel_search.sweep.status import Status
from tests.support.entries import bound_entry

LOG = logging.getLogger("tests.sweep")
ONE, TWO, THREE = (
    Configuration("SDXL", "DDIM", 20, each) for each in ("tome", "tgate", "deepcache")
)
ENTRY = bound_entry(
    best_feasible=Feasible(
        speedup=1.5, speedup_interval=(1.4, 1.6), score_loss=0.0123, score_loss_interval=None
    )
)
FAILED = failure("timeout", "too late", seconds=9)


def test_lines_bear_the_configurations_name_and_the_level_of_their_own(caplog):
    with caplog.at_level(logging.INFO, LOG.name), progress() as bar:
        bar.on_start(ONE, Status("open", note="was measured elsewhere"))
        for line in ("trial 1/16", "WARNING: out of memory", "ERROR: oh"):
            bar.on_line(ONE, line)
        bar.on_done(ONE, Answer(entry=ENTRY), 61)
        bar.on_done(TWO, Answer(failure=FAILED), 9)
        bar.on_skip(THREE, Status("done", entry=ENTRY))
        bar.on_skip(THREE, Status("failed", failure=FAILED))
    assert [(each.levelname, each.message) for each in caplog.records] == [
        ("INFO", "begins: SDXL DDIM 20 tome  (its stored result was measured elsewhere)"),
        ("INFO", "[SDXL DDIM 20 tome] trial 1/16"),
        ("WARNING", "[SDXL DDIM 20 tome] out of memory"),
        ("ERROR", "[SDXL DDIM 20 tome] oh"),
        ("INFO", f"done: SDXL DDIM 20 tome  {in_a_line(ENTRY)}  in 1 min 1 s"),
        ("ERROR", "failed: SDXL DDIM 20 tgate  timeout: too late"),
        ("INFO", "skipped: SDXL DDIM 20 deepcache  done: speedup: 2.00"),
        ("INFO", "skipped: SDXL DDIM 20 deepcache  failed before: timeout; --retry_failed explores "
                 "it again"),
    ]  # fmt: skip
    assert (bar.done, bar.failed) == (2, 2)


def progress(show_bar=False):
    seconds = {ONE: 10.0, TWO: 10.0, THREE: 40.0}
    return SweepProgress(LOG, 3, seconds.__getitem__, show_bar=show_bar)


def test_the_bar_tells_what_is_done_and_how_long_the_rest_takes(capsys):
    with progress(show_bar=True) as bar:
        bar.expect([ONE, TWO, THREE], workers=1)
        bar.on_start(ONE, Status("open"))
        # 10 expected seconds took 30: the other 50 take 150.
        bar.on_done(ONE, Answer(entry=ENTRY), 30)
    shown = capsys.readouterr().err
    assert "0 done, 0 failed, 1 running" in shown
    assert "1 done, 0 failed, 0 running, 2 min 30 s left" in shown


def test_an_entry_is_told_with_what_scripts_look_for():
    assert in_a_line(ENTRY) == (
        "speedup: 2.00 [1.90, 2.10]  bound: 2.20  within the loss: 1.50 [1.40, 1.60] at a score "
        "loss of 1.2 %"
    )
    unsure = replace(ENTRY, best_feasible=replace(ENTRY.best_feasible, chance_within_bound=0.82))
    assert "  likely (82 %) within the loss: 1.50 [" in in_a_line(unsure)
    none = replace(ENTRY, best_feasible=None)
    assert in_a_line(none).endswith("nothing within the loss")
    timed = replace(none, latency_only=True)
    assert in_a_line(timed).endswith("(latency only: nothing was scored)")
    slow = replace(none, no_gain="it does not pay")
    assert in_a_line(slow).endswith("the loss  it does not pay")


def test_the_table_has_a_column_a_method():
    statuses = {
        ONE: Status("done", entry=ENTRY),
        TWO: Status("failed", failure=FAILED),
        THREE: Status("open"),
        Configuration("demo", "UniPC", 8, "tome"): Status(
            "done", entry=replace(ENTRY, best_feasible=None, latency_only=True)
        ),
    }
    assert table(statuses).splitlines() == [
        "model  scheduler  steps  tome         tgate    deepcache",
        "SDXL   DDIM       20     1.50 (2.00)  timeout  to run",
        "demo   UniPC      8      2.00",
    ]
    text = plan(statuses, 7300, 2, measured=True)
    assert "4 configurations: 1 to run, 2 done, 1 failed." in text
    assert "About 1 h 0 min on 2 workers, by what the finished ones took." in text
    assert "nothing was scored" in legend(True) and "in brackets" in legend(False)
