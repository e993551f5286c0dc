"""Workers on the nodes of a Ray cluster."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accel_search.cli.signals import end_as_interrupted
from accel_search.errors import ConfigurationError, first_line
from accel_search.settings import Settings
from accel_search.sweep.answer import Answer, failure
from accel_search.sweep.local_workers import LocalWorker, OnLine, turns_folder
from accel_search.sweep.settings import SweepSettings
from accel_search.sweep.worker import settings_of
from accel_search.sweep.worker_process import Stopped

POLL_SECONDS = 0.2
KNOCK_SECONDS = 10.0
PAUSE_SECONDS = 5.0
RETRIES = 2
"""Further nodes that a configuration is given to after its own was lost."""


class Explorer:
    """The actor: a local worker on its node, whose lines are fetched while it works."""

    def __init__(
        self,
        arguments: Sequence[str],
        isolation: str,
        timeout: float,
        command: Sequence[str] | None = None,
    ) -> None:
        self._worker = LocalWorker({}, arguments, isolation, timeout, command)
        self._lines: deque[str] = deque()
        self._stop = threading.Event()

    def explore(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Explore a configuration and return its answer, as plain JSON types."""
        answer = self._worker.explore(settings_of(options), self._lines.append, self._stop)
        return answer.as_dict()

    def lines(self) -> list[str]:
        """Return the lines that were printed since the last call."""
        return [self._lines.popleft() for _ in range(len(self._lines))]

    def end(self) -> None:
        """End the current process."""
        self._stop.set()
        self._worker.close()


class RayWorker:
    """An actor of the cluster, restarted on another node if its own is lost.

    Args:
        gpus: Its GPUs, 0 or 1; the others are as `LocalWorker`'s.
    """

    def __init__(
        self,
        gpus: int,
        arguments: Sequence[str],
        isolation: str,
        timeout: float,
        command: Sequence[str] | None = None,
    ) -> None:
        self.model: str | None = None
        self._gpus = gpus
        self._arguments = (arguments, isolation, timeout, command)
        self._actor: Any = None

    def explore(self, settings: Settings, on_line: OnLine, stop: threading.Event) -> Answer:
        """Explore a configuration on some node; a lost node is an answer after two more tries."""
        from ray.exceptions import RayActorError

        # A relative path may mean another folder on the node.
        settings = replace(settings, run_dir=str(Path(settings.run_dir).absolute()))
        self.model = settings.pipe
        lost = ""
        for _ in range(1 + RETRIES):
            try:
                return self._ask(settings, on_line, stop)
            except RayActorError as error:
                lost = first_line(error)
                on_line(f"WARNING: its node or actor was lost ({lost}); another one takes over")
                self._actor = None
                stop.wait(PAUSE_SECONDS)  # Otherwise it may be given to the lost node again.
        return Answer(
            failure=failure(
                "subprocess_error",
                f"its node was lost {1 + RETRIES} times: {lost}",
                seconds=0.0,
            )
        )

    def probe(self, settings: Settings, stop: threading.Event) -> Mapping[str, Any] | None:
        """Return None: any node of the cluster may measure, and they differ."""
        return None

    def close(self) -> None:
        """End the actor and its process."""
        import ray

        if self._actor is not None:
            with suppress(Exception):  # The node may be lost.
                ray.get(self._actor.end.remote(), timeout=20)
            ray.kill(self._actor)
        self._actor, self.model = None, None

    def _ask(self, settings: Settings, on_line: OnLine, stop: threading.Event) -> Answer:
        import ray

        if self._actor is None:
            # Three threads: one explores, one hands out lines, one ends it.
            actor = ray.remote(Explorer).options(
                num_gpus=self._gpus, num_cpus=1, max_concurrency=3, scheduling_strategy="SPREAD"
            )
            self._actor = actor.remote(*self._arguments)
        task = self._actor.explore.remote(asdict(settings))
        lines = self._actor.lines.remote()
        while True:
            is_done = bool(ray.wait([task], timeout=POLL_SECONDS)[0])
            # An actor that waits for a node does not answer: never block on it.
            if is_done or ray.wait([lines], timeout=0)[0]:
                for line in ray.get(lines):
                    on_line(line)
                lines = self._actor.lines.remote()
            if is_done:
                # Only a request after the end returns the last lines.
                for line in ray.get(lines):
                    on_line(line)
                return Answer.from_dict(ray.get(task))
            if stop.is_set():
                self.close()
                raise Stopped


@contextmanager
def ray_workers(settings: SweepSettings) -> Iterator[Sequence[RayWorker]]:
    """Connect to a Ray cluster, or start one here, and return a worker for each of its GPUs.

    Without GPUs there are `--workers`, each with a CPU.

    Raises:
        ConfigurationError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError(
            "--executor ray: ray is not installed; pip install 'accel-search[ray]'"
        ) from error
    if settings.gpus is not None:
        raise ConfigurationError("--gpus: is for --executor local; Ray gives out its GPUs itself")
    address = settings.ray_address
    # Ray lowers its workers' priority, which would slow their timings down.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        _knock(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"--ray_address {address}: no cluster answers there ({first_line(error)})"
        ) from error
    if threading.current_thread() is threading.main_thread():
        # Ray handles SIGTERM itself, with an exit code of its own.
        end_as_interrupted(signal.SIGTERM)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if settings.common.get("device") == "cpu":
        gpus = 0
    count = settings.workers or gpus or 1
    turns = turns_folder(settings.run_dir) if count > 1 else []
    workers = [
        RayWorker(1 if gpus else 0, turns, settings.isolation, settings.timeout)
        for _ in range(count)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise OSError if nothing listens there: Ray itself would try for minutes.

    Args:
        address: `host:port`, optionally after `ray://`; others are left to Ray.
    """
    match = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address or "")
    if match:
        socket.create_connection((match[1], int(match[2])), timeout=KNOCK_SECONDS).close()
