"""Measure what the harness adds to the bare calls that it makes, and what trials leave behind.

    python scripts/benchmarks/bench_harness.py
    python scripts/benchmarks/bench_harness.py --pipe SDXL --latency_only --batch_size 1 --trials 50

The evaluator itself keeps account of the seconds spent inside pipeline and scoring calls; what is
left of its wall time is the harness: drawing noise, applying and undoing, checks, bookkeeping.
With `--trials` that many points of the joint space, drawn at random, are measured one after the
other, and the memory in use after each is looked at. `--latency_only` takes random weights at full
size and scores nothing.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Iterator

import torch

from accel_search.core.candidate import Candidate
from accel_search.runtime.measuring.evaluator import PipelineEvaluator
from accel_search.runtime.memory import SETTLING_TRIALS, GrowthWatch, release
from accel_search.runtime.workbench import open_evaluator
from accel_search.search.space import JointSpace
from accel_search.settings import Settings

CANDIDATES = (
    Candidate({"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}),
    Candidate({"tgate": {"gate_step": 10, "sp_interval": 3, "fi_interval": 2, "warmup": 2}}),
    Candidate({"tome": {"ratio": 0.3, "max_downsample": 1}}),
)


def main() -> None:
    """Print the harness's share of the time of a baseline and of each trial, and the memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--pipe", default="demo")
    parser.add_argument("--num_samples", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--timing_pairs", type=int, default=3)
    parser.add_argument("--latency_only", action="store_true")
    parser.add_argument("--trials", type=int, default=0)
    options = parser.parse_args()
    settings = Settings(
        pipe=options.pipe,
        steps=options.steps,
        timing_pairs=options.timing_pairs,
        num_samples=options.num_samples,
        held_out_samples=0,
        batch_size=options.batch_size,
        latency_only=options.latency_only,
    )
    evaluator = open_evaluator(settings, logging.getLogger("bench"))
    device = torch.device(evaluator.workload.device)
    watch = GrowthWatch(device, logging.getLogger("bench"))
    peaks, levels = [], []
    before = (0.0, 0.0)
    for candidate in (None, *_candidates(evaluator, options.trials)):
        found = evaluator.baseline() if candidate is None else evaluator.measure(candidate)
        account = evaluator.accounting
        calls = account.pipeline_seconds + account.scoring_seconds + account.comparing_seconds
        spent, inside = account.total_seconds - before[0], calls - before[1]
        before = (account.total_seconds, calls)
        release(device)
        levels.append(watch.bytes_in_use())
        peaks.append(found.peak_memory_bytes or 0)
        memory = f"{levels[-1] / 2**20:9,.1f} MiB in use" if options.trials else ""
        shown = f"{candidate or 'baseline'!s:90} harness adds {spent / inside - 1:6.2%}  {memory}"
        print(shown.rstrip(), flush=True)
    print(f"{'all':90} harness adds {before[0] / before[1] - 1:6.2%}")
    if options.trials:
        settled, last = levels[SETTLING_TRIALS], levels[-1]
        print(
            f"memory in use after trial {SETTLING_TRIALS}: {settled / 2**20:,.1f} MiB, after trial "
            f"{options.trials}: {last / 2**20:,.1f} MiB, most in between: "
            f"{max(levels) / 2**20:,.1f} MiB; highest peak of a call: {max(peaks) / 2**20:,.1f} "
            f"MiB, of the bare one {peaks[0] / 2**20:,.1f} MiB"
        )


def _candidates(evaluator: PipelineEvaluator, trials: int) -> Iterator[Candidate]:
    if not trials:
        yield from CANDIDATES
        return
    space = JointSpace(("deepcache", "tgate", "tome"), evaluator.workload)
    for position in random.Random(0).sample(range(len(space)), trials):
        yield space.candidate_at(position)


if __name__ == "__main__":
    main()
