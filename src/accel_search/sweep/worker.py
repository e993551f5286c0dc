"""The subprocess that explores configurations, one job after the other.

    python -m accel_search.sweep.worker

Each line of its standard input is a job: `{"options": {...}, "answer": "FILE"}`, a search's
settings and the file for its answer. The model is loaded for the first job and serves all: the
sweep gives jobs of one model to one process. The end of its input ends the process, even in the
middle of a job, so that a killed sweep leaves nothing running. A candidate that hangs is stored as
a failure and ends the process, with an answer that holds `carried`; a new process that gets the job
with the same `carried` continues without it. Lines for people go to standard output.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import queue
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from accel_search.cli.logging_utils import setup_logger
from accel_search.cli.restart import Carried, leave
from accel_search.errors import AccelSearchError, ExitCode
from accel_search.runtime.measuring.timing_lock import TimingLock
from accel_search.search.watchdog import restarting_watchdog
from accel_search.settings import Settings
from accel_search.storage.json_files import write_atomically
from accel_search.sweep.answer import Answer, failure, failure_of

if TYPE_CHECKING:
    from accel_search.runtime.measuring.evaluator import PipelineEvaluator
    from accel_search.runtime.workbench import Workbench

ABANDONED = 3
"""Exit code of a worker whose sweep has ended."""
HUNG = 4
"""Exit code of a worker in which a candidate hung; its answer says how the job continues."""


def main() -> None:
    """Do jobs until there are none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", help="CPU cores to keep to, e.g. 0,1")
    parser.add_argument("--turns", type=Path, help="folder of the lock that timings share")
    options = parser.parse_args()
    if options.cores and hasattr(os, "sched_setaffinity"):
        # Before torch is loaded, which counts the cores only once.
        os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    # On a file system shared by nodes, the lock is of one node's processes.
    session = Session(TimingLock(options.turns and options.turns / platform.node()))
    for job in _jobs():
        session.answer(job)


def _jobs() -> Any:
    """Yield jobs as they come; end the process if the sweep ends in the middle of one."""
    waiting: queue.Queue[dict[str, Any] | None] = queue.Queue()
    busy = threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            waiting.put(json.loads(line))
        waiting.put(None)
        if busy.is_set():
            # Every finished trial is stored, and nobody is left to read an answer.
            os._exit(ABANDONED)

    threading.Thread(target=listen, daemon=True).start()
    while (job := waiting.get()) is not None:
        busy.set()
        yield job
        busy.clear()


class Session:
    """A process's loaded model, and the work on its jobs."""

    def __init__(self, turns: TimingLock) -> None:
        self._turns = turns
        self._bench: Workbench | None = None
        self._evaluator: PipelineEvaluator | None = None
        self._latest: Settings | None = None

    def answer(self, job: Mapping[str, Any]) -> None:
        """Do a job and write its answer; every error is an answer too."""
        began = time.perf_counter()
        path = Path(job["answer"])
        try:
            answer = self._probe(job) if job.get("probe") else self._explore(job, began)
        except Exception as error:  # The sweep goes on with the next configuration.
            if not isinstance(error, AccelSearchError):
                traceback.print_exc()
            answer = Answer(failure=failure_of(error, time.perf_counter() - began))
        sys.stdout.flush()
        _write(path, answer)

    def _explore(self, job: Mapping[str, Any], began: float) -> Answer:
        from accel_search.session import explore

        settings = settings_of(job["options"])
        inherited = Carried(*job.get("carried", ()))
        if inherited.hangs:
            settings = replace(settings, force=False)  # Resume the study of the last process.
        for name in ("accel_search", "traversal_search"):
            logger = setup_logger(name, None, settings.log_level)
        try:
            evaluator = self._open(settings, logger)
        except AccelSearchError as error:
            # Loading depends on neither scheduler, steps nor method.
            of_model = self._bench is None
            reason = failure_of(error, time.perf_counter() - began)
            if of_model and reason.error == "unknown_error":
                reason = replace(reason, error="model_load")
            return Answer(failure=reason, is_of_model=of_model)
        path = Path(job["answer"])

        def restart(message: str, carried: Carried) -> NoReturn:
            print(f"WARNING: {message}; a new process goes on without it")
            _leave(path, Answer(carried=carried))

        def give_up(message: str) -> NoReturn:
            seconds, code = time.perf_counter() - began, ExitCode.UNEXPECTED
            _leave(
                path, Answer(failure=failure("timeout", message, seconds=seconds, exit_code=code))
            )

        watchdog = restarting_watchdog(settings, inherited, sys.stdout, "the log", restart, give_up)
        result = explore(settings, evaluator, logger, watchdog=watchdog)
        return Answer(result.key, result.label, result.entry, result.winner)

    def _open(self, settings: Settings, logger: logging.Logger) -> PipelineEvaluator:
        """Return the configuration's evaluator, the previous one where it fits."""
        if self._bench is None:
            print(f"loading {settings.pipe}", flush=True)
            from accel_search.runtime.workbench import Workbench

            self._bench = Workbench(settings, logger, self._turns)
        latest = self._latest
        same = latest is not None and (latest.sched, latest.steps) == (
            settings.sched,
            settings.steps,
        )
        evaluator = self._evaluator
        # An evaluator whose batch was halved is replaced: other methods may fit.
        if evaluator is None or not same or evaluator.batch_size < settings.batch_size:
            evaluator = self._evaluator = self._bench.evaluator(settings)
        self._latest = settings
        return evaluator

    @staticmethod
    def _probe(job: Mapping[str, Any]) -> Answer:
        """Return the machine's part of a provenance."""
        from accel_search.runtime.devices import resolve_device
        from accel_search.runtime.provenance import machine

        return Answer(machine=machine(resolve_device(job["options"]["device"])))


def _leave(path: Path, answer: Answer) -> NoReturn:
    """Write the answer of a process in which a candidate hung, and end it."""
    sys.stdout.flush()  # The reader of the answer may end this process.
    with suppress(OSError):  # Without an answer, the exit code is read.
        _write(path, answer)
    leave(HUNG)


def _write(path: Path, answer: Answer) -> None:
    write_atomically(path, json.dumps(answer.as_dict(), allow_nan=False))


def settings_of(options: Mapping[str, Any]) -> Settings:
    """Return settings that went through JSON."""
    space = {
        name: {key: tuple(values) for key, values in parameters.items()}
        for name, parameters in options.get("space", {}).items()
    }
    return Settings(**dict(options) | {"targets": tuple(options["targets"]), "space": space})


if __name__ == "__main__":
    main()
