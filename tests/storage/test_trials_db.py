"""The study: what was stored comes back, runs stay apart, a bad storage is one line."""

import optuna
import pytest

from accel_search.core.assessment import assess
from accel_search.core.candidate import Candidate
from accel_search.core.trial import Failure, Trial
from accel_search.errors import ConfigurationError
from accel_search.search.space import JointSpace
from accel_search.storage.optuna_storage import sqlite_file
from accel_search.storage.trials_db import (
    DATABASE,
    TrialStore,
    default_url,
    study_name,
    study_names,
)
from tests.support.fakes import WORKLOAD, FakeEvaluator

SPACE = JointSpace(("deepcache",), WORKLOAD)
CANDIDATES = [SPACE.candidate_at(position) for position in range(3)]


def filled(url):
    """Return a store with one measured and one failed trial, and the trials."""
    evaluator = FakeEvaluator()
    baseline = evaluator.baseline()
    store = TrialStore(url, "study", SPACE.values())
    measured = Trial(CANDIDATES[0], evaluator.measure(CANDIDATES[0]))
    failed = Trial(CANDIDATES[1], None, Failure("invalid_image", "image 3 is black", 2.0))
    store.add(measured, assess(measured.measurement, baseline, 0.02))
    store.add(failed, None)
    store.save_extra("baseline:search", baseline)
    return store, [measured, failed], baseline


def test_trials_come_back_whole_in_another_process(tmp_path):
    url = default_url(tmp_path / "runs")
    _, trials, baseline = filled(url)
    again = TrialStore(url, "study", SPACE.values())
    assert again.trials() == trials
    assert again.load_extra("baseline:search") == baseline
    assert again.load_extra("held_out:nothing") is None


def test_optunas_own_tools_read_the_study(tmp_path):
    url = default_url(tmp_path)
    store, trials, _ = filled(url)
    study = optuna.load_study(study_name=store.name, storage=url)
    best = study.best_trials
    assert [each.params["deepcache.cache_interval"] for each in best] == [
        trials[0].candidate["deepcache"]["cache_interval"]
    ]
    assert study.metric_names == ["speedup", "score_loss"]
    states = [each.state.name for each in study.trials]
    assert states == ["COMPLETE", "FAIL"]


@pytest.mark.parametrize("name", ["a?b", "a%20b", "100 %", "ä#&b", "a b"])
def test_a_run_folder_may_have_any_name(tmp_path, name):
    url = default_url(tmp_path / name)
    filled(url)
    assert {each.name for each in tmp_path.iterdir()} == {name}
    assert (tmp_path / name / DATABASE).stat().st_size
    assert sqlite_file(url) == tmp_path / name / DATABASE
    assert study_names(url) == ["study-run1"]


def test_an_early_look_is_kept_as_pruned_and_the_farthest_one_counts(tmp_path):
    url = default_url(tmp_path)
    store, _, baseline = filled(url)
    candidate, evaluator = CANDIDATES[2], FakeEvaluator()
    looks = []
    for scored, until in ((0, 8), (8, 16), (16, 32)):
        look = evaluator.measure(candidate, prompts=range(scored, until))
        looks.append(looks[-1].joined(look) if looks else look)
        store.add(Trial(candidate, looks[-1]), assess(looks[-1], baseline, 0.02))
    again = TrialStore(url, "study", SPACE.values())
    kept = [each for each in again.trials() if each.candidate == candidate]
    assert [each.measurement for each in kept] == [looks[-1]]
    study = optuna.load_study(study_name=store.name, storage=url)
    states = [each.state.name for each in study.trials]
    assert states == ["COMPLETE", "FAIL", "PRUNED", "PRUNED", "COMPLETE"]
    # Another machine that stopped at an early look does not undo what is known.
    again.add(Trial(candidate, looks[0]), assess(looks[0], baseline, 0.02))
    assert [each.measurement for each in again.trials() if each.candidate == candidate] == [
        looks[-1]
    ]


def test_a_candidate_that_failed_in_the_middle_of_a_race_has_failed(tmp_path):
    store, _, baseline = filled(default_url(tmp_path))
    look = FakeEvaluator().measure(CANDIDATES[2], prompts=range(8))
    store.add(Trial(CANDIDATES[2], look), assess(look, baseline, 0.02))
    failed = Trial(CANDIDATES[2], None, Failure("cuda_oom", "no room", 1.0))
    store.add(failed, None)
    assert [each for each in store.trials() if each.candidate == CANDIDATES[2]] == [failed]


def test_a_fresh_run_is_gone_on_with_until_it_is_finished(tmp_path):
    url = default_url(tmp_path)
    _, trials, _ = filled(url)  # Unfinished, but not begun as a fresh run.
    begun = TrialStore(url, "study", SPACE.values(), fresh=True)
    begun.add(trials[1], None)
    again = TrialStore(url, "study", SPACE.values(), fresh=True)
    assert again.name == begun.name == "study-run2" and again.trials() == [trials[1]]
    again.finish()
    assert TrialStore(url, "study", SPACE.values()).name == "study-run2"
    assert TrialStore(url, "study", SPACE.values(), fresh=True).name == "study-run3"


def test_whoever_finishes_a_fresh_run_it_is_finished(tmp_path):
    url = default_url(tmp_path)
    first = TrialStore(url, "study", SPACE.values(), fresh=True).name
    TrialStore(url, "study", SPACE.values()).finish()
    assert TrialStore(url, "study", SPACE.values(), fresh=True).name != first


def test_a_fresh_run_leaves_the_old_trials_alone_and_is_the_one_resumed(tmp_path):
    url = default_url(tmp_path)
    _, trials, _ = filled(url)
    fresh = TrialStore(url, "study", SPACE.values(), fresh=True)
    assert fresh.trials() == []
    assert fresh.name == "study-run2"
    fresh.add(trials[1], None)
    assert TrialStore(url, "study", SPACE.values()).trials() == [trials[1]]
    assert optuna.load_study(study_name="study-run1", storage=url).trials


def test_studies_of_different_workloads_have_different_names():
    first = study_name({"steps": 20, "device": "cpu"})
    assert first == study_name({"device": "cpu", "steps": 20})
    assert first != study_name({"steps": 25, "device": "cpu"})


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////nowhere/at/all/t.db", "oracle+x://h/d"])
def test_a_storage_that_cannot_be_opened_is_one_line(url):
    with pytest.raises(ConfigurationError, match="--storage") as refused:
        TrialStore(url, "study", SPACE.values())
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_database_is_one_line(tmp_path):
    (tmp_path / "trials.db").write_text("this is not a database, it is a text file" * 100)
    with pytest.raises(ConfigurationError, match="--storage"):
        TrialStore(default_url(tmp_path), "study", SPACE.values())


def test_the_empty_candidate_is_storable():
    store = TrialStore(None, "study", SPACE.values())
    store.add(Trial(Candidate(), None, Failure("timeout", "", 0.0)), None)
    assert store.trials()[0].candidate == Candidate()
