"""Real processes: asked, answered, and ended with all that they started."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from accel_search.settings import Settings
from accel_search.sweep.local_workers import LocalWorker
from accel_search.sweep.worker import ABANDONED, HUNG
from accel_search.sweep.worker_process import Child, Stopped, TimedOut, describe_exit
from tests.support.run_fake import COMMAND, ROOT, is_gone

NEVER = threading.Event()


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # So that the fake worker is found.


def plan(monkeypatch, **what):
    import json

    monkeypatch.setenv("FAKE_PLAN", json.dumps(what))


def settings(**changes):
    return Settings(**{"targets": ("tome",), **changes})


@pytest.fixture
def child():
    made = []

    def make(**options):
        lines = []
        made.append(Child(on_line=lines.append, command=COMMAND, **options))
        return made[-1], lines

    yield make
    for each in made:
        each.end()


def test_a_job_is_answered_and_every_line_is_heard(child):
    process, lines = child(environment={"GPU_SEEN": "7"})
    for steps in (20, 25):
        answer = process.ask({"options": asdict(settings(steps=steps))}, 60, NEVER)
        assert answer.entry.measured_max_speedup == 2.0 and f"'{steps}'" in answer.key
        assert answer.entry.evidence.study.split()[1] == "7"  # Its environment is its own.
    assert [line.partition(" in ")[0] for line in lines if "measuring" in line] == [
        "measuring demo_DDIM_20_tome",
        "measuring demo_DDIM_25_tome",
    ]
    assert process.is_alive


@pytest.mark.parametrize("reason", [TimedOut, Stopped])
def test_a_process_that_hangs_is_ended_with_its_own_children(child, monkeypatch, reason):
    plan(monkeypatch, demo="hang")
    monkeypatch.setattr("accel_search.sweep.worker_process.GRACE_SECONDS", 0.3)
    process, lines = child()
    stop = threading.Event()
    if reason is Stopped:
        threading.Thread(target=lambda: (grandchild(lines), stop.set())).start()
    with pytest.raises(reason):
        process.ask({"options": asdict(settings())}, 600 if reason is Stopped else 8, stop)
    assert is_gone(grandchild(lines))
    assert not process.is_alive


def grandchild(lines):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for line in list(lines):
            if line.startswith("child "):
                return int(line.split()[1])
        time.sleep(0.05)
    raise AssertionError(lines)


def test_a_worker_whose_sweep_is_gone_ends_in_the_middle_of_a_job(tmp_path):
    """The real worker: the end of its input is all that a killed sweep leaves it."""
    job = '{"probe": true, "options": {"device": "cpu"}, "answer": "%s"}\n' % (tmp_path / "a.json")
    command = [sys.executable, "-X", "importtime", "-m", "accel_search.sweep.worker"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    process.stdin.write(job)
    process.stdin.flush()
    for line in process.stderr:  # It has begun once torch is being loaded.
        if "numpy" in line:
            break
    process.stdin.close()
    assert process.wait(60) == 3
    process.stderr.close()
    assert not (tmp_path / "a.json").exists()


def test_a_worker_without_jobs_ends_at_once():
    command = [sys.executable, "-m", "accel_search.sweep.worker"]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, cwd=ROOT, timeout=60)
    assert done.returncode == 0


def test_a_worker_keeps_its_process_for_a_model_and_not_beyond_a_failure(monkeypatch):
    plan(monkeypatch, demo_DDIM_30_tome="oom")
    worker = LocalWorker(command=COMMAND)
    pids = {}

    def explore(**changes):
        answer = worker.explore(settings(**changes), lambda line: None, NEVER)
        return (
            answer.failure.error if answer.failure else int(answer.entry.evidence.study.split()[0])
        )

    pids["first"], pids["again"] = explore(steps=20), explore(steps=25)
    assert pids["first"] == pids["again"]
    assert explore(steps=30) == "cuda_oom"
    pids["after a failure"] = explore(steps=20)
    pids["another model"] = explore(pipe="SDXL")
    assert len(set(pids.values())) == 3
    worker.close()
    assert all(is_gone(pid) for pid in pids.values())


@pytest.mark.parametrize("code", [HUNG, ABANDONED])
def test_a_process_that_ends_with_a_workers_own_code_is_no_hang(monkeypatch, code):
    plan(monkeypatch, demo=f"exit {code}")
    worker, lines = LocalWorker(command=COMMAND, timeout=60), []
    found = worker.explore(settings(), lines.append, NEVER).failure
    assert found.error == "subprocess_error" and found.exit_code == code
    assert sum("measuring" in line for line in lines) == 1


def test_a_job_that_hangs_goes_on_in_a_new_process_each_time(monkeypatch):
    plan(monkeypatch, demo="hung 2")
    worker, lines = LocalWorker(command=COMMAND, timeout=60), []
    answer = worker.explore(settings(), lines.append, NEVER)
    assert answer.entry.measured_max_speedup == 2.0
    pids = {line.rpartition(" ")[2] for line in lines if "measuring" in line}
    worker.close()
    assert len(pids) == 3 and all(is_gone(int(pid)) for pid in pids)


def test_a_crash_and_a_timeout_are_failures_with_what_is_known(monkeypatch):
    plan(monkeypatch, demo="crash", SDXL="sleep 60")
    worker = LocalWorker(command=COMMAND, timeout=5)
    crash = worker.explore(settings(), lambda line: None, NEVER).failure
    assert crash.error == "subprocess_error" and crash.exit_code == -11
    assert "ended by SIGSEGV" in crash.message and "it is only a fake" in crash.message
    late = worker.explore(settings(pipe="SDXL"), lambda line: None, NEVER).failure
    assert late.error == "timeout" and late.exit_code is None and late.seconds >= 5
    assert "--timeout of 5 s" in late.message


def test_exits_are_named():
    assert describe_exit(3) == "ended with code 3"
    assert "out of memory" in describe_exit(-9)
    assert Path(COMMAND[0]).exists()
