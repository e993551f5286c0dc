"""Which configuration is next, on which worker, and what is written down: no process, no torch."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, replace

import pytest

from accel_search.storage.entries import SearchEntry
from accel_search.storage.json_files import as_type
from accel_search.storage.keys import Configuration
from accel_search.sweep.answer import Answer, failure
from accel_search.sweep.driver import Sweep
from accel_search.sweep.settings import SweepSettings
from accel_search.sweep.status import status_of
from accel_search.sweep.worker_process import Stopped
from tests.support.fake_worker import answer as answered
from tests.support.fakes import PROVENANCE
from tests.support.sweeps import Observer


class Worker:
    """Answers at once with what `plan` says of a configuration's key, else with an entry."""

    def __init__(self, plan=None, wait=0.0):
        self.model, self.closed = None, False
        self.explored: list[str] = []
        self._plan, self._wait = plan or {}, wait

    def explore(self, settings, on_line, stop):
        self.model = settings.pipe
        name = f"{settings.pipe}_{settings.sched}_{settings.steps}_{'+'.join(settings.targets)}"
        self.explored.append(name)
        on_line(f"measuring {name}")
        if stop.wait(self._wait):
            raise Stopped
        what = self._plan.get(name)
        if isinstance(what, BaseException):
            raise what
        if what is not None:
            return what
        return answered({"options": asdict(settings)})

    def close(self):
        self.closed, self.model = True, None


def settings(tmp_path, **changes):
    common = {
        "bounds": str(tmp_path / "bounds.json"),
        "output": str(tmp_path / "params.json"),
        "run_dir": str(tmp_path / "runs"),
    } | changes.pop("common", {})
    table = {"models": ("SD1.5", "SDXL"), "scheds": ("DDIM",), "steps": (20, 25)}
    return SweepSettings(**(table | {"methods": ("tome",)} | changes), common=common)


def run(settings, *workers, **options):
    observer = Observer()
    return Sweep(settings, workers, **options).run(observer), observer


def content(tmp_path):
    return json.loads((tmp_path / "bounds.json").read_text())


OOM = Answer(failure=failure("cuda_oom", "does not fit", seconds=3, exit_code=4, bytes_asked=8))
ALL = ["SD1.5_DDIM_20_tome", "SD1.5_DDIM_25_tome", "SDXL_DDIM_20_tome", "SDXL_DDIM_25_tome"]


def test_every_configuration_is_explored_written_down_and_then_skipped(tmp_path):
    worker = Worker()
    failed, observer = run(settings(tmp_path), worker)
    assert failed == 0 and worker.explored == observer.of("on_done") == ALL
    assert worker.closed
    assert len(content(tmp_path)) == 5 and content(tmp_path)["failed_configs"] == {}
    again = Worker()
    failed, observer = run(settings(tmp_path), again)
    assert failed == 0 and again.explored == [] and observer.of("on_skip") == ALL


@pytest.mark.parametrize("option", [{"num_samples": 8}, {"threads": 8}, {"memory_limit": 8.0}])
def test_another_option_explores_again(tmp_path, option):
    run(settings(tmp_path), Worker())
    worker = Worker()
    _, observer = run(settings(tmp_path, common=option), worker)
    assert worker.explored == ALL
    assert all(next(iter(option)) in details[0].note for name, _, details in observer.events
               if name == "on_start")  # fmt: skip


def test_force_explores_again(tmp_path):
    run(settings(tmp_path, common={"num_samples": 8}), Worker())
    forced = Worker()
    run(settings(tmp_path, common={"num_samples": 8, "force": True}), forced)
    assert forced.explored == ALL


def test_a_result_of_another_machine_is_named_and_measured_here(tmp_path):
    run(settings(tmp_path), Worker())
    asked = []

    def elsewhere():
        asked.append(1)
        return {"device_name": "another", "driver": None}

    worker = Worker()
    _, observer = run(settings(tmp_path), worker, machine=elsewhere)
    assert worker.explored == ALL and asked == [1]
    note = next(details[0].note for name, _, details in observer.events if name == "on_start")
    assert note == "was measured elsewhere (other device)"
    same = Worker()
    run(settings(tmp_path), same, machine=lambda: {"device_name": PROVENANCE.device_name})
    assert same.explored == []


def test_a_failure_is_a_result_that_is_explored_again_when_asked(tmp_path):
    plan = {ALL[0]: OOM, ALL[3]: Answer(failure=failure("timeout", "late", seconds=9))}
    failed, _ = run(settings(tmp_path), Worker(plan))
    assert failed == 2
    kept = content(tmp_path)["failed_configs"]
    assert list(kept) == [ALL[0], ALL[3]]
    assert kept[ALL[0]]["bytes_asked"] == 8 and kept[ALL[0]]["exit_code"] == 4

    worker = Worker()
    failed, observer = run(settings(tmp_path), worker)
    assert failed == 2 and worker.explored == [] and observer.of("on_skip") == ALL

    failed, _ = run(settings(tmp_path, retry_failed="timeout"), worker)
    assert failed == 1 and worker.explored == [ALL[3]]
    failed, _ = run(settings(tmp_path, retry_failed="all"), worker)
    assert failed == 0 and worker.explored == [ALL[3], ALL[0]]
    assert content(tmp_path)["failed_configs"] == {}


