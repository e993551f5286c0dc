"""Real processes that run the programs on recorded tables, to be killed.

They are forked from a server that has imported the libraries, which takes most of a short run's
time otherwise; what is forked is a process like any other, with a life of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

import accel_search
from tests.support.recorded import JOURNAL

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(accel_search.__file__).resolve().parents[1]
MARK = "RELIABILITY_RUN"
"""Environment variable that tells which processes a run has started, and their children."""
SECONDS = 240.0
"""Longest that anything is waited for."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.preloaded"])


class Run:
    """A program at work in a folder of its own.

    Args:
        folder: Where it runs. What is the tests' own lies beside it, see `beside`.
        program: A function of `recorded` that takes arguments and returns an exit code.
        arguments: Of the command line.
        environment: Added to this process's own.
        strike: Kills the process at one of its own actions, for moments that no clock hits.
        stdout: Where its output goes; None is a file.
        user: Number of the user that it runs as; None is this one.
    """

    def __init__(
        self,
        folder: Path,
        program: Callable[[Sequence[str]], int],
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        strike: Strike | None = None,
        stdout: str | None = None,
        user: int | None = None,
    ) -> None:
        self.folder, self._beside = folder, beside(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._beside.mkdir(exist_ok=True)
        self._beside.chmod(0o777)
        for name in ("started", "output.txt", "errors.txt"):
            (self._beside / name).unlink(missing_ok=True)
        given = {
            "PYTHONPATH": os.pathsep.join((str(SOURCE), str(ROOT))),
            MARK: str(folder),
            JOURNAL: str(self._beside / "journal.jsonl"),
            **(environment or {}),
        }
        streams = (stdout or str(self._beside / "output.txt"), str(self._beside / "errors.txt"))
        self.process = _context.Process(
            target=_run,
            args=(str(folder), program, list(arguments), given, strike, streams, user),
        )
        self.process.start()

    def wait_until_started(self) -> None:
        started = self._beside / "started"
        wait_for(lambda: started.exists() or not self.process.is_alive(), "a run to start")

    def wait(self, seconds: float | None = None) -> int | None:
        """Return the exit code, below 0 a signal's; None if it is still running after `seconds`."""
        self.process.join(SECONDS if seconds is None else seconds)
        return self.process.exitcode

    @property
    def errors(self) -> str:
        return (self._beside / "errors.txt").read_text()

    @property
    def output(self) -> str:
        return (self._beside / "output.txt").read_text()


class Strike:
    """Ends a process by SIGKILL at the n-th of its own actions, or only counts them.

    Args:
        kind: `file`: it opens, renames or removes a file of its folder. `sql`: it is about to
            execute a statement, or to commit. `index`: it is about to execute the statement that
            makes studies' names unique, after the one that makes their table.
        at: Which one; 0 kills at none, and leaves their number in the file `strikes`.
    """

    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.at = kind, at
        self.count = 0

    def arm(self, folder: str) -> None:
        if self.kind == "file":
            prefix = folder + os.sep

            def hear(event, arguments):
                if event in ("open", "os.rename", "os.remove") and isinstance(arguments[0], str):
                    # Resolving links would open files itself.
                    path = os.path.abspath(arguments[0])  # noqa: PTH100
                    if path.startswith(prefix):
                        self.hit()

            sys.addaudithook(hear)
            return
        from sqlalchemy import Engine, event

        def execute(connection, cursor, statement, *others):
            if self.kind == "sql" or "INDEX ix_studies_study_name" in statement:
                self.hit()

        event.listen(Engine, "before_cursor_execute", execute)
        if self.kind == "sql":
            event.listen(Engine, "commit", lambda connection: self.hit())

    def hit(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def beside(folder: Path) -> Path:
    """Return where the tests' own files of a run lie: its folder may be full or read-only."""
    return folder.with_name(f"{folder.name}.told")


def _run(folder, program, arguments, environment, strike, streams, user):
    os.chdir(folder)
    os.environ.update(environment)
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    for number, name in enumerate(streams, 1):
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    sys.stdin = Path(os.devnull).open()
    threading.excepthook = sys.__excepthook__
    if strike is not None:
        strike.arm(folder)
    own = beside(Path(folder))
    (own / "started").touch()
    code = program(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    if strike is not None:
        (own / "strikes").write_text(str(strike.count))
    os._exit(code)


def wait_for(condition, what, seconds=SECONDS):
    """Wait until a condition holds, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.01)
    return found


def left(folder: Path) -> list[psutil.Process]:
    """Return the processes that runs in a folder have started and that are still alive."""
    found = []
    for each in psutil.process_iter():
        try:
            alive = each.status() != psutil.STATUS_ZOMBIE
            if alive and each.environ().get(MARK) == str(folder):
                found.append(each)
        except psutil.Error:
            continue
    return found
