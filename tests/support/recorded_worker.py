"""A sweep's worker that explores recorded tables: all of it is real but the pipeline."""

from __future__ import annotations

import json
import os
import signal

from accel_search.sweep import worker
from accel_search.sweep.answer import Answer
from tests.support.fakes import PROVENANCE
from tests.support.recorded import RecordedEvaluator

CRASHES = "RECORDED_CRASHES"
"""Environment variable: a JSON list of configurations that end their process."""


class RecordedSession(worker.Session):
    """Opens a table where a worker opens a pipeline."""

    def _open(self, settings, logger):
        name = f"{settings.pipe}_{settings.sched}_{settings.steps}_{'+'.join(settings.targets)}"
        print(f"exploring {name} in {os.getpid()}", flush=True)
        if name in json.loads(os.environ.get(CRASHES, "[]")):
            os.kill(os.getpid(), signal.SIGSEGV)
        return RecordedEvaluator(settings.targets, settings.scheduler_class, name)

    @staticmethod
    def _probe(job):
        where = PROVENANCE.as_dict()
        return Answer(machine={name: where[name] for name in ("device_name", "driver", "versions")})


def main():
    """Take jobs until there are none."""
    worker.Session = RecordedSession
    worker.main()


if __name__ == "__main__":
    main()
