"""Measure what the harness adds to the bare pipeline and scoring calls that it makes.

    python scripts/bench_harness.py

The evaluator itself keeps account of the seconds spent inside pipeline and scoring calls; what is
left of its wall time is the harness: drawing noise, applying and undoing, checks, bookkeeping.
"""

from __future__ import annotations

import argparse
import logging

from accel_search.records import Candidate
from accel_search.runtime.workbench import open_evaluator
from accel_search.settings import Settings

CANDIDATES = (
    Candidate({"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}),
    Candidate({"tgate": {"gate_step": 10, "sp_interval": 3, "fi_interval": 2, "warmup": 2}}),
    Candidate({"tome": {"ratio": 0.3, "max_downsample": 1}}),
)


def main() -> None:
    """Print the harness's share of the time of a baseline and of each accelerator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--pipe", default="demo")
    parser.add_argument("--num_samples", type=int, default=16)
    options = parser.parse_args()
    settings = Settings(pipe=options.pipe, num_samples=options.num_samples, held_out_samples=0)
    evaluator = open_evaluator(settings, logging.getLogger("bench"))
    before = (0.0, 0.0)
    for candidate in (None, *CANDIDATES):
        if candidate is None:
            evaluator.baseline()
        else:
            evaluator.measure(candidate)
        account = evaluator.accounting
        total, calls = account.total_seconds, account.pipeline_seconds + account.scoring_seconds
        spent, inside = total - before[0], calls - before[1]
        before = (total, calls)
        print(f"{candidate or 'baseline'!s:70} harness adds {spent / inside - 1:6.2%}")
    account = evaluator.accounting
    inside = account.pipeline_seconds + account.scoring_seconds
    print(f"{'all':70} harness adds {account.total_seconds / inside - 1:6.2%}")


if __name__ == "__main__":
    main()
