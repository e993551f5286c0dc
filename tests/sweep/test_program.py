"""`accel-explore` as a user runs it: log, files, exit codes; killed, and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from accel_search.explore_upper_bounds import main
from tests.support.run_fake import COMMAND, ROOT, is_gone

TABLE = ["--models", "demo", "--scheds", "DDIM,UniPC", "--steps", "20", "--methods", "tome,tgate"]
ONE_CANDIDATE = """
models = ["demo"]
scheds = ["DDIM"]
steps = [6]
methods = ["deepcache"]
latency_only = true
device = "cpu"
threads = 1
height = 64
width = 64
batch_size = 2
timing_pairs = 1
[space.deepcache]
cache_interval = [5]
cache_branch_id = [0]
"""
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - explore_upper_bounds - [A-Z]+ - "


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that runs the program in this process, with the fake worker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("accel_search.sweep.worker_process.COMMAND", COMMAND)

    def run(*arguments, plan=None):
        monkeypatch.setenv("FAKE_PLAN", json.dumps(plan or {}))
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.mark.parametrize("options", [[], ["--force"]], ids=str)
def test_an_interrupted_sweep_says_what_the_same_command_does(run, monkeypatch, options):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("accel_search.sweep.driver.time.sleep", interrupted)
    code, said = run(*TABLE, *options, plan={"demo": "sleep 60"})
    assert code == 130 and said.endswith("run the same command again to go on\n")
    assert ("--force: the same command explores finished configurations again" in said) == (
        options == ["--force"]
    )


def start(folder, *arguments, plan=None, module="tests.support.run_fake"):
    """Start the program in a process and a folder of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "FAKE_PLAN": json.dumps(plan or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def log_of(folder):
    path = folder / "exploration.log"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def content(folder):
    return json.loads((folder / "speedup_bounds.json").read_text())


def test_a_sweep_is_planned_run_tried_again_and_told_in_a_table(run, tmp_path):
    code, output = run(*TABLE, "--dry_run")
    assert code == 0 and "4 configurations: 4 to run, 0 done, 0 failed." in output
    assert "call times of an H200" in output and list(tmp_path.iterdir()) == []

    plan = {"demo_UniPC_20_tgate": "oom"}
    options = ["--workers", "2", "--isolation", "config", "--log_rotate", "100KB"]
    code, output = run(*TABLE, *options, plan=plan)
    assert code == 6
    lines = log_of(tmp_path)
    assert all(re.match(STAMP, line) for line in lines)
    text = "\n".join(lines)
    assert "[demo DDIM 20 tome] measuring demo_DDIM_20_tome" in text
    assert " - WARNING - [demo DDIM 20 tome] it is only a fake" in text
    assert re.search(r" - ERROR - failed: demo UniPC 20 tgate  cuda_oom: does not fit", text)
    # What is on the console is what is in the file, and scripts find their line.
    assert all(line in output for line in lines)
    assert len(re.findall(r"done: demo \S+ 20 \S+  speedup: 2\.00 \[1\.90, 2\.10\]", output)) == 3
    assert re.search(r"^demo +DDIM +20 +\S+ \(2\.00\) +\S+ \(2\.00\)$", output, re.M)
    assert re.search(r"^demo +UniPC +20 .*cuda_oom$", output, re.M)
    # Two workers, one file, a process each.
    assert len(content(tmp_path)) == 4
    pids = {
        each["evidence"]["study"].split()[0]
        for each in content(tmp_path).values()
        if "evidence" in each
    }
    assert len(pids) == 3
    failed = content(tmp_path)["failed_configs"]["demo_UniPC_20_tgate"]
    assert failed["batch_sizes_tried"] == [4, 2, 1] and failed["bytes_free"] == 4

    code, output = run(*TABLE, "--dry_run")
    assert "4 configurations: 0 to run, 3 done, 1 failed." in output
    assert "by what the finished ones took" in output

    code, output = run(*TABLE, "--retry_failed")
    assert code == 0 and output.count("skipped: ") == 3
    assert content(tmp_path)["failed_configs"] == {} and len(content(tmp_path)) == 5


def test_a_polite_kill_ends_the_process_says_how_to_go_on_and_loses_nothing(run, tmp_path):
    process = start(tmp_path, *TABLE, plan={"demo_UniPC_20_tome": "sleep 600"})
    pid = wait_for(lambda: pid_of(tmp_path, "demo_UniPC_20_tome"), "the third one to begin")
    # While it runs, another sweep over the same folder is refused.
    code, output = run(*TABLE)
    assert code == 2 and "another accel-explore is at work" in output
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.strip().splitlines()[-1] == (
        "accel-explore: interrupted; what was measured is stored: run the same command again to "
        "go on"
    )
    wait_for(lambda: is_gone(pid), "the worker to end")
    assert len(content(tmp_path)) == 3 and content(tmp_path)["failed_configs"] == {}


def test_a_sweep_that_is_killed_leaves_no_process_and_goes_on(run, tmp_path):
    process = start(tmp_path, *TABLE, plan={"demo_UniPC_20_tome": "sleep 600"})
    pid = wait_for(lambda: pid_of(tmp_path, "demo_UniPC_20_tome"), "the third one to begin")
    process.kill()
    process.communicate()
    wait_for(lambda: is_gone(pid), "the worker to end by itself")
    code, output = run(*TABLE)
    assert code == 0 and output.count("skipped: ") == 2 and output.count("done: demo UniPC") == 2


def pid_of(folder, name):
    for line in log_of(folder):
        if match := re.search(rf"measuring {re.escape(name)} in (\d+)", line):
            return int(match[1])
    return None


@pytest.mark.slow
def test_a_real_pipeline_is_explored(tmp_path):
    """Real processes from end to end; the rest of the real worker is in test_worker.py."""
    (tmp_path / "one.toml").write_text(ONE_CANDIDATE)
    process = start(tmp_path, "--sweep", "one.toml", module="accel_search.explore_upper_bounds")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    key = (
        "('StableDiffusionPipeline', 'DDIMScheduler', '6', 'upbound_speedup', 0.02, ['deepcache'])"
    )
    assert list(content(tmp_path)) == [key, "failed_configs"]
    entry = content(tmp_path)[key]
    assert entry["max_speedup"] == round(1.1 * entry["measured_max_speedup"], 2)
    assert entry["measured_max"]["params"] == {"cache_interval": 5, "cache_branch_id": 0}
    assert entry["provenance"]["device_name"] and entry["latency_only"] is True
    assert "[demo DDIM 6 deepcache] baseline: " in output
    assert re.search(r"done: demo DDIM 6 deepcache  speedup: \d\.\d\d ", output)
