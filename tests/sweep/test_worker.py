"""The worker's session, in this process: what a job is answered, whatever goes wrong."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch

from accel_search.errors import ConfigurationError, InvalidImage, LoadError, TrialFailure
from accel_search.runtime.measuring.timing_lock import TimingLock
from accel_search.settings import Settings
from accel_search.sweep.answer import failure_of
from accel_search.sweep.worker import Session, settings_of

SMALL = {
    "device": "cpu", "threads": 1, "steps": 6, "height": 64, "width": 64, "batch_size": 2,
    "timing_pairs": 1, "num_samples": 2, "held_out_samples": 0, "latency_only": True,
    "space": {"deepcache": {"cache_interval": (5,), "cache_branch_id": (0,)}},
}  # fmt: skip
SHORTAGE = (
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
)


@pytest.fixture
def ask(tmp_path):
    def ask(probe=False, **changes):
        settings = Settings(**SMALL | {"run_dir": str(tmp_path / "runs")} | changes)
        path = tmp_path / "answer.json"
        # Through JSON, as the sweep sends it.
        job = {"options": asdict(settings), "answer": str(path), "probe": probe}
        ask.session.answer(json.loads(json.dumps(job)))
        return json.loads(path.read_text())

    ask.session = Session(TimingLock())
    return ask


def test_settings_survive_the_way_to_the_worker():
    settings = Settings(**SMALL)
    assert settings_of(json.loads(json.dumps(asdict(settings)))) == settings


def test_what_disturbs_and_what_is_disturbed_take_turns(ask):
    events = []

    class Seen(TimingLock):
        @contextmanager
        def loading(self):
            events.append("load")
            yield
            events.append("loaded")

        @contextmanager
        def timing(self):
            events.append("time")
            yield

    ask.session = Session(Seen())
    assert ask()["failure"] is None
    assert events[:3] == ["load", "loaded", "time"] and set(events[3:]) == {"time"}


IMPORTED_FIRST = """
import logging, sys
from contextlib import contextmanager
from accel_search.runtime.workbench import Workbench
from accel_search.settings import Settings
from accel_search.runtime.measuring.timing_lock import TimingLock

class Seen(TimingLock):
    @contextmanager
    def loading(self):
        before = set(sys.modules)
        yield
        print(sorted(set(sys.modules) - before))

Workbench(Settings(device="cpu", latency_only=True), logging.getLogger(), Seen())
"""


@pytest.mark.slow
def test_nobody_waits_for_imports():
    command = [sys.executable, "-c", IMPORTED_FIRST]
    late = ast.literal_eval(subprocess.check_output(command, text=True))
    assert not [name for name in late if "pipeline" in name or "modeling" in name], late


def test_one_load_serves_several_configurations_and_one_baseline_several_methods(ask, capsys):
    first = ask()
    assert first["entry"]["measured_max"]["params"]["cache_branch_id"] == 0
    assert first["label"] == "demo (latency only)" and first["failure"] is None
    loaded = ask.session._bench
    other = ask(targets=("tome",), space={"tome": {"ratio": (0.5,), "max_downsample": (1,)}})
    assert other["entry"]["measured_max"]["params"] == {"ratio": 0.5, "max_downsample": 1}
    seconds = [each["entry"]["evidence"]["baseline_seconds_per_image"] for each in (first, other)]
    assert seconds[0] == seconds[1]
    assert "UniPC" in ask(sched="UniPC")["key"]
    assert ask.session._bench is loaded
    assert capsys.readouterr().out.count("loading demo") == 1


def test_what_is_scored_says_what_is_within_the_loss(ask):
    answer = ask(latency_only=False, req_score_loss=1.0, max_trials=1)
    assert answer["label"] == "demo" and answer["entry"]["provenance"]["clip_model"]
    feasible = answer["entry"]["best_feasible"]
    # On a busy machine a gain may drown in the noise; then there is none to be named.
    assert (feasible is None) == (answer["winner"] is None)
    assert feasible is None or feasible["params"] == {"cache_interval": 5, "cache_branch_id": 0}


@pytest.mark.slow
def test_a_batch_that_was_halved_for_one_method_is_whole_for_the_next(ask):
    ask()
    ask.session._evaluator._set_batch_size(1)
    other = ask(targets=("tome",), space={"tome": {"ratio": (0.5,), "max_downsample": (1,)}})
    assert other["entry"]["provenance"]["batch_size"] == 2


def test_a_model_that_cannot_be_loaded_fails_all_of_its_configurations(ask):
    answer = ask(pipe="./none")
    assert answer["is_of_model"] and answer["failure"]["error"] == "model_load"
    assert answer["failure"]["exit_code"] == 5 and "./none" in answer["failure"]["message"]


def test_a_configuration_that_cannot_be_made_fails_alone(ask):
    ask()
    answer = ask(targets=("tgate",), steps=5)
    assert not answer["is_of_model"] and answer["failure"]["error"] == "unknown_error"
    assert "gate_step" in answer["failure"]["message"] and answer["failure"]["exit_code"] == 2


def test_a_shortage_of_memory_is_told_with_the_sizes_tried(ask, monkeypatch):
    def starve(self, *arguments, **options):
        raise RuntimeError(SHORTAGE)

    monkeypatch.setattr("accel_search.runtime.measuring.calls.Caller.warm_up", starve)
    failure = ask()["failure"]
    assert failure["error"] == "cuda_oom" and failure["exit_code"] == 4
    assert failure["batch_sizes_tried"] == [2, 1] and failure["bytes_asked"] == 8
    assert failure["bytes_free"] is None


def test_a_defect_is_an_answer_with_its_traceback_in_the_log(ask, monkeypatch, capsys):
    monkeypatch.setattr("accel_search.session.explore", lambda *_, **options: 1 / 0)
    failure = ask()["failure"]
    assert failure["error"] == "unknown_error" and "ZeroDivisionError" in failure["message"]
    assert "Traceback" in capsys.readouterr().err


def test_the_machine_is_told_for_the_asking(ask):
    found = ask(probe=True)["machine"]
    assert found["device_name"] and torch.__version__.startswith(found["versions"]["torch"])


def test_failures_are_told_apart():
    wrapped = ConfigurationError("black")
    wrapped.__cause__ = InvalidImage("black")
    kinds = [failure_of(error, 1.0).error for error in (
        LoadError("a"), wrapped, ConfigurationError("b"), TrialFailure("c"), OSError("d"),
    )]  # fmt: skip
    assert kinds == ["model_load", "invalid_image", *["unknown_error"] * 3]
