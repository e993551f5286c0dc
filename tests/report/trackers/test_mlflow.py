"""MLflow's own client reads back what a search wrote into a real local store."""

import json
import logging
from pathlib import Path

import pytest

from accel_search.core.intervals import Verdict
from accel_search.core.trial import Failure, Trial
from accel_search.report.trackers.tracking import tracked
from accel_search.search.space import JointSpace
from accel_search.session import Session, explore
from accel_search.settings import Settings
from accel_search.storage.trials_db import TrialStore
from accel_search.traversal_search import main
from tests.support.fakes import PROVENANCE, WORKLOAD, FakeEvaluator
from tests.support.replays import REPLAY

pytestmark = pytest.mark.slow
LOG = logging.getLogger("test")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return the address of an MLflow store, whose tables are made once."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def place(store, tmp_path, monkeypatch):
    """Return a function that reads all runs of the experiment, and run in an empty folder."""
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    client = MlflowClient(tracking_uri=store)

    def read():
        experiment = client.get_experiment_by_name(tmp_path.name)
        runs = client.search_runs([experiment.experiment_id])
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        nested = {
            run.data.tags["accel_search.candidate"]: run
            for run in runs
            if "mlflow.parentRunId" in run.data.tags
        }
        assert len(parents) + len(nested) == len(runs)
        return client, parents, nested

    return read


