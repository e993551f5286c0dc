"""Programs on recorded tables of which a piece never ends: `accel-search`, and a sweep's worker.

What hangs stands in `HANGING`, as JSON: `what` it is, in which `split`, and `how`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading

from accel_search import session, traversal_search
from accel_search.errors import TrialFailure
from tests.support.recorded import RecordedEvaluator, open_recorded

HANGING = "HANGING"
ENDLESS = (
    "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers)"
    " SELECT max(n) FROM numbers"
)


def hang(how):
    """Do not return: wait for a lock, or stay in C, where no signal is heard."""
    if how != "fail":
        os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)  # As a GPU's driver may.
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if how == "lock":
        threading.Event().wait()
    elif how == "c":
        sqlite3.connect(":memory:").execute(ENDLESS).fetchall()
    else:
        raise TrialFailure("it would hang", "timeout", 1.0)


class Hanging(RecordedEvaluator):
    """A recorded evaluator that hangs where it is told to."""

    def baseline(self, split="search"):
        self._meet("baseline", split)
        return super().baseline(split)

    def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
        self._meet(str(candidate), split)
        return super().measure(candidate, split, prompts, pairs)

    def check(self):
        self._meet("check", "")

    def _meet(self, what, split):
        for each in json.loads(os.environ.get(HANGING, "[]")):
            if each["what"] in (what, "*") and each["split"] == split:
                hang(each["how"])


if __name__ == "__main__":
    from tests.support import recorded, recorded_worker

    # The three streams and the listing itself: a process that begins anew takes nothing over.
    assert len(os.listdir("/proc/self/fd")) == 4  # noqa: PTH208
    if sys.argv[1] == "worker":
        del sys.argv[1]
        recorded_worker.RecordedEvaluator = Hanging
        recorded_worker.main()
    elif sys.argv[1] == "sweep":
        from accel_search import explore_upper_bounds
        from accel_search.sweep import worker_process

        worker_process.COMMAND = (sys.executable, "-m", "tests.support.hanging", "worker")
        sys.exit(explore_upper_bounds.main(sys.argv[2:]))
    else:
        recorded.RecordedEvaluator = Hanging
        session.open_evaluator = open_recorded
        sys.exit(traversal_search.main())
