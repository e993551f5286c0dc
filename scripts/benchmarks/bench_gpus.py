"""Sweep one table on one GPU, on all of them, and over Ray: same results, how much sooner?

    python scripts/benchmarks/bench_gpus.py --out docs/data/several_gpus_h200.json
    python scripts/benchmarks/bench_gpus.py --models demo --device cpu --parts one,all

Parts: `one` explores the table on the first GPU, a model at a time; a model that --out holds is
not explored again, so that a long table can be done in several runs. `all` explores it by a worker
on each GPU (`--gpus all`), `ray` by an actor on each. `faults` explores models of two sizes in
memory that holds only the smaller, kills a worker in the middle of a timing, and runs the command
again for what was lost. With `--device cpu` two workers take the place of two GPUs. Weights are
random and nothing is scored.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from accel_search.runtime.nvml import gpu_names

ROOT = Path(__file__).resolve().parents[2]
WORKER = "accel_search.sweep.worker"
PARTS = ("one", "all", "ray", "faults")
SMALL, LARGE, LIMIT_GIB = "SD1.5", "SDXL", 5
"""Of the faults: the larger model does not fit the limit, the smaller one does."""
PATIENCE_SECONDS = 240
"""The longest that a worker is waited for before it is killed."""


def main() -> None:
    """Run the parts and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", default="SDXL,SD1.5")
    parser.add_argument("--scheds", default="DDIM,UniPC")
    parser.add_argument("--steps", default="20")
    parser.add_argument("--methods", default="deepcache,tgate")
    parser.add_argument("--batch_size", default="4")
    parser.add_argument("--timing_pairs", default="2")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "several_gpus")
    parser.add_argument(
        "--out", type=Path, help="a file that holds other parts already is added to"
    )
    options = parser.parse_args()
    content: dict[str, Any] = {}
    if options.out is not None and options.out.exists():
        content = json.loads(options.out.read_text(encoding="utf-8"))
    content["gpus"] = gpu_names() or [f"CPU, {os.cpu_count()} cores"]
    for part in options.parts.split(","):
        folder = options.folder / part
        if part == "faults":
            content[part] = faults(fresh(folder), options)
        elif part == "one":
            found = content.setdefault("one_by_model", {})
            models = options.models.split(",")
            for model in models:
                if model not in found:
                    found[model] = explore(part, fresh(folder / model), options, model)
                    save(content, options.out)
            content[part] = joined([found[model] for model in models])
        else:
            content[part] = explore(part, fresh(folder), options, options.models)
        save(content, options.out)
    report(content)


def fresh(folder: Path) -> Path:
    """Make a folder for a sweep of its own and return it."""
    if (folder / "speedup_bounds.json").exists():
        raise SystemExit(f"{folder}: holds results; remove it or give another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save(content: dict[str, Any], path: Path | None) -> None:
    """Write what there is so far."""
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def joined(sweeps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return several sweeps as one: a model has a process of its own in either case.

    The program itself would have started once.
    """
    starts = sum(each["start_seconds"] for each in sweeps[1:])
    return {
        "wall_seconds": round(sum(each["wall_seconds"] for each in sweeps) - starts, 1),
        "first_line_seconds": sweeps[0]["first_line_seconds"],
        "results": {name: found for each in sweeps for name, found in each["results"].items()},
    }


def explore(part: str, folder: Path, options: argparse.Namespace, models: str) -> dict[str, Any]:
    """Explore the table once and return the seconds it took and its results."""
    where = {
        "one": ["--gpus", "0"],
        "all": ["--gpus", "all"],
        "ray": ["--executor", "ray"],
    }[part]
    if options.device == "cpu":
        count = ["--workers", "1" if part == "one" else "2"]
        where = ["--device", "cpu", *count] + (where if part == "ray" else [])
    table = [
        *("--models", models, "--scheds", options.scheds, "--steps", options.steps),
        *("--methods", options.methods, *common(options)),
    ]
    began, clock = time.monotonic(), time.time()
    code = start(folder, [*table, *where]).wait()
    seconds = time.monotonic() - began
    if code:
        raise SystemExit(f"part {part}: accel-explore ended with code {code}; see {folder}")
    lines = log_lines(folder)
    baseline = next(stamp for stamp, line in lines if "] baseline: " in line)
    return {
        "arguments": table,
        "wall_seconds": round(seconds, 1),
        "start_seconds": round(lines[0][0] - clock, 1),
        "first_line_seconds": round(baseline - lines[0][0], 1),
        "results": dict(results(folder)),
    }


def common(options: argparse.Namespace) -> list[str]:
    """Return the options that every sweep here gets."""
    own = ["--timing_pairs", options.timing_pairs, "--batch_size", options.batch_size]
    return ["--latency_only", *own]


def start(folder: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a sweep in a folder of its own."""
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "accel_search.explore_upper_bounds", *arguments],
            cwd=folder,
            stdout=output,
            stderr=output,
        )


def log_lines(folder: Path) -> list[tuple[float, str]]:
    """Return the lines of a sweep's log, each with its time in seconds."""
    found = re.findall(r"^(\S+ \S+),(\d+) - .*?- \w+ - (.*)$", read_log(folder), re.MULTILINE)
    return [
        (time.mktime(time.strptime(stamp, "%Y-%m-%d %H:%M:%S")) + int(part) / 1000, line)
        for stamp, part, line in found
    ]


