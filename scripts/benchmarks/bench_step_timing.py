r"""Compare speedups from single UNet calls with those from pairs of whole calls.

    python scripts/benchmarks/bench_step_timing.py record --cells SD1.5:1,SD1.5:4,SDXL:4 \
        --rounds 20 --out build/step_timing.json
    python scripts/benchmarks/bench_step_timing.py compare build/step_timing.json

`record` calls, for each setting, the baseline pipeline, the accelerated one and the accelerated one
with plain UNet calls in between, in turns, and keeps every time. Weights are random: their values
do not bear on time. `--busy` lets other processes load the GPU or the host's cores on and off.
`compare` takes the mean of all pairs as the truth, and judges the interval of one call.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from accel_search.core.candidate import Candidate
from accel_search.core.step_times import StepTimes, steps_to_probe
from accel_search.core.timing_noise import TimingNoise, paired_log_ratios
from accel_search.core.trial import Measurement

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "deepcache": [
        {"deepcache": {"cache_interval": interval, "cache_branch_id": branch}}
        for interval, branch in ((2, 1), (3, 0), (4, 2), (5, 1))
    ],
    "tgate": [
        {
            "tgate": dict(
                zip(("gate_step", "sp_interval", "fi_interval", "warmup"), own, strict=True)
            )
        }
        for own in ((6, 2, 1, 2), (8, 3, 2, 3), (10, 5, 5, 1), (13, 4, 1, 2))
    ],
    "tome": [
        {"tome": {"ratio": ratio, "max_downsample": levels}}
        for ratio, levels in ((0.5, 1), (0.6, 2))
    ],
}
SETTINGS["joint"] = [
    SETTINGS["deepcache"][1] | SETTINGS["tgate"][1],
    SETTINGS["deepcache"][0] | SETTINGS["tome"][1],
]


def record(asked: argparse.Namespace) -> None:
    """Time all settings in every cell and write the raw times."""
    warnings.filterwarnings("ignore")
    content: dict[str, Any] = {"busy": asked.busy, "cells": []}
    settings = [point for name in asked.settings.split(",") for point in SETTINGS[name]]
    candidates = [Candidate(point) for point in settings[:: asked.every]]
    for cell in asked.cells.split(","):
        bench = Bench(*cell.split(":"), asked.steps)
        for candidate in (Candidate(), *candidates):
            bench.call(candidate, probed=False)
            bench.call(candidate, probed=True)
        calls: dict[str, list[dict[str, Any]]] = {}
        content |= {"device": bench.device_name}
        content["cells"].append({"cell": cell, "workload": asdict(bench.workload), "calls": calls})
        until = time.monotonic() + asked.seconds
        with neighbours(asked.busy):
            for number in range(asked.rounds):
                for candidate in candidates:
                    pair = [("baseline", Candidate()), ("own", candidate)]
                    row = {
                        name: bench.call(called, probed=False)
                        for name, called in (pair if number % 2 else pair[::-1])
                    }
                    row["probed"] = bench.call(candidate, probed=True)
                    calls.setdefault(str(candidate), []).append(row)
                # A run that is ended from outside keeps its rounds.
                asked.out.parent.mkdir(parents=True, exist_ok=True)
                asked.out.write_text(json.dumps(content) + "\n", encoding="utf-8")
                if time.monotonic() > until:
                    break
        print(f"{cell}: {len(calls)} settings, {number + 1} rounds", flush=True)
        del bench


class Bench:
    """One pipeline.

    Args:
        model: `demo`, or one of full size with random weights.
        batch: Images a call.
        steps: Denoising steps.
    """

    def __init__(self, model: str, batch: str, steps: int) -> None:
        from accel_search.accelerators.compose import apply_candidate
        from accel_search.runtime.devices import execution_device
        from accel_search.runtime.loading.pipelines import (
            describe_workload,
            load_pipeline,
            random_pipeline,
        )
        from accel_search.runtime.measuring.calls import Accounting, Caller
        from accel_search.runtime.provenance import machine
        from accel_search.runtime.quiet import quiet_libraries
        from accel_search.runtime.workbench import timing_prompts
        from accel_search.settings import Settings

        options = Settings(pipe=model, batch_size=int(batch), latency_only=True, steps=steps)
        with quiet_libraries():
            if model == "demo":
                pipe, _ = load_pipeline(options, logging.getLogger())
            else:
                pipe = random_pipeline(options)
        self.workload = describe_workload(pipe, options, None)
        self.device_name = machine(execution_device(pipe))["device_name"]
        self._prompts = timing_prompts(self.workload.batch_size).search
        self._caller = Caller(pipe, apply_candidate, Accounting())

    def call(self, candidate: Candidate, probed: bool) -> dict[str, Any]:
        """Return the times of one call."""
        from accel_search.accelerators.computation import describe_steps, numbered

        kinds = numbered(describe_steps(candidate, self.workload))
        timer = self._caller.timer(steps_to_probe(kinds) if probed else ())
        assert timer is not None
        _, seconds = self._caller.call(self.workload, self._prompts, candidate, timer=timer)
        images = self.workload.batch_size
        times = timer.times(seconds * images, images, kinds, self.workload.unet_calls)
        assert times is not None
        return {"seconds": seconds, "times": asdict(times)}


@contextmanager
def neighbours(busy: str) -> Iterator[None]:
    """Load the machine on and off for the length of a block."""
    context = multiprocessing.get_context("spawn")
    counts = {"none": 0, "gpu": 1, "host": multiprocessing.cpu_count()}
    loads = [context.Process(target=load, args=(busy,), daemon=True) for _ in range(counts[busy])]
    for process in loads:
        process.start()
    if loads:
        time.sleep(15)  # Until they compute.
    try:
        yield
    finally:
        for process in loads:
            process.kill()


def load(busy: str) -> None:
    """Compute for 0.7 s in every 1.5 s."""
    import torch

    torch.set_num_threads(1)
    square = torch.randn((4096, 4096), device="cuda") if busy == "gpu" else torch.randn((512, 512))
    while True:
        until = time.perf_counter() + 0.7
        while time.perf_counter() < until:
            square @ square
            if busy == "gpu":
                torch.cuda.synchronize()
        time.sleep(0.8)


def compare(asked: argparse.Namespace) -> None:
    """Print, for each cell, how often the interval of one call holds the truth, and its width."""
    for path in asked.files:
        content = json.loads(path.read_text(encoding="utf-8"))
        print(f"{path.name}: {content['device']}, other load: {content['busy']}")
        for cell in content["cells"]:
            judge(cell["cell"], cell["calls"])


def judge(cell: str, calls: dict[str, list[dict[str, Any]]]) -> None:
    """Print what one cell shows: of each round, as a search would see it, and in all."""
    truths = {name: measured(rows) for name, rows in calls.items()}
    rounds = min(map(len, calls.values()))
    held, widths, whole_widths = [], [], []
    rows = {name: [] for name in calls}
    for turn in range(rounds):
        # Eight settings judge; of the others, and in their place, one call without a pair counts.
        judges = [measured(calls[name][turn : turn + 1]) for name in list(calls)[:8]]
        before = [calls[name][turn]["baseline"]["seconds"] for name in calls][:5]
        baseline = Measurement(tuple(before[1:]), tuple(before[:-1]), (), 1)
        noise = TimingNoise([baseline], judges)
        for name, truth in truths.items():
            timed = noise.timed(single(calls[name][turn - 1]))
            if timed.within is None:
                continue
            ratios = paired_log_ratios(truth)
            error = ratios.std(ddof=1) / math.sqrt(len(ratios))
            log, high = math.log(timed.within.value), math.log(timed.within.high)
            rows[name].append(log)
            # The truth is known to its own standard error.
            held.append(abs(log - ratios.mean()) <= math.hypot(high - log, 1.96 * error))
            widths.append(high - log)
            whole_widths.append(1.96 * ratios.std(ddof=1))
    print(f"  {cell}, {rounds} rounds of {len(calls)} settings")
    for name, logs in rows.items():
        ratios = paired_log_ratios(truths[name])
        print(
            f"    {name:95} pairs {math.exp(ratios.mean()):5.2f} "
            f"(sd of one {ratios.std(ddof=1):6.1%})  single calls {math.exp(np.mean(logs)):5.2f} "
            f"(sd {np.std(logs, ddof=1):6.1%})"
        )
    print(
        f"    the interval of one call holds the truth in {np.mean(held):.1%} of {len(held)}; "
        f"median half-width ±{np.median(widths):.1%}, of one pair ±{np.median(whole_widths):.1%}"
    )


def measured(rows: list[dict[str, Any]]) -> Measurement:
    """Return a setting as timed both ways."""
    return Measurement(
        tuple(row["own"]["seconds"] for row in rows),
        tuple(row["baseline"]["seconds"] for row in rows),
        (),
        1,
        step_times=tuple(StepTimes.from_dict(row["probed"]["times"]) for row in rows),
    )


def single(row: dict[str, Any]) -> Measurement:
    """Return a setting as timed by one call, without a pair."""
    times = StepTimes.from_dict(row["probed"]["times"])
    return Measurement((times.call,), (), (), 1, step_times=(times,))


def main() -> None:
    """Record, or compare what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record")
    recording.add_argument("--cells", default="SD1.5:1,SD1.5:4,SDXL:4", help="model:batch")
    recording.add_argument("--settings", default=",".join(SETTINGS))
    recording.add_argument("--every", type=int, default=1, help="take one setting of so many")
    recording.add_argument("--steps", type=int, default=20)
    recording.add_argument("--rounds", type=int, default=20)
    recording.add_argument("--seconds", type=float, default=math.inf, help="most for each cell")
    recording.add_argument("--busy", choices=("none", "gpu", "host"), default="none")
    recording.add_argument("--out", type=Path, required=True)
    recording.set_defaults(run=record)
    comparing = commands.add_parser("compare")
    comparing.add_argument("files", type=Path, nargs="+")
    comparing.set_defaults(run=compare)
    asked = parser.parse_args()
    asked.run(asked)


if __name__ == "__main__":
    main()
