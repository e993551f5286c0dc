r"""Time every accelerator and combination on full-size pipelines, with their peak memory.

    python scripts/benchmarks/bench_full_size.py --models SD1.5,SD2.1,SDXL \
        --out docs/data/full_size_h200.json

Weights are random: their values bear on neither time nor memory. In each cell of the table (model,
scheduler, steps, batch, dtype, attention kernel, compiled or not) the baseline pipeline is called
first and last and each setting in between, in turns; a figure is a median, and its noise how far
the bare calls lie apart. Rows are added to those that the file holds; a cell it holds is passed
over, so that a table can be made in several runs.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from accel_search.accelerators.compose import apply_candidate
from accel_search.core.candidate import Candidate
from accel_search.core.workload import Workload
from accel_search.errors import AccelSearchError
from accel_search.runtime.attention import describe_attention, use_kernel
from accel_search.runtime.compiling import compile_unet
from accel_search.runtime.loading.pipelines import describe_workload, random_pipeline
from accel_search.runtime.loading.schedulers import build_scheduler
from accel_search.runtime.measuring.calls import Accounting, Caller
from accel_search.runtime.memory import PeakMeter
from accel_search.runtime.provenance import machine
from accel_search.runtime.quiet import quiet_libraries
from accel_search.runtime.workbench import timing_prompts
from accel_search.settings import Settings

ALONE = {
    "deepcache": {"cache_interval": 3, "cache_branch_id": 0},
    "tgate": {"gate_step": 10, "sp_interval": 9, "fi_interval": 5, "warmup": 1},
    "tome": {"ratio": 0.5, "max_downsample": 2},
}
COMBINATIONS = [
    "+".join(names)
    for count in range(1, len(ALONE) + 1)
    for names in itertools.combinations(ALONE, count)
]
ALL_KINDS_OF_STEPS = 20
"""Steps within which each setting comes to all that it ever computes, so enough of a warm-up."""
MOST_TURNS = 4
"""Calls of each setting in a cell, if the bare ones do not last long enough before."""


def main() -> None:
    """Time every cell that is asked for and add it to the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", default="SD1.5,SD2.1,SDXL")
    parser.add_argument("--scheds", default="DDIM")
    parser.add_argument("--steps", default="20")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--dtype", default="float16", help="one or several, as all above")
    parser.add_argument("--attention", default="auto", help="likewise")
    parser.add_argument("--settings", default=",".join(COMBINATIONS))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="that the bare calls of a cell last together"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    table = Table(options.out)
    for model, dtype, attention in itertools.product(
        options.models.split(","), options.dtype.split(","), options.attention.split(",")
    ):
        asked = Settings(
            pipe=model,
            latency_only=True,
            dtype=dtype,
            device=options.device,
            attention=attention,
            compile=options.compile,
        )
        cells = [
            cell
            for sched, steps, batch in itertools.product(
                options.scheds.split(","), options.steps.split(","), options.batches.split(",")
            )
            if not table.holds(cell := cell_of(asked, sched, int(steps), int(batch)))
        ]
        if not cells:
            continue
        try:
            bench = Bench(asked, options.settings.split(","), options.seconds)
        except AccelSearchError as error:
            print(f"{model} {dtype} {attention}: {error}", flush=True)
            continue
        for cell in cells:
            table.add(bench.rows(cell), bench.device)
        del bench
        gc.collect()
        torch.cuda.empty_cache()


def cell_of(asked: Settings, sched: str, steps: int, batch: int) -> dict[str, Any]:
    """Return what identifies a cell."""
    return {
        "model": asked.pipe,
        "scheduler": sched,
        "steps": steps,
        "batch": batch,
        "dtype": asked.dtype,
        "attention": asked.attention,
        "compiled": asked.compile,
    }


