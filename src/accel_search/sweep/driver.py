"""The sweep: workers take configurations, and their answers are stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accel_search.storage import search_results, speedup_bounds
from accel_search.storage.json_files import read_json
from accel_search.storage.keys import Configuration
from accel_search.sweep.answer import Answer
from accel_search.sweep.local_workers import Worker
from accel_search.sweep.progress import SweepProgress
from accel_search.sweep.queue import Queue
from accel_search.sweep.settings import ALL, SweepSettings
from accel_search.sweep.status import Status, status_of
from accel_search.sweep.worker_process import Stopped

TICK_SECONDS = 0.2


class Sweep:
    """Explores every open configuration of a table; a result is on disk before the next begins.

    Args:
        settings: The table and the options.
        workers: Each explores one configuration at a time, driven by a thread of its own.
        expected: Seconds that a configuration should take, to share them out well.
        machine: Returns the machine's part of a provenance, with which stored results must agree.
            None, or a result of None, accepts any. Called at most once.
    """

    def __init__(
        self,
        settings: SweepSettings,
        workers: Sequence[Worker],
        expected: Callable[[Configuration], float] | None = None,
        machine: Callable[[], Mapping[str, Any] | None] | None = None,
    ) -> None:
        self._settings = settings
        self._workers = workers
        self._ask_machine = machine
        self._machine: Mapping[str, Any] | None = None
        self._stop = threading.Event()
        self._expected = expected if len(workers) > 1 else None
        self._queue = Queue([])
        self._lock = threading.Lock()
        self._failed = 0
        self._defects: list[BaseException] = []

    def run(self, observer: SweepProgress) -> int:
        """Explore the open configurations and return how many of the table have failed.

        Args:
            observer: Receives the events, from several threads.

        Raises:
            KeyboardInterrupt: It was interrupted; the workers' processes have ended.
        """
        statuses = self.statuses()
        pending = []
        for configuration, status in statuses.items():
            if self._is_skipped(status):
                observer.on_skip(configuration, status)
                self._failed += status.state == "failed"
            else:
                pending.append(configuration)
        self._queue = Queue(pending, self._expected)
        threads = [
            threading.Thread(target=self._work, args=(worker, statuses, observer), daemon=True)
            for worker in self._workers[: max(1, len(pending))]
        ]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                time.sleep(TICK_SECONDS)
        finally:
            self._stop.set()
            for thread in threads:
                if thread.is_alive():
                    thread.join()
        if self._defects:
            raise self._defects[0]
        return self._failed

    def statuses(self) -> dict[Configuration, Status]:
        """Return the state of every configuration."""
        statuses = self._statuses(None)
        is_any_done = any(status.state == "done" for status in statuses.values())
        if self._ask_machine is not None and is_any_done:
            self._machine, self._ask_machine = self._ask_machine(), None
        return statuses if self._machine is None else self._statuses(self._machine)

    def _statuses(self, machine: Mapping[str, Any] | None) -> dict[Configuration, Status]:
        settings = self._settings
        statuses = {}
        content: dict[str, dict[str, Any]] = {}
        for configuration in settings.table:
            search = settings.search_settings(configuration)
            if search.bounds not in content:
                content[search.bounds] = read_json(Path(search.bounds))
            stored = content[search.bounds]
            statuses[configuration] = status_of(stored, configuration, search, machine)
        return statuses

    def _is_skipped(self, status: Status) -> bool:
        if self._settings.common.get("force"):
            return False
        if status.failure is None:
            return status.state == "done"
        return self._settings.retry_failed not in (ALL, status.failure.error)

    def _work(
        self, worker: Worker, statuses: Mapping[Configuration, Status], observer: SweepProgress
    ) -> None:
        """Explore configurations until none is left."""
        configuration = None
        try:
            while not self._stop.is_set():
                configuration = self._queue.take(worker.model, configuration)
                if configuration is None:
                    break
                try:
                    self._explore(worker, configuration, statuses[configuration], observer)
                finally:
                    self._queue.finish(configuration)
        except Stopped:
            pass
        except BaseException as error:  # A defect must not leave the other threads running.
            self._defects.append(error)
            self._stop.set()
        finally:
            worker.close()

    def _explore(
        self, worker: Worker, configuration: Configuration, status: Status, observer: SweepProgress
    ) -> None:
        observer.on_start(configuration, status)
        began = time.monotonic()
        answer = worker.explore(
            self._settings.search_settings(configuration),
            lambda line: observer.on_line(configuration, line),
            self._stop,
        )
        seconds = time.monotonic() - began
        self._record(configuration, answer)
        observer.on_done(configuration, answer, seconds)
        if answer.is_of_model:
            for other in self._queue.withdraw(configuration.model):
                self._record(other, answer)
                observer.on_done(other, answer, 0.0)

    def _record(self, configuration: Configuration, answer: Answer) -> None:
        """Store an answer; it is on disk when this returns."""
        search = self._settings.search_settings(configuration)
        path, failed = Path(search.bounds), configuration.failed_key
        if answer.entry is None:
            assert answer.failure is not None
            failure = replace(
                answer.failure,
                latency_only=search.latency_only,
                asked=speedup_bounds.asked(search),
            )
            speedup_bounds.save_failure(path, failed, failure)
            with self._lock:
                self._failed += 1
            return
        speedup_bounds.save(path, answer.key, answer.label, answer.entry, failed)
        if answer.winner is not None:
            search_results.save_winner(Path(search.output), answer.key, answer.winner)
