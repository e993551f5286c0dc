"""A real Ray cluster of two nodes on this machine, one of which is lost on the way."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

from accel_search.sweep.driver import Sweep
from accel_search.sweep.ray_workers import RayWorker, ray_workers
from accel_search.sweep.settings import SweepSettings
from tests.support.run_fake import COMMAND, ROOT
from tests.support.sweeps import Observer

ray = pytest.importorskip("ray")


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """Return a cluster of a head that can run nothing and two nodes of one CPU each.

    Whatever runs on it waits for a file `go`.
    """
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # The nodes' own processes find the fake worker.
    monkeypatch.setenv("RAY_worker_niceness", "0")  # As a cluster has it that is started for us.
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    plan = dict.fromkeys(("demo", "SDXL"), f"wait {tmp_path / 'go'}")
    monkeypatch.setenv("FAKE_PLAN", json.dumps(plan))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False)
    yield made, nodes
    ray.shutdown()
    made.shutdown()


@pytest.mark.slow
def test_a_lost_node_costs_no_configuration(cluster, tmp_path):
    made, nodes = cluster
    settings = SweepSettings(
        models=("demo", "SDXL"), scheds=("DDIM",), steps=(20, 21), methods=("tome",),
        executor="ray",
        common={"bounds": str(tmp_path / "bounds.json"), "run_dir": str(tmp_path / "runs")},
    )  # fmt: skip
    workers = [RayWorker(0, (), "model", 300, COMMAND) for _ in range(2)]
    observer = Observer()
    lost = threading.Event()

    def said():
        return [str(details[0]) for name, _, details in list(observer.events) if name == "on_line"]

    def measuring():
        return [line for line in said() if line.startswith("measuring ")]

    def is_taken_over():
        return any("another one takes over" in line for line in said())

    def wait_until(is_so):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not is_so():
            time.sleep(0.05)

    def lose_one():
        # When both nodes are at work, so that one configuration is lost with it; and neither goes
        # on before that is noticed, or the lost one might still answer.
        wait_until(lambda: len(measuring()) == 2)
        made.remove_node(nodes[0], allow_graceful=False)
        lost.set()
        wait_until(is_taken_over)
        (tmp_path / "go").touch()

    threading.Thread(target=lose_one).start()
    assert Sweep(settings, workers).run(observer) == 0
    assert lost.is_set()
    content = json.loads((tmp_path / "bounds.json").read_text())
    assert len(content) == 5 and content["failed_configs"] == {}
    assert len(set(observer.of("on_done"))) == 4
    assert is_taken_over()
    assert len(measuring()) == 5  # Four configurations, one of them twice.


@pytest.mark.slow
def test_a_cluster_that_is_started_here_gives_way_to_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "15")  # Ray's own choice; undone after the test.
    monkeypatch.delenv("RAY_worker_niceness")
    common = {"device": "cpu", "run_dir": str(tmp_path / "runs")}
    with ray_workers(SweepSettings(executor="ray", common=common)) as workers:
        assert len(workers) == 1
        there = ray.get(ray.remote(lambda: os.nice(0)).remote(), timeout=600)
    assert there == os.nice(0)


def test_an_executor_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    from accel_search.explore_upper_bounds import main

    monkeypatch.chdir(tmp_path)
    assert main(["--executor", "ray", "--ray_address", "127.0.0.1:1"]) == 2
    assert "--ray_address 127.0.0.1:1: no cluster answers there" in capsys.readouterr().err
    assert main(["--executor", "ray", "--gpus", "0"]) == 2
    assert "--executor local" in capsys.readouterr().err