def test_a_search_is_a_run_with_a_nested_run_for_each_candidate(store, place, capsys):
    command = [*REPLAY, "--mlflow", store, "--report", "page.html", "--trials_out", "t.json"]
    assert main([*command, "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    client, (parent,), nested = place()
    assert parent.info.status == "FINISHED"
    assert parent.data.params["targets"] == "deepcache"
    assert parent.data.params["scheduler_class"] == "DDIMScheduler"
    figures = parent.data.metrics
    assert figures["result.speedup"] == pytest.approx(entry["speedup"])
    low, high = entry["evidence"]["speedup_interval"]
    assert (figures["result.speedup_low"], figures["result.speedup_high"]) == (low, high)
    assert parent.data.tags["result"].startswith("deepcache(cache_interval=")
    assert [each.step for each in client.get_metric_history(parent.info.run_id, "speedup")] == [
        1, 2, 3,
    ]  # fmt: skip
    files = {each.path for each in client.list_artifacts(parent.info.run_id)}
    assert files == {"page.html", "search_results.png", "t.json", "result.json"}
    kept = Path(client.download_artifacts(parent.info.run_id, "result.json"))
    assert json.loads(kept.read_text()) == entry

    trials = {name: run for name, run in nested.items() if name.startswith("deepcache")}
    assert len(trials) == 3
    winner = trials[parent.data.tags["result"]]
    assert winner.data.params["deepcache.cache_interval"] == str(entry["cache_interval"])
    metrics = winner.data.metrics
    # The final interval, by all pairs of the search.
    assert (metrics["speedup_low"], metrics["speedup_high"]) == (
        pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5),
    )  # fmt: skip
    assert metrics["prompts"] == 64 and metrics["score_loss_low"] <= metrics["score_loss"]
    assert winner.data.tags["verdict"] in set(Verdict) and winner.info.status == "FINISHED"


def searched(store, evaluator, **options):
    settings = Settings(mlflow=store, strategy="grid", run_dir="runs", **options)
    space = JointSpace(settings.targets, WORKLOAD, settings.space)
    kept = TrialStore("sqlite:///trials.db", "study", space.values())
    with tracked(settings, WORKLOAD, PROVENANCE, kept.name, LOG) as tracking:
        outcome = Session(settings, LOG, evaluator, space, kept, tracking, PROVENANCE).run()
        tracking.end(None, outcome, ())


def test_an_interrupted_search_goes_on_in_its_run(store, place):
    class Interrupted(FakeEvaluator):
        def measure(self, candidate, *arguments, **options):
            if len(self.calls) == 5:
                raise KeyboardInterrupt
            return super().measure(candidate, *arguments, **options)

    with pytest.raises(KeyboardInterrupt):
        searched(store, Interrupted())
    _, (parent,), nested = place()
    assert parent.info.status == "KILLED" and len(nested) == 5
    fails = frozenset([JointSpace(("deepcache",), WORKLOAD).candidate_at(15)])
    searched(store, FakeEvaluator(fails=fails))
    _, (again,), nested = place()
    assert again.info.run_id == parent.info.run_id and again.info.status == "FINISHED"
    trials = [run for name, run in nested.items() if name.startswith("deepcache")]
    assert len(trials) == 16
    (failed,) = [run for run in trials if run.info.status == "FAILED"]
    assert "the pipeline said no" in failed.data.tags["failure"]
    (held,) = [run for run in trials if run.data.tags.get("held_out") == "confirmed"]
    assert held.data.metrics["held_out.speedup"] == pytest.approx(1.9, rel=0.02)
    assert any(name.startswith("steps(") for name in nested)


def test_a_candidate_that_hung_after_its_first_look_is_a_failed_run_once_it_goes_on(store, place):
    class Interrupted(FakeEvaluator):
        def measure(self, candidate, *arguments, **options):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().measure(candidate, *arguments, **options)

    with pytest.raises(KeyboardInterrupt):
        searched(store, Interrupted())
    _, _, nested = place()
    assert {run.info.status for run in nested.values()} == {"FINISHED"}
    # As a process does that ends with the hang: nobody but the database is told.
    space = JointSpace(("deepcache",), WORKLOAD)
    hung = space.candidate_at(0)
    assert str(hung) in nested
    failure = Failure("timeout", "it did not end within 3 s", 3.0)
    TrialStore("sqlite:///trials.db", "study", space.values()).add(Trial(hung, None, failure), None)
    searched(store, FakeEvaluator())
    _, _, nested = place()
    assert nested[str(hung)].info.status == "FAILED"
    assert "did not end" in nested[str(hung)].data.tags["failure"]


def test_the_winner_without_one_of_its_targets_is_a_run_of_its_speed(store, place):
    def truth(candidate):
        return (2.0 if "deepcache" in candidate else 1.0) * (0.8 if "tome" in candidate else 1), 0

    values = {"deepcache": {"cache_interval": [2]}, "tome": {"ratio": [0.5], "max_downsample": [1]}}
    searched(store, FakeEvaluator(truth), targets=("deepcache", "tome"), space=values)
    _, _, nested = place()
    found = {
        name: run.data.metrics["speedup"]
        for name, run in nested.items()
        if run.data.tags["verdict"] == "ablation"
    }
    (alone,) = [name for name in found if name.startswith("deepcache")]
    assert found.pop(alone) == pytest.approx(2.0, rel=0.05)
    assert found == {"tome(ratio=0.5, max_downsample=1)": pytest.approx(0.8, rel=0.05)}


def test_a_configuration_of_a_sweep_is_a_run_with_its_bound(store, place):
    settings = Settings(mlflow=store, latency_only=True, run_dir="runs", timing_pairs=2)
    found = explore(settings, FakeEvaluator(), LOG)
    _, (parent,), nested = place()
    maximum = parent.data.metrics["result.measured_max_speedup"]
    assert maximum == pytest.approx(found.entry.measured_max_speedup)
    assert len(nested) == found.entry.evidence.trials_measured
    assert all(run.data.metrics["speedup"] > 0 for run in nested.values())


def test_an_experiment_that_another_worker_made_in_between_is_used(store, place, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    original = MlflowClient.create_experiment

    def late(self, name, *arguments, **options):
        original(self, name, *arguments, **options)
        raise MlflowException(f"{name} exists")

    monkeypatch.setattr(MlflowClient, "create_experiment", late)
    searched(store, FakeEvaluator(), max_trials=1)
    _, (parent,), nested = place()
    assert parent.info.status == "FINISHED" and nested


def test_a_server_that_is_away_costs_one_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*REPLAY, "--mlflow", "http://me:secret@127.0.0.1:9"]) == 0
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert said.count("the search goes on without it") == 1 and "secret" not in said
    assert "The largest speedup within" in printed.out
