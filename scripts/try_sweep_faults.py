"""Sweep 18 configurations of the demo, three of which go wrong; kill the sweep, and go on.

    python scripts/try_sweep_faults.py

15 configurations are sound; one crashes its process, one hangs, one asks for more memory than there
is (tests/plugin/fault.py). In the middle the sweep's own process is killed, as `kill -9` does, and
the same command is run again. Printed at the end: what each configuration came to, what was
measured twice, and which processes are left.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: fault\nVersion: 1.0\n",
    "entry_points.txt": "[accel_search.accelerators]\nfault = fault:Fault\n",
}
OPTIONS = [
    *("--models", "demo", "--steps", "8", "--timeout", "120s"),
    *("--methods", "deepcache,tgate,tome,deepcache+tgate,deepcache+tome,fault"),
    *("--batch_size", "2", "--num_samples", "4", "--held_out_samples", "0"),
    *("--timing_pairs", "1", "--max_trials", "3"),
]
KILL_AFTER = 7
"""Finished configurations after which the sweep is killed."""


def main() -> None:
    """Run it, kill it, run it again, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "sweep_faults")
    options = parser.parse_args()
    folder: Path = options.folder
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"--folder {folder}: is not empty; remove it or give another")
    install_plugin(folder / "site")
    began = time.monotonic()
    killed = start(folder)
    while finished(folder) < KILL_AFTER:
        if killed.poll() is not None:
            raise SystemExit(f"the sweep ended by itself with code {killed.returncode}")
        time.sleep(0.2)
    killed.kill()
    killed.wait()
    print(f"killed after {finished(folder)} configurations, {time.monotonic() - began:.0f} s")
    code = start(folder).wait()
    print(f"run again: exit code {code}, {time.monotonic() - began:.0f} s in all")
    report(folder)


def install_plugin(site: Path) -> None:
    """Put the plug-in where an installer would."""
    info = site / "fault-1.0.dist-info"
    info.mkdir(parents=True)
    for name, text in METADATA.items():
        (info / name).write_text(text, encoding="utf-8")
    source = (ROOT / "tests" / "plugin" / "fault.py").read_text(encoding="utf-8")
    (site / "fault.py").write_text(source, encoding="utf-8")


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the sweep."""
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "accel_search.explore_upper_bounds", *OPTIONS],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "site")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def log(folder: Path) -> str:
    """Return the sweep's log so far."""
    path = folder / "exploration.log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def finished(folder: Path) -> int:
    """Return how many configurations are done or failed."""
    return len(re.findall(r" - (?:INFO - done|ERROR - failed): ", log(folder)))


def report(folder: Path) -> None:
    """Print the results, the failures, what was measured twice and what is left running."""
    content = json.loads((folder / "speedup_bounds.json").read_text(encoding="utf-8"))
    failures = content.pop("failed_configs")
    print(f"{len(content)} results, {len(failures)} failures:")
    for name, failure in failures.items():
        facts = ", ".join(
            f"{key} {failure[key]}"
            for key in ("exit_code", "seconds", "batch_sizes_tried", "bytes_asked")
            if failure.get(key) is not None
        )
        print(f"  {name}: {failure['error']} ({facts})")
    trials = re.findall(r"\[(demo .*?)\] trial \d+/\d+  (.*?\))  speedup.*?  (\w+)", log(folder))
    complete = [trial[:2] for trial in trials if trial[2] in ("pass", "fail", "inconclusive")]
    print(f"finished trials measured twice: {len(complete) - len(set(complete))}")
    left = [process.pid for process in psutil.process_iter(["cmdline"]) if is_ours(process)]
    print(f"processes left: {left or 'none'}")


def is_ours(process: psutil.Process) -> bool:
    """Return whether a process is a worker, or what the fault started."""
    command = " ".join(process.info["cmdline"] or [])
    return "accel_search.sweep.worker" in command or "time.sleep(900)" in command


if __name__ == "__main__":
    main()
