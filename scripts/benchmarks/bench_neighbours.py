"""Does a worker on one GPU disturb the timings of a worker on another?

    python scripts/benchmarks/bench_neighbours.py --out docs/data/neighbours_h200.json

On the first GPU a pipeline is called again and again, bare and under DeepCache in turns. On the
second another process is idle, calls its own pipeline, starts processes that import what a
pipeline takes, or such that build one too, in turns of some seconds. Both keep to cores of their
own, as a sweep's workers do; or both may run on any core; or both have to share a single one, which
shows what keeping apart is for. Weights are random.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from accel_search.runtime.nvml import gpu_names
from accel_search.sweep.machine import shares, visible_gpus

ACTIVITIES = ("idle", "calls", "imports", "starts")
"""What the neighbour does; the last two by processes of their own, begun one after the other."""
ROLES = ("timed", "neighbour", "imports", "starts")
SETTINGS = {"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}


def main() -> None:
    """Measure every placement, or be one of the two processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument(
        "--pipe", default="SD1.5", help="what is timed; SD1.5 is bound by launching"
    )
    parser.add_argument("--neighbour", default="SD1.5", help="what the other process runs")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=5, help="that each turn lasts at least")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--placements", default="own,any,one")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role is not None:
        be(options)
        return
    rows = measure(options)
    content = {"gpus": gpu_names(), "cores": os.cpu_count(), "rows": rows}
    if options.out is not None:
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(line(row))


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each placement of the processes and activity of the neighbour."""
    cores = sorted(os.sched_getaffinity(0))
    placements: dict[str, list[list[int]]] = {
        "own": shares(2),
        "any": [cores, cores],
        "one": [cores[:1], cores[:1]],
    }
    gpus = visible_gpus() if options.device == "cuda" else ["", ""]
    timed, neighbour = Process("timed", gpus[0], options), Process("neighbour", gpus[1], options)
    timed.wait_for("ready")
    neighbour.wait_for("ready")
    rows = []
    try:
        for placement in options.placements.split(","):
            timed.keep_to(placements[placement][0])
            neighbour.keep_to(placements[placement][1])
            phases = []
            for _ in range(options.turns):
                for activity in ACTIVITIES:
                    neighbour.tell(f"{activity} {options.seconds}")
                    phases.append((activity, *neighbour.wait_for("did")))
            calls = timed.calls()
            rows += [
                {
                    "placement": placement,
                    "neighbour": activity,
                    **attributed(calls, phases, activity),
                }
                for activity in ACTIVITIES
            ]
    finally:
        timed.end()
        neighbour.end()
    return rows


def attributed(
    calls: Sequence[tuple[str, float, float]],
    phases: Sequence[tuple[str, float, float]],
    activity: str,
) -> dict[str, Any]:
    """Return the seconds of the calls that lie wholly within phases of an activity.

    Args:
        calls: Name, begin and end, in seconds of one clock.
        phases: Activity, begin and end.
        activity: Whose calls.
    """
    spans = [(begin, end) for name, begin, end in phases if name == activity]
    found: dict[str, list[float]] = {"bare": [], "deepcache": []}
    for name, begin, end in calls:
        if any(low <= begin and end <= high for low, high in spans):
            found[name].append(end - begin)
    medians = {name: statistics.median(each) if each else None for name, each in found.items()}
    speedup = medians["bare"] / medians["deepcache"] if all(medians.values()) else None  # type: ignore[operator]
    return {
        "calls": {name: len(each) for name, each in found.items()},
        "median_seconds": medians,
        "quartiles": {
            name: statistics.quantiles(each, n=4) if len(each) > 1 else None
            for name, each in found.items()
        },
        "speedup": speedup,
    }


class Process:
    """One of the two, as seen from here."""

    def __init__(self, role: str, gpu: str, options: argparse.Namespace) -> None:
        own = options.pipe if role == "timed" else options.neighbour
        arguments = ["--role", role, "--pipe", own, "--device", options.device]
        arguments += ["--batch_size", str(options.batch_size), "--steps", str(options.steps)]
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu},
        )
        self._lines: list[str] = []
        self._came = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            with self._came:
                self._lines.append(text)
                self._came.notify()

    def wait_for(self, word: str) -> tuple[float, ...]:
        """Wait for a line that begins with a word, take it away and return its numbers."""
        with self._came:
            while True:
                for text in self._lines:
                    if text.startswith(word):
                        self._lines.remove(text)
                        return tuple(map(float, text.split()[1:]))
                if not self._came.wait(timeout=600):
                    raise SystemExit(f"no {word!r} within 600 s")

    def calls(self) -> list[tuple[str, float, float]]:
        """Take the calls that were timed since the last time."""
        with self._came:
            lines, self._lines = self._lines, []
        found = [text.split() for text in lines]
        return [(name, float(begin), float(end)) for name, begin, end in found]

    def tell(self, text: str) -> None:
        """Give the process a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def keep_to(self, cores: Sequence[int]) -> None:
        """Keep every thread of the process to some cores."""
        for thread in psutil.Process(self._process.pid).threads():
            os.sched_setaffinity(thread.id, cores)

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def be(options: argparse.Namespace) -> None:
    """Be one of the processes."""
    import logging

    from accel_search.accelerators.compose import apply_candidate
    from accel_search.core.candidate import Candidate
    from accel_search.runtime.devices import execution_device
    from accel_search.runtime.loading.pipelines import (
        describe_workload,
        import_libraries,
        load_pipeline,
        random_pipeline,
    )
    from accel_search.runtime.loading.random_weights import ARCHITECTURES
    from accel_search.runtime.measuring.calls import Accounting, Caller
    from accel_search.runtime.memory import PeakMeter
    from accel_search.runtime.quiet import quiet_libraries
    from accel_search.runtime.workbench import timing_prompts
    from accel_search.settings import Settings

    settings = Settings(
        pipe=options.pipe,
        steps=options.steps,
        batch_size=options.batch_size,
        device=options.device,
        latency_only=True,
    )

    def build() -> Any:
        if options.pipe in ARCHITECTURES:
            return random_pipeline(settings)
        return load_pipeline(settings, logging.getLogger("bench"))[0]

    with quiet_libraries():
        if options.role == "imports":
            import_libraries()
            return
        pipe = build()
    if options.role == "starts":
        return
    workload = describe_workload(pipe, settings, None)
    caller = Caller(pipe, apply_candidate, Accounting())
    prompts = timing_prompts(options.batch_size).search
    candidates = {"bare": Candidate(), "deepcache": Candidate(SETTINGS)}
    peak = PeakMeter(execution_device(pipe))

    def call(name: str) -> None:
        caller.call(workload, prompts, candidates[name], peak)

    with quiet_libraries():
        for candidate in candidates.values():
            caller.warm_up(workload, prompts, candidate)
        print("ready", flush=True)
        if options.role == "timed":
            while True:
                for name in candidates:
                    begin = time.time()
                    call(name)
                    print(name, begin, time.time(), flush=True)
        for activity, seconds in _told():
            begin = time.time()
            while time.time() - begin < seconds:
                if activity == "calls":
                    call("bare")
                elif activity in ROLES:
                    subprocess.run([sys.executable, *sys.argv, "--role", activity], check=True)  # noqa: S603
                else:
                    time.sleep(0.1)
            print("did", begin, time.time(), flush=True)


def _told() -> Iterator[tuple[str, float]]:
    for text in sys.stdin:
        activity, seconds = text.split()
        yield activity, float(seconds)


def line(row: dict[str, Any]) -> str:
    """Return a row as it is printed."""
    medians = row["median_seconds"]
    if row["speedup"] is None:
        return f"{row['placement']:4} {row['neighbour']:7} too few calls"
    return (
        f"{row['placement']:4} {row['neighbour']:7} bare {1000 * medians['bare']:8.1f} ms  "
        f"deepcache {1000 * medians['deepcache']:8.1f} ms  speedup {row['speedup']:.3f}  "
        f"({row['calls']['bare']} calls each)"
    )


if __name__ == "__main__":
    main()
