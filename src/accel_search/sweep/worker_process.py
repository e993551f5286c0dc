"""A worker subprocess in its own process group: gets jobs, answers in files, ends as a whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from accel_search.sweep.answer import Answer

COMMAND = (sys.executable, "-m", "accel_search.sweep.worker")
POLL_SECONDS = 0.05
GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL."""
TAIL = 12
"""Last lines of output, for a failure's message."""


class Died(Exception):
    """The process ended without an answer."""

    def __init__(self, exit_code: int, tail: Sequence[str]) -> None:
        self.exit_code = exit_code
        self.tail = tuple(tail)
        super().__init__(describe_exit(exit_code))


class TimedOut(Exception):
    """No answer came in time; the process has been ended."""


class Stopped(Exception):
    """The sweep was stopped; the process has been ended."""


class Child:
    """One worker process.

    Args:
        arguments: Further ones for the command.
        environment: Added to this process's own.
        on_line: Receives each line of its output as it is printed.
        command: Program and arguments, as a list; no shell is involved. None is `COMMAND`.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] = lambda line: None,
        command: Sequence[str] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="accel-explore-")
        self._jobs = 0
        self._ended = False
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._process = subprocess.Popen(  # noqa: S603
            [*(command or COMMAND), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            bufsize=1,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,
        )
        self._pump = threading.Thread(target=self._read, args=(on_line,), daemon=True)
        self._pump.start()

    @property
    def is_alive(self) -> bool:
        """Return whether the process can take a job."""
        return self._process.poll() is None

    def ask(self, job: Mapping[str, Any], timeout: float, stop: threading.Event) -> Answer:
        """Send a job, all but its `answer`, and wait for it at most `timeout` seconds.

        Raises:
            Died: The process ended without an answer.
            TimedOut, Stopped: The process has been ended.
        """
        self._jobs += 1
        self._tail.clear()
        path = Path(self._folder.name) / f"{self._jobs}.json"
        assert self._process.stdin is not None
        with suppress(OSError):  # A process that has ended is handled below.
            self._process.stdin.write(json.dumps({**job, "answer": str(path)}) + "\n")
            self._process.stdin.flush()
        deadline = time.monotonic() + timeout
        while True:
            ended = self._process.poll()  # Before the file, which may appear in between.
            if path.exists():
                return Answer.from_dict(json.loads(path.read_text(encoding="utf-8")))
            if ended is not None:
                self.end()
                raise Died(ended, self._tail)
            if stop.is_set():
                self.end()
                raise Stopped
            if time.monotonic() > deadline:
                self.end()
                raise TimedOut
            time.sleep(POLL_SECONDS)

    def end(self) -> None:
        """End the process and all that it started; a second call does nothing."""
        if self._ended:
            return
        self._ended = True
        process = self._process
        with suppress(psutil.NoSuchProcess):
            # A grandchild may have left the group.
            others = psutil.Process(process.pid).children(recursive=True)
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            for other in others:
                with suppress(psutil.NoSuchProcess):
                    other.kill()
        # The group outlives its leader while any member does.
        self._signal(signal.SIGKILL)
        process.wait()
        self._pump.join(GRACE_SECONDS)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        self._folder.cleanup()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _read(self, on_line: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # A progress bar redraws itself with carriage returns: keep its last state.
            text = line.rstrip("\n").rpartition("\r")[2].rstrip()
            if text:
                self._tail.append(text)
                on_line(text)


def describe_exit(code: int) -> str:
    """Write how a process ended: `ended by SIGSEGV`, `ended with code 1`."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ": the system may have run out of memory" if -code == signal.SIGKILL else ""
    return f"ended by {name}{hint}"
