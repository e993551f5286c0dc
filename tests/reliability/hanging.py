"""`accel-search` on a recorded table of which one piece never ends: a program of its own.

What hangs stands in `HANGING`, as JSON: `what` it is, in which `split`, and `how`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading

from accel_search import traversal_search
from accel_search.errors import TrialFailure
from tests.reliability.recorded import RecordedEvaluator, open_recorded

HANGING = "HANGING"
ENDLESS = (
    "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers)"
    " SELECT max(n) FROM numbers"
)


def hang(how):
    """Do not return: wait for a lock, or stay in C, where no signal is heard."""
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

    def measure(self, candidate, split="search", prompts=None, pairs=None):
        self._meet(str(candidate), split)
        return super().measure(candidate, split, prompts, pairs)

    def check(self):
        self._meet("check", "")

    def _meet(self, what, split):
        for each in json.loads(os.environ.get(HANGING, "[]")):
            if each["what"] in (what, "*") and each["split"] == split:
                hang(each["how"])


if __name__ == "__main__":
    from tests.reliability import recorded

    recorded.RecordedEvaluator = Hanging
    traversal_search._open = open_recorded
    sys.exit(traversal_search.main())
