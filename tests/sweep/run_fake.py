"""Run `accel-explore` with the fake worker in place of the real one: `run_fake.py ARGUMENTS`."""

import sys
from pathlib import Path

from accel_search.explore_upper_bounds import main
from accel_search.sweep import child

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "tests.sweep.fake_worker")

if __name__ == "__main__":
    child.COMMAND = COMMAND
    sys.exit(main())