def results(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each configuration's name and what was found."""
    content = json.loads((folder / "speedup_bounds.json").read_text(encoding="utf-8"))
    for key, entry in content.items():
        if key == "failed_configs":
            continue
        for model, found in entry["by_model"].items():
            best = found["measured_max"]
            yield (
                f"{model.removesuffix(' (latency only)')} {key}",
                {
                    "speedup": found["measured_max_speedup"],
                    "interval": best["speedup_interval"],
                    "settings": best["settings"],
                    "noise_floor": found["evidence"].get("noise_floor"),
                    "seconds": found["evidence"]["seconds"],
                    "seconds_per_image": found["evidence"].get("baseline_seconds_per_image"),
                },
            )


def read_log(folder: Path) -> str:
    """Return a sweep's log so far."""
    path = folder / "exploration.log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def faults(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Let one worker be killed and one model not fit; then run what was lost again."""
    table = [
        *("--models", f"{SMALL},{LARGE}", "--scheds", "DDIM", "--steps", "20"),
        *("--methods", "deepcache,tgate", "--memory_limit", str(LIMIT_GIB)),
        *("--gpus", "all", *common(options)),
    ]
    began = time.monotonic()
    sweep = start(folder, table)
    killed = kill_a_worker(sweep, folder)
    code = sweep.wait()
    first = json.loads((folder / "speedup_bounds.json").read_text(encoding="utf-8"))
    failed = first["failed_configs"]
    done = [name for name, _ in results(folder)]
    again = start(folder, [*table, "--retry_failed", "subprocess_error"]).wait()
    last = json.loads((folder / "speedup_bounds.json").read_text(encoding="utf-8"))
    return {
        "wall_seconds": round(time.monotonic() - began, 1),
        "killed": killed,
        "exit_code": code,
        "failed": {name: shown(each) for name, each in failed.items()},
        "done": done,
        "exit_code_again": again,
        "failed_again": {name: shown(each) for name, each in last["failed_configs"].items()},
        "done_again": [name for name, _ in results(folder)],
        "workers_left": [each.pid for each in psutil.process_iter(["cmdline"]) if is_worker(each)],
    }


def kill_a_worker(sweep: subprocess.Popen[bytes], folder: Path) -> str:
    """Kill a worker as `kill -9` does, once the smaller model is being timed; return when."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and sweep.poll() is None:
        lines = re.findall(rf"\[{re.escape(SMALL)} .*\] timed  .*", read_log(folder))
        workers = [each for each in psutil.Process(sweep.pid).children() if is_worker(each)]
        if lines and workers:
            # The one that has worked most is in the middle of something.
            max(workers, key=lambda each: each.cpu_times().user).kill()
            return str(lines[-1])
        time.sleep(0.05)
    raise SystemExit(f"no worker could be killed; see {folder}")


def shown(failure: dict[str, Any]) -> dict[str, Any]:
    """Return what a failure says, without its time."""
    names = ("error", "message", "exit_code", "batch_sizes_tried", "bytes_asked", "bytes_free")
    return {name: failure[name] for name in names if failure.get(name) is not None}


def is_worker(process: psutil.Process) -> bool:
    """Tell whether a process is one of a sweep's."""
    try:
        return WORKER in process.cmdline()
    except psutil.Error:
        return False


def report(content: dict[str, Any]) -> None:
    """Print the parts side by side."""
    print(f"{len(content['gpus'])} × {content['gpus'][0]}")
    one = content.get("one")
    for part in ("one", "all", "ray"):
        if (found := content.get(part)) is None:
            continue
        spent = sum(each["seconds"] for each in found["results"].values())
        line = f"{part:4} {found['wall_seconds']:7.1f} s, {spent:.1f} s of them timing"
        line += f", {found['first_line_seconds']:.1f} s until the first baseline"
        if one is not None and part != "one":
            ratio = one["wall_seconds"] / found["wall_seconds"]
            apart = compare(one["results"], found["results"])
            line += f"; {ratio:.2f} times as fast as one; {apart}"
        print(line)
    for name in sorted(
        {name for part in PARTS[:3] for name in content.get(part, {}).get("results", {})}
    ):
        cells = [content[part]["results"].get(name) for part in PARTS[:3] if part in content]
        text = "  ".join(
            f"{each['speedup']:.2f} [{each['interval'][0]:.2f}, {each['interval'][1]:.2f}]"
            for each in cells
            if each is not None
        )
        print(f"  {name}: {text}")
    if (found := content.get("faults")) is not None:
        print(f"killed after: {found['killed']}")
        for name, failure in found["failed"].items():
            print(f"  failed: {name}: {failure['error']}: {failure['message'][:200]}")
        print(
            f"  exit code {found['exit_code']}, {len(found['done'])} done; run again: exit code "
            f"{found['exit_code_again']}, {len(found['done_again'])} done, left "
            f"{list(found['failed_again'])}; workers left: {found['workers_left'] or 'none'}"
        )


def compare(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Say in how many configurations the intervals meet, and how far apart the speedups lie."""
    names = [name for name in one if name in other]
    meeting = sum(
        one[name]["interval"][0] <= other[name]["interval"][1]
        and other[name]["interval"][0] <= one[name]["interval"][1]
        for name in names
    )
    ratios = [other[name]["speedup"] / one[name]["speedup"] for name in names]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return (
        f"intervals meet in {meeting} of {len(names)}; speedups {mean - 1:+.1%} on average, "
        f"{min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%}"
    )


if __name__ == "__main__":
    main()