class Table:
    """Rows in a file that grows."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._content: dict[str, Any] = {"rows": []}
        if path is not None and path.exists():
            self._content = json.loads(path.read_text(encoding="utf-8"))

    def holds(self, cell: dict[str, Any]) -> bool:
        """Tell whether there are rows of a cell already."""
        return any(cell.items() <= row.items() for row in self._content["rows"])

    def add(self, rows: list[dict[str, Any]], device: torch.device) -> None:
        """Add rows and write the file."""
        where = machine(device)
        self._content = {"device": where.pop("device_name"), **where} | self._content
        self._content["rows"] += rows
        if self._path is not None:
            self._path.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")


class Bench:
    """One pipeline with random weights, and what is measured on it."""

    def __init__(self, asked: Settings, names: Sequence[str], enough_seconds: float) -> None:
        self._asked, self._names = asked, names
        self._enough_seconds = enough_seconds
        with quiet_libraries():
            self._pipe = random_pipeline(asked)
        self._scheduler = self._pipe.scheduler.config
        self.device = torch.device(self._pipe.device)
        use_kernel(self._pipe, asked.attention)
        if asked.compile:
            compile_unet(self._pipe, asked.attention)
        self._caller = Caller(self._pipe, apply_candidate, Accounting(), compiled=asked.compile)
        self._met: set[tuple[int, str]] = set()

    def rows(self, cell: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a row for each setting, or one with the error that ended the cell."""
        settings = Settings(
            pipe=cell["model"],
            sched=cell["scheduler"],
            steps=cell["steps"],
            batch_size=cell["batch"],
            latency_only=True,
        )
        self._pipe.scheduler = build_scheduler(
            settings.scheduler_class, self._scheduler, type(self._pipe).__name__
        )
        workload = describe_workload(self._pipe, settings, None)
        cell = cell | {
            "height": workload.height,
            "width": workload.width,
            "kernel": self._kernel(workload),
        }
        try:
            with quiet_libraries():
                rows = self._timed_rows(workload)
        except (AccelSearchError, RuntimeError) as error:
            rows = [{"error": str(error).splitlines()[0][:300]}]
        for row in rows:
            print(_line(cell | row), flush=True)
        return [cell | row for row in rows]

    def _kernel(self, workload: Workload) -> str:
        least = min(workload.attention_downsamples)
        tokens = (workload.latent_height // least) * (workload.latent_width // least)
        return describe_attention(self._pipe, self._asked.attention, tokens)

    def _timed_rows(self, workload: Workload) -> list[dict[str, Any]]:
        prompts = timing_prompts(workload.batch_size).search
        calls = {"bare": Candidate()} | {
            name: Candidate({part: ALONE[part] for part in name.split("+")}) for name in self._names
        }
        samples: dict[str, list[float]] = {name: [] for name in calls}
        peaks = {name: PeakMeter(self.device) for name in calls}

        def call(name: str) -> None:
            _, seconds = self._caller.call(workload, prompts, calls[name], peaks[name])
            samples[name].append(seconds * workload.batch_size)

        few = replace(workload, steps=min(workload.steps, ALL_KINDS_OF_STEPS))
        for name, candidate in calls.items():
            if (workload.batch_size, name) not in self._met:
                self._caller.warm_up(few, prompts, candidate)
                self._met.add((workload.batch_size, name))
        for _ in range(MOST_TURNS):
            for name in calls:
                call(name)
            if sum(samples["bare"]) >= self._enough_seconds:
                break
        call("bare")
        bare = statistics.median(samples["bare"])
        spread = (max(samples["bare"]) - min(samples["bare"])) / bare
        return [
            {
                "setting": name,
                "seconds_a_call": [round(each, 4) for each in samples[name]],
                "speedup": round(bare / statistics.median(samples[name]), 3),
                "bare_spread": round(spread, 4),
                "peak_memory_bytes": peaks[name].peak_bytes,
            }
            for name in calls
        ]


def _line(row: dict[str, Any]) -> str:
    cell = f"{row['model']:6} {row['scheduler']:12} {row['steps']} steps, batch {row['batch']:2}"
    cell += f" {row['dtype']} {row['kernel']}{' compiled' if row['compiled'] else ''}"
    if "error" in row:
        return f"{cell}: {row['error']}"
    peak = row["peak_memory_bytes"]
    return (
        f"{cell} {row['setting']:20} {statistics.median(row['seconds_a_call']):7.3f} s a call  "
        f"{row['speedup']:5.2f}x (±{row['bare_spread']:.1%})"
        + ("" if peak is None else f"  {peak / 2**30:5.1f} GiB")
    )


if __name__ == "__main__":
    main()
