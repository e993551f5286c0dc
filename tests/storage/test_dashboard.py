"""A search's study in optuna-dashboard, asked through the dashboard's own HTTP API."""

import json
import logging
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import optuna
import pytest

from accel_search.core.trial import Goal
from accel_search.report.console.progress import Progress
from accel_search.search.loop import Budget, Search
from accel_search.search.replay import open_replay
from accel_search.search.strategies import get
from accel_search.search.strategies.base import Task
from accel_search.session_parts import open_store
from accel_search.settings import Settings
from accel_search.storage.trials_db import TrialStore, default_url
from tests.support.fakes import FakeEvaluator

TABLE = Path(__file__).parents[1] / "data" / "tables" / "deepcache.json.gz"
BOUND = 0.0005


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """Return the URL of the storage of a search over recorded trials, and what it found."""
    evaluator, space = open_replay(TABLE, ("deepcache",))
    url = default_url(tmp_path_factory.mktemp("runs"))
    store = TrialStore(url, "study", space.values(), about="SDXL, deepcache: 20 steps")
    task = Task(space, Goal(BOUND), evaluator.prompt_count, evaluator.chunk, 0, "")
    with Progress(logging.getLogger("test"), 16, task.goal, show_bar=False) as progress:
        search = Search(evaluator, get("guided")(task), store, task.goal, Budget(), progress)
        return url, search.run()


def test_optunas_tools_find_figures_names_and_what_is_infeasible(studied):
    url, outcome = studied
    (study,) = optuna.study.get_all_study_summaries(url)
    study = optuna.load_study(study_name=study.study_name, storage=url)
    assert study.metric_names == ["speedup", "score_loss"]
    assert study.user_attrs["about"] == "SDXL, deepcache: 20 steps"
    assert len(study.trials) >= len(outcome.trials) > 3
    infeasible = 0
    for trial in study.trials:
        shown = trial.user_attrs
        assert shown["speedup_low"] < trial.values[0] < shown["speedup_high"]
        assert shown["score_loss_low"] <= trial.values[1] <= shown["score_loss_high"]
        assert shown["prompts"] == len(shown["accel_search"]["measurement"]["scores"])
        assert (trial.values[1] > BOUND) == any(each > 0 for each in trial.constraints.values())
        infeasible += trial.values[1] > BOUND
        assert trial.duration.total_seconds() == pytest.approx(
            shown["accel_search"]["measurement"]["seconds"], abs=1e-5
        )
    assert 0 < infeasible < len(study.trials)


def test_what_a_study_is_of_stands_in_it_and_is_no_measurement(tmp_path):
    evaluator = FakeEvaluator()
    from accel_search.search.space import JointSpace

    space = JointSpace(("deepcache",), evaluator.workload)
    settings = Settings(run_dir=str(tmp_path))
    store = open_store(settings, evaluator, space.values(), "deepcache")
    store.save_extra("baseline:search:4", evaluator.baseline())
    assert list(open_store(settings, evaluator, space.values(), "deepcache").extras()) == [
        "baseline:search:4"
    ]
    study = optuna.load_study(study_name=store.name, storage=default_url(tmp_path))
    assert study.user_attrs["about"] == (
        "demo, deepcache: DDIMScheduler, 20 steps, 128 × 128 pixels, batch size 4, float32, "
        "a processor"
    )


@pytest.fixture
def dashboard(studied):
    """Start optuna-dashboard as docs/use.md says; return a function that asks its API."""
    text = (Path(__file__).parents[2] / "docs" / "use.md").read_text()
    said = re.search(r"^optuna-dashboard (\S+)", text, re.M)[1]
    url, _ = studied
    assert said.startswith("sqlite:///") and said.endswith("trials.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("optuna-dashboard")), url]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(path):
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as found:
                    return json.loads(found.read())
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)

    yield ask
    process.terminate()
    process.wait()


@pytest.mark.slow
def test_the_dashboard_shows_the_study(studied, dashboard):
    _, outcome = studied
    (summary,) = dashboard("/api/studies")["study_summaries"]
    assert summary["directions"] == ["maximize", "minimize"]
    about = {each["key"]: each["value"] for each in summary["user_attrs"]}["about"]
    assert about == "SDXL, deepcache: 20 steps"
    study = dashboard(f"/api/studies/{summary['study_id']}")
    assert study["objective_names"] == ["speedup", "score_loss"]
    names = {each["name"] for each in study["union_search_space"]}
    assert names == {"deepcache.cache_interval", "deepcache.cache_branch_id"}
    # What can be sorted and plotted by.
    sortable = {each["key"] for each in study["union_user_attrs"] if each["sortable"]}
    assert {"speedup_low", "speedup_high", "score_loss_low", "prompts"} <= sortable
    complete = [each for each in study["trials"] if each["state"] == "Complete"]
    assert len(complete) == sum(each.assessment.is_complete for each in outcome.trials)
    winner = outcome.winner
    (found,) = [
        each
        for each in complete
        if each["values"][0] == pytest.approx(winner.assessment.speedup.value)
    ]
    values = {each["name"]: each["param_external_value"] for each in found["params"]}
    params = winner.trial.candidate["deepcache"]
    assert values == {f"deepcache.{name}": str(value) for name, value in params.items()}
    assert all(each <= 0 for each in found["constraints"])
    assert any(each > 0 for trial in study["trials"] for each in trial["constraints"])
