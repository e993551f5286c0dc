"""One sweep at a time over one run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from accel_search.errors import ConfigurationError


@contextmanager
def only_one(run_dir: str | Path) -> Iterator[None]:
    """Keep other sweeps out of a run folder for the length of a `with` block.

    Two sweeps would explore the same configurations and disturb each other's timings.

    Raises:
        ConfigurationError: Another sweep uses it, or the folder cannot be made.
    """
    folder = Path(run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The system releases it however the process ends.
        lock = FileLock(folder / "sweep.lock", blocking=False)
        lock.acquire()
    except Timeout as error:
        raise ConfigurationError(
            f"--run_dir {run_dir}: another accel-explore is at work there; wait for it, or give "
            "another --run_dir and --bounds"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"--run_dir {run_dir}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
