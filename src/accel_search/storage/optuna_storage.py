"""Opening an Optuna storage so that neither a kill nor another process can spoil its making."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from filelock import FileLock

from accel_search.errors import first_line

if TYPE_CHECKING:
    import optuna

WAIT_SECONDS = 60.0
"""How long a writer waits for another one of the same SQLite file."""


def open_storage(url: str | None) -> optuna.storages.BaseStorage:
    """Open a storage; an SQLite file that is not there is made.

    Optuna makes its tables one by one. A process that is killed in between leaves a database
    without the indexes that keep a study's name unique, and the study is then begun twice and
    cannot be opened again; two processes that do it at once are in each other's way. So the
    tables are made in a file beside it, under a lock, and put in place when they are complete.

    Args:
        url: Optuna storage URL; None is memory.

    Raises:
        Exception: Whatever the driver raises.
    """
    import optuna

    path = sqlite_file(url)
    if url is None or path is None:
        return optuna.storages.get_storage(url)
    patient = {"connect_args": {"timeout": WAIT_SECONDS}}
    with _alone(path):
        if not path.exists() or not path.stat().st_size:
            _make(path)
        storage = optuna.storages.RDBStorage(url, engine_kwargs=patient)
    return optuna.storages.get_storage(storage)


def reason(error: BaseException) -> str:
    """Return what a driver said, below the layers that only pass it on."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def sqlite_url(path: str | Path) -> str:
    """Return the storage URL of an SQLite file, whatever its folder is called."""
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")


def sqlite_file(url: str | None) -> Path | None:
    """Return the file that a URL names; None where it is of another kind, or in memory."""
    if url is None or not url.startswith("sqlite"):
        return None
    name = url.partition(":///")[2].partition("?")[0]
    return None if name in ("", ":memory:") else Path(unquote(name))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from making the same file for the length of a `with` block."""
    if not os.access(path.parent, os.W_OK):
        yield  # Nothing can be made there; SQLite says what is wrong, or only reads.
        return
    with FileLock(f"{path}.lock", timeout=WAIT_SECONDS):
        yield


def _make(path: Path) -> None:
    """Make the tables of an empty storage, all of them or none."""
    import optuna

    if not os.access(path.parent, os.W_OK):
        return
    unfinished = path.with_name(f"{path.name}.unfinished")
    for file in (unfinished, unfinished.with_name(f"{unfinished.name}-journal")):
        file.unlink(missing_ok=True)  # Of a process that was killed here.
    optuna.storages.RDBStorage(sqlite_url(unfinished)).engine.dispose()
    unfinished.replace(path)
