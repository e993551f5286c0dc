"""Workers that explore one configuration at a time, in a process of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from accel_search.cli.restart import Carried
from accel_search.settings import Settings
from accel_search.sweep.answer import Answer, failure
from accel_search.sweep.machine import choose_gpus, shares, visible_gpus
from accel_search.sweep.settings import SweepSettings
from accel_search.sweep.worker_process import Child, Died, TimedOut

OnLine = Callable[[str], None]


class Worker(Protocol):
    """Explores one configuration at a time."""

    @property
    def model(self) -> str | None:
        """Return the loaded model; None if there is none."""

    def explore(self, settings: Settings, on_line: OnLine, stop: threading.Event) -> Answer:
        """Explore a configuration; every failure is an answer.

        `on_line` receives each line that its process prints.

        Raises:
            Stopped: `stop` was set.
        """

    def probe(self, settings: Settings, stop: threading.Event) -> Mapping[str, Any] | None:
        """Return the fields of a provenance that depend on the machine; None if unknown."""

    def close(self) -> None:
        """End its process."""


@dataclass
class LocalWorker:
    """A process of this machine, restarted where necessary.

    That is for another model, after a failure, whose effects on the process are unknown, after a
    hang, and for every configuration with the isolation `config`.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    """E.g. its only GPU."""
    arguments: Sequence[str] = ()
    isolation: str = "model"
    """`model` or `config`."""
    timeout: float = 3600.0
    """Seconds allowed for one configuration."""
    command: Sequence[str] | None = None
    """Command of the process; None is the worker's own."""
    model: str | None = None
    _child: Child | None = None
    _on_line: OnLine = lambda line: None

    def explore(self, settings: Settings, on_line: OnLine, stop: threading.Event) -> Answer:
        """Explore a configuration in the current process, or in a new one."""
        if self.model not in (None, settings.pipe) or self.isolation == "config":
            self.close()
        self._on_line = on_line
        self.model = settings.pipe
        began = time.monotonic()
        try:
            answer = self._ask_until_done(settings, stop)
        except TimedOut:
            return Answer(
                failure=failure(
                    "timeout",
                    f"no answer within --timeout of {self.timeout:g} s: give it more, or less to "
                    "do; run it again with --retry_failed timeout, it goes on where it was ended",
                    seconds=time.monotonic() - began,
                )
            )
        except Died as error:
            return Answer(
                failure=failure(
                    "subprocess_error",
                    f"its process {error}; its last lines: " + " | ".join(error.tail),
                    seconds=time.monotonic() - began,
                    exit_code=error.exit_code,
                )
            )
        if answer.failure is not None:
            self.close()
        return answer

    def probe(self, settings: Settings, stop: threading.Event) -> Mapping[str, Any] | None:
        """Return the fields of a provenance that depend on the machine; None if unknown."""
        try:
            answer = self._ask({"probe": True, "options": asdict(settings)}, stop)
        except (Died, TimedOut):
            return None
        return answer.machine

    def close(self) -> None:
        """End the current process, if there is one."""
        if self._child is not None:
            self._child.end()
        self._child, self.model = None, None

    def _receive(self, line: str) -> None:
        self._on_line(line)  # Of the current configuration.

    def _ask_until_done(self, settings: Settings, stop: threading.Event) -> Answer:
        """Start one process after the other, as long as a candidate hangs in each."""
        deadline = time.monotonic() + self.timeout
        carried: tuple[int, float] = Carried()
        while True:
            job = {"options": asdict(settings), "carried": carried}
            self.model = settings.pipe
            answer = self._ask(job, stop, deadline - time.monotonic())
            if answer.carried is None:
                return answer
            self.close()
            carried = answer.carried

    def _ask(
        self, job: Mapping[str, Any], stop: threading.Event, timeout: float | None = None
    ) -> Answer:
        if self._child is None or not self._child.is_alive:
            self._child = Child(self.arguments, self.environment, self._receive, self.command)
        try:
            return self._child.ask(job, self.timeout if timeout is None else timeout, stop)
        except BaseException:
            self.close()
            raise


def local_workers(settings: SweepSettings) -> list[LocalWorker]:
    """Return the workers of a sweep: one per GPU, some on the CPU, or one.

    Raises:
        ConfigurationError: A requested GPU does not exist.
    """
    environments: list[dict[str, str]] = [{}]
    if settings.gpus is not None:
        gpus = choose_gpus(settings.gpus, visible_gpus())
        # Each sees one GPU as its cuda:0: no worker can take another's memory.
        environments = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus]
    elif settings.workers is not None:
        environments = [{} for _ in range(settings.workers)]
    several = len(environments) > 1
    cores = shares(len(environments)) if several else [[]]
    turns = turns_folder(settings.run_dir) if several else []
    return [
        LocalWorker(
            environment,
            [*(["--cores", ",".join(map(str, own))] if own else []), *turns],
            settings.isolation,
            settings.timeout,
        )
        for environment, own in zip(environments, cores, strict=True)
    ]


def turns_folder(run_dir: str) -> list[str]:
    """Return the arguments by which the workers of a sweep share a timing lock."""
    return ["--turns", str(Path(run_dir).absolute() / "turns")]
