"""Recorded tables in place of a pipeline, in processes that may be killed: no torch, real storage.

What `--replay` reads is served here as if a pipeline measured it: with a provenance, a pause for
each call, held-out prompts, rivals of fewer steps and a few candidates that fail. So the whole of
`accel-search` runs, database and result files included, and ends in the same result every time.
Each piece that was measured is a line of a journal beside the results, written before anything is
stored of it.
"""

from __future__ import annotations

import itertools
import json
import os
import time
import zlib
from dataclasses import replace
from pathlib import Path

from accel_search.errors import TrialFailure
from accel_search.search.replay import ReplayEvaluator, replay_space
from accel_search.storage.trials_file import read_trials
from tests.support.fakes import PROVENANCE

TABLES = Path(__file__).resolve().parents[1] / "data" / "tables"
JOURNAL = "RECORDED_JOURNAL"
"""Environment variable: the journal, of a process and of those it starts."""
PAUSE = "RECORDED_PAUSE"
"""Environment variable: seconds that each call takes, at least."""
METER = "RECORDED_METER"
"""Environment variable: if set, lines of the journal tell what the process has used."""


def meter():
    """Return a function that tells what this process has used so far."""
    import psutil
    from sqlalchemy import Engine, event

    statements = itertools.count()
    event.listen(Engine, "before_cursor_execute", lambda *each: next(statements))
    process = psutil.Process()

    def read():
        executed = next(statements)  # Itself one more: the difference of two readings is one off.
        return {
            "statements": executed,
            "resident_bytes": process.memory_info().rss,
            "open_files": process.num_fds(),
            "cpu_seconds": time.process_time(),
        }

    return read


class RecordedEvaluator(ReplayEvaluator):
    """Answers from a table, and keeps a journal of what was asked.

    Args:
        targets: Accelerators; the table of their names is taken.
        scheduler_class: In place of the recorded one.
        label: Of the lines in the journal.
    """

    def __init__(self, targets: tuple[str, ...], scheduler_class: str, label: str = "") -> None:
        recorded = read_trials(TABLES / f"{'-'.join(targets)}.json.gz")
        space = replay_space(recorded, targets)
        super().__init__(recorded, space)
        assert recorded.workload is not None
        self.workload = replace(recorded.workload, scheduler_class=scheduler_class)
        self.space_values = space.values()
        self._label = label
        self._pause = float(os.environ.get(PAUSE, "0"))
        self._meter = meter() if METER in os.environ else dict

    @property
    def provenance(self):
        return PROVENANCE

    @property
    def held_out_stages(self):
        return (self.prompt_count,)

    @property
    def baselines(self):
        return {}

    def baseline(self, split="search", prompts=None):
        time.sleep(self._pause)
        wanted = range(self.prompt_count) if prompts is None else prompts
        self._note("baseline", split, wanted.start, wanted.stop)
        return self._recorded.baseline

    def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
        wanted = range(self.prompt_count) if prompts is None else prompts
        time.sleep(self._pause)
        self._note(str(candidate), split, wanted.start, wanted.stop)
        return super().measure(candidate, split, prompts, pairs)

    def _find(self, candidate, split):
        if list(candidate) == ["steps"]:
            share = candidate["steps"]["num_inference_steps"] / self.workload.steps
            base = self._recorded.baseline
            return replace(
                base, seconds_per_image=tuple(share * each for each in base.seconds_per_image)
            )
        if zlib.crc32(str(candidate).encode()) % 9 == 0:
            raise TrialFailure("it makes black pictures", "invalid_image", 1.0)
        # Held-out prompts were not recorded: the same scores once more.
        return super()._find(candidate, "search")

    def _note(self, what, split, start, stop):
        line = {"label": self._label, "what": what, "split": split, "start": start, "stop": stop}
        line |= self._meter()
        # One write of one line: a kill leaves all of it or nothing.
        handle = os.open(os.environ[JOURNAL], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, (json.dumps(line) + "\n").encode())
        finally:
            os.close(handle)


def open_recorded(settings, logger, given=None):
    """Take the place of `session.open_evaluator`."""
    from accel_search.search.space import JointSpace

    evaluator = RecordedEvaluator(settings.targets, settings.scheduler_class)
    values = dict(settings.space) or evaluator.space_values
    return evaluator, JointSpace(settings.targets, evaluator.workload, values)


def search(arguments):
    """Run `accel-search` on a table, and return its exit code."""
    from accel_search import session, traversal_search

    session.open_evaluator = open_recorded
    return traversal_search.main(arguments)


def sweep(arguments):
    """Run `accel-explore` with workers that explore tables, and return its exit code."""
    import sys

    from accel_search import explore_upper_bounds
    from accel_search.sweep import worker_process

    worker_process.COMMAND = (sys.executable, "-m", "tests.support.recorded_worker")
    return explore_upper_bounds.main(arguments)


if __name__ == "__main__":
    import sys

    sys.exit(search(sys.argv[1:]))
