"""The sweep itself: which configuration is next, on which worker, and what is written down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from accel_search import bounds, results
from accel_search.result_files import read_json
from accel_search.sweep.answers import Answer
from accel_search.sweep.child import Stopped
from accel_search.sweep.settings import ALL, SweepSettings
from accel_search.sweep.status import Status, status_of
from accel_search.sweep.table import Configuration
from accel_search.sweep.workers import Worker

TICK_SECONDS = 0.2


class Observer(Protocol):
    """Is told what happens, from several threads."""

    def on_skip(self, configuration: Configuration, status: Status) -> None:
        """Tell that a configuration is not explored: it is done, or failed before."""

    def on_start(self, configuration: Configuration, status: Status) -> None:
        """Tell that a configuration begins."""

    def on_line(self, configuration: Configuration, line: str) -> None:
        """Tell what its process printed."""

    def on_done(self, configuration: Configuration, answer: Answer, seconds: float) -> None:
        """Tell what it found, or how it failed."""


@dataclass
class _State:
    """What the threads share; under the lock."""

    pending: list[Configuration] = field(default_factory=list)
    in_hand: dict[str, int] = field(default_factory=dict)
    """Model -> workers that are on it."""
    failed: int = 0
    defects: list[BaseException] = field(default_factory=list)


class Sweep:
    """Explores every open configuration of a table; each result is on disk before the next begins.

    Args:
        settings: The table and the options.
        workers: Each is asked for one configuration at a time, by a thread of its own.
        machine: Returns the machine's part of a provenance; stored results of another are not
            taken. None, or a machine that cannot be told, takes any. Asked once, where it matters.
    """

    def __init__(
        self,
        settings: SweepSettings,
        workers: Sequence[Worker],
        machine: Callable[[], Mapping[str, Any] | None] | None = None,
    ) -> None:
        self._settings = settings
        self._workers = workers
        self._ask_machine = machine
        self._machine: Mapping[str, Any] | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._state = _State()

    def run(self, observer: Observer) -> int:
        """Explore what is open and return how many configurations of the table stand as failed.

        Args:
            observer: Is told what happens.

        Raises:
            KeyboardInterrupt: It was interrupted; the workers' processes are ended.
        """
        statuses = self.statuses()
        for configuration, status in statuses.items():
            if self._is_skipped(status):
                observer.on_skip(configuration, status)
                self._state.failed += status.state == "failed"
            else:
                self._state.pending.append(configuration)
        threads = [
            threading.Thread(target=self._work, args=(worker, statuses, observer), daemon=True)
            for worker in self._workers[: max(1, len(self._state.pending))]
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
        if self._state.defects:
            raise self._state.defects[0]
        return self._state.failed

    def statuses(self) -> dict[Configuration, Status]:
        """Return what became of each configuration so far."""
        found = self._statuses(None)
        if self._ask_machine is not None and any(each.state == "done" for each in found.values()):
            self._machine, self._ask_machine = self._ask_machine(), None
        return found if self._machine is None else self._statuses(self._machine)

    def _statuses(self, machine: Mapping[str, Any] | None) -> dict[Configuration, Status]:
        settings = self._settings
        found = {}
        content: dict[str, dict[str, Any]] = {}
        for configuration in settings.table:
            search = settings.search_settings(configuration)
            if search.bounds not in content:
                content[search.bounds] = read_json(Path(search.bounds))
            found[configuration] = status_of(content[search.bounds], configuration, search, machine)
        return found

    def _is_skipped(self, status: Status) -> bool:
        if self._settings.common.get("force"):
            return False
        if status.failure is None:
            return status.state == "done"
        return self._settings.retry_failed not in (ALL, status.failure.get("error"))

    def _work(
        self, worker: Worker, statuses: Mapping[Configuration, Status], observer: Observer
    ) -> None:
        """Explore one configuration after the other until none is left."""
        try:
            while not self._stop.is_set():
                configuration = self._take(worker)
                if configuration is None:
                    break
                try:
                    self._explore(worker, configuration, statuses[configuration], observer)
                finally:
                    self._give_back(configuration)
        except Stopped:
            pass
        except BaseException as error:  # A defect here must not leave the others running.
            self._state.defects.append(error)
            self._stop.set()
        finally:
            worker.close()

    def _explore(
        self, worker: Worker, configuration: Configuration, status: Status, observer: Observer
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
            for other in self._withdraw(configuration.model):
                self._record(other, answer)
                observer.on_done(other, answer, 0.0)

    def _take(self, worker: Worker) -> Configuration | None:
        """Take the next configuration, one of the model that the worker has loaded if there is."""
        with self._lock:
            state = self._state
            preferred: list[Callable[[str], bool]] = [
                lambda model: model == worker.model,
                lambda model: not state.in_hand.get(model),
                lambda model: True,
            ]
            for fits in preferred:
                for configuration in state.pending:
                    if fits(configuration.model):
                        state.pending.remove(configuration)
                        count = state.in_hand.get(configuration.model, 0)
                        state.in_hand[configuration.model] = count + 1
                        return configuration
            return None

    def _give_back(self, configuration: Configuration) -> None:
        with self._lock:
            self._state.in_hand[configuration.model] -= 1

    def _withdraw(self, model: str) -> list[Configuration]:
        """Take all that is left of a model off the table."""
        with self._lock:
            found = [each for each in self._state.pending if each.model == model]
            self._state.pending = [each for each in self._state.pending if each.model != model]
            return found

    def _record(self, configuration: Configuration, answer: Answer) -> None:
        """Write an answer down: on disk when this returns."""
        search = self._settings.search_settings(configuration)
        path, failed = Path(search.bounds), configuration.failed_key
        if answer.entry is None:
            assert answer.failure is not None
            failure = dict(answer.failure) | {"latency_only": search.latency_only}
            bounds.save_failure(path, failed, failure)
            with self._lock:
                self._state.failed += 1
            return
        bounds.save(path, answer.key, answer.label, answer.entry, failed)
        if answer.winner is not None:
            results.save_winner(Path(search.output), answer.key, answer.winner)