def test_a_failure_without_scoring_is_none_of_a_scored_sweep(tmp_path):
    run(settings(tmp_path, common={"latency_only": True}), Worker({ALL[0]: OOM}))
    assert content(tmp_path)["failed_configs"][ALL[0]]["latency_only"] is True
    worker = Worker()
    run(settings(tmp_path), worker)
    assert worker.explored == ALL


def test_a_model_that_cannot_be_loaded_fails_in_one_go_and_the_sweep_goes_on(tmp_path):
    broken = Answer(failure=failure("model_load", "none", seconds=1), is_of_model=True)
    worker = Worker({ALL[0]: broken})
    failed, observer = run(settings(tmp_path), worker)
    assert failed == 2 and worker.explored == [ALL[0], ALL[2], ALL[3]]
    assert list(content(tmp_path)["failed_configs"]) == ALL[:2]
    assert observer.of("on_done") == ALL


def test_workers_share_the_table_and_stay_with_a_model(tmp_path):
    one, other = Worker(wait=0.05), Worker(wait=0.05)
    wide = settings(tmp_path, steps=tuple(range(10, 18)))
    failed, observer = run(wide, one, other)
    assert failed == 0
    assert sorted(one.explored + other.explored) == sorted(set(observer.of("on_done")))
    assert len(observer.of("on_done")) == 16 == len(content(tmp_path)) - 1
    # Each begins with a model of its own, and goes over to the other's when its own is done.
    assert {one.explored[0][:4], other.explored[0][:4]} == {"SD1.", "SDXL"}
    for worker in (one, other):
        changes = [a[:4] != b[:4] for a, b in zip(worker.explored, worker.explored[1:])]
        assert sum(changes) <= 1


def test_a_defect_ends_the_sweep_and_is_raised(tmp_path):
    slow = Worker(wait=30)
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        run(settings(tmp_path), Worker({ALL[0]: ZeroDivisionError("oh")}), slow)
    assert time.monotonic() - began < 15 and slow.closed


def test_an_interrupt_ends_the_workers_and_loses_nothing(tmp_path, monkeypatch):
    worker = Worker(wait=0.2)
    ticks = []

    def interrupted(seconds):
        ticks.append(seconds)
        if (tmp_path / "bounds.json").exists():
            raise KeyboardInterrupt
        threading.Event().wait(0.02)

    monkeypatch.setattr("accel_search.sweep.driver.time.sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(settings(tmp_path), worker)
    assert worker.closed and len(worker.explored) < 4
    assert len(content(tmp_path)) - 1 >= 1 and content(tmp_path)["failed_configs"] == {}


FIRST = Configuration("SD1.5", "DDIM", 20, "tome")


def test_a_failure_counts_for_the_options_that_it_was_asked_for_with(tmp_path):
    short = failure("cuda_oom", "no room", seconds=1)
    large = settings(tmp_path, common={"batch_size": 16})
    run(large, Worker({ALL[0]: Answer(failure=short)}))
    assert large.search_settings(FIRST).batch_size == 16

    def found(which):
        return status_of(content(tmp_path), FIRST, which.search_settings(FIRST), None)

    assert found(large).state == "failed"
    small = found(settings(tmp_path, common={"batch_size": 1}))
    assert small.state == "open"
    assert small.note == "failed when asked for with another batch_size"
    # A failure of an earlier version does not say what it was asked for with.
    kept = content(tmp_path)
    del kept["failed_configs"][ALL[0]]["asked"]
    (tmp_path / "bounds.json").write_text(json.dumps(kept))
    assert found(settings(tmp_path, common={"batch_size": 1})).state == "failed"


def test_a_winner_is_written_for_use_too(tmp_path):
    search = settings(tmp_path).search_settings(Configuration("SD1.5", "DDIM", 20, "tome"))
    settings_found = {"tome": {"ratio": 0.5, "max_downsample": 1}}
    winner = SearchEntry(speedup=1.534, score_loss=0.0, settings=settings_found)
    found = replace(answered({"options": asdict(search)}), winner=winner)
    run(settings(tmp_path), Worker({ALL[0]: found}))
    kept = json.loads((tmp_path / "params.json").read_text())
    assert len(kept) == 2 and all(as_type(value, SearchEntry) == winner for value in kept.values())
    assert sorted("upbound_speedup" in key for key in kept) == [False, True]
    assert sum("1.53" in key for key in kept) == 1


def test_two_models_of_one_class_keep_their_own_results(tmp_path):
    both = settings(tmp_path, models=("SD1.5", "SD2.1"))
    run(both, Worker())
    kept = content(tmp_path)
    assert len(kept) == 3
    value = next(iter(kept.values()))
    assert set(value["by_model"]) == {"SD1.5", "SD2.1"}
    for configuration in both.table:
        found = status_of(kept, configuration, both.search_settings(configuration), None)
        assert found.state == "done" and found.entry.model == configuration.model
    other = replace(both.search_settings(both.table[0]), steps=30)
    assert status_of(kept, both.table[0], other, None).state == "open"
