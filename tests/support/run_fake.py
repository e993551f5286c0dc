"""Run `accel-explore` with the fake worker in place of the real one: `run_fake.py ARGUMENTS`."""

import sys
from pathlib import Path

import psutil

from accel_search.explore_upper_bounds import main
from accel_search.sweep import worker_process

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "tests.support.fake_worker")


def is_gone(pid):
    """Tell whether a process has ended; an orphan's exit code may wait for ever to be taken."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


if __name__ == "__main__":
    worker_process.COMMAND = COMMAND
    sys.exit(main())
