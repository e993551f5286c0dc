"""`speedup_bounds.json`: what explorations write, through the real search on a fake evaluator."""

from __future__ import annotations

import json
import logging

import pytest

from accel_search.report.console.summary import bound_summary
from accel_search.session import explore
from accel_search.settings import Settings
from accel_search.storage import speedup_bounds
from accel_search.storage.entries import BoundEntry, FailedEntry
from accel_search.storage.json_files import as_type
from accel_search.storage.keys import parse_key
from accel_search.storage.lookup import StoredEntry, other_options
from tests.support.entries import bound_entry
from tests.support.fakes import FakeEvaluator
from tests.support.timer import Timer

LOG = logging.getLogger("tests.bounds")
KEY = "('StableDiffusionPipeline', 'DDIMScheduler', '20', 'upbound_speedup', 0.02, ['deepcache'])"


@pytest.fixture
def settings(tmp_path):
    def make(**changes):
        return Settings(**{"run_dir": str(tmp_path / "runs"), **changes})

    return make


def test_an_exploration_bounds_the_speed_beside_the_best_within_the_loss(settings):
    # Interval 5 is the fastest and loses too much: 0.001 * 125 at branch 0.
    found = explore(settings(), FakeEvaluator(), LOG)
    assert found.key == KEY and found.label == "demo"
    entry = found.entry
    assert entry.max_speedup == round(1.1 * entry.measured_max_speedup, 2)
    assert entry.measured_max_speedup == pytest.approx(2.6, rel=0.02)
    assert entry.measured_max.params == {"cache_interval": 5, "cache_branch_id": 0}
    low, high = entry.measured_max.speedup_interval
    assert low < entry.measured_max_speedup < high
    feasible = entry.best_feasible
    assert feasible.score_loss <= 0.02 and feasible.speedup < entry.measured_max_speedup
    assert feasible.params.keys() == {"cache_interval", "cache_branch_id"}
    assert found.winner.speedup == feasible.speedup
    assert entry.latency_only is False and entry.asked["num_samples"] == 32
    assert as_type(json.loads(json.dumps(entry.as_dict())), BoundEntry) == entry


def test_a_bound_of_noisy_timings_says_what_to_do(settings):
    quiet = explore(settings(), FakeEvaluator(), LOG).entry
    assert quiet.evidence.noise_note is None
    noisy = FakeEvaluator(lambda candidate: (6.0, 0.001), noise=0.3)
    entry = explore(settings(force=True), noisy, LOG).entry
    assert entry.evidence.noise_note.advice == "stop other work, or --timing_pairs 8"
    assert as_type(json.loads(json.dumps(entry.as_dict())), BoundEntry) == entry


def test_where_nothing_is_within_the_loss_the_bound_is_still_told(settings):
    evaluator = FakeEvaluator(lambda candidate: (2.0, 0.5))
    found = explore(settings(), evaluator, LOG)
    assert found.entry.best_feasible is None and found.winner is None
    assert found.entry.measured_max_speedup == pytest.approx(2.0, rel=0.02)


def test_without_scoring_the_entry_says_so_everywhere(settings):
    chosen = settings(latency_only=True)
    found = explore(chosen, Timer(), LOG)
    assert found.label == "demo (latency only)" and found.entry.latency_only is True
    assert found.entry.best_feasible is None and "num_samples" not in found.entry.asked
    text = bound_summary(found.entry, chosen)
    assert text.startswith("Latency only: ") and "Nothing was scored" in text
    assert f"speedup: {found.entry.measured_max_speedup:.2f}" in text
    assert "does not pay" not in text
    slow = explore(settings(latency_only=True, force=True), Timer(slower=5.0), LOG)
    assert not slow.is_gain and "deepcache does not pay" in slow.entry.no_gain
    assert slow.entry.no_gain in " ".join(bound_summary(slow.entry, chosen).split())
    assert found.entry.no_gain is None


@pytest.mark.parametrize("latency_only", [True, False], ids=["speed alone", "scored too"])
def test_no_exploration_measures_more_candidates_than_asked_for(settings, latency_only):
    options = {"latency_only": latency_only, "strategy": "random"}
    chosen = settings(**options, max_trials=2)
    found = explore(chosen, Timer() if latency_only else FakeEvaluator(), LOG)
    evidence = found.entry.evidence
    assert evidence.trials_measured == 2 and not evidence.speed_settled
    assert "Others may still be faster" in bound_summary(found.entry, chosen)
    stored = StoredEntry(parse_key(found.key), found.entry, found.label)
    # It bounds nothing that asks for all candidates.
    wanted = speedup_bounds.asked(settings(**options))
    assert other_options(stored.options, wanted, settled=stored.is_settled) == ["max_trials"]


def test_an_exploration_goes_on_from_its_last_trial(settings):
    first = FakeEvaluator()
    explore(settings(), first, LOG)
    again = FakeEvaluator()
    explore(settings(), again, LOG)
    assert first.calls and again.calls == []


def test_models_of_one_class_share_a_key_and_lose_nothing(tmp_path):
    path = tmp_path / "bounds.json"
    for model, speedup, latency_only in [
        ("SD1.5", 2.0, False), ("SD2.1", 3.0, False), ("SDXL", 9.0, True), ("SD2.1", 2.5, False),
    ]:  # fmt: skip
        label = speedup_bounds.label_of(model, latency_only)
        speedup_bounds.save(path, KEY, label, bound_entry(model, speedup, latency_only))
    value = json.loads(path.read_text())[KEY]
    # Flat: the bound of all that was scored; a bound on speed alone is no match for it.
    assert (value["model"], value["measured_max_speedup"]) == ("SD2.1", 2.5)
    assert list(value["by_model"]) == ["SD1.5", "SD2.1", "SDXL (latency only)"]
    assert value["by_model"]["SD1.5"]["measured_max_speedup"] == 2.0


def test_a_failure_goes_when_its_configuration_succeeds(tmp_path):
    path = tmp_path / "bounds.json"
    failure = FailedEntry(error="timeout", message="x" * 5000)
    speedup_bounds.save_failure(path, "a", failure)
    speedup_bounds.save_failure(path, "b", failure)
    speedup_bounds.save(path, KEY, "SDXL", bound_entry("SDXL"), failed="a")
    content = json.loads(path.read_text())
    assert list(content) == [KEY, "failed_configs"]
    assert list(content["failed_configs"]) == ["b"]
    assert len(content["failed_configs"]["b"]["message"]) == 1000


def test_no_secret_gets_into_a_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuv")
    path = tmp_path / "bounds.json"
    message = "401 for hf_abcdefghijklmnopqrstuv at postgresql://me:pass-word@host/db"
    speedup_bounds.save_failure(path, "a", FailedEntry(error="model_load", message=message))
    kept = json.loads(path.read_text())["failed_configs"]["a"]["message"]
    assert kept == "401 for *** at postgresql://me:***@host/db"


def otherwise(settings, asked):
    return other_options(asked, speedup_bounds.asked(settings))


def test_options_that_came_later_had_their_default_when_an_entry_was_made():
    asked = speedup_bounds.asked(Settings())
    assert otherwise(Settings(), asked) == []
    assert otherwise(Settings(compile=True, steps=25), asked) == ["compile"]
    for name in ("vae", "attention", "compile", "offload"):
        del asked[name]
    assert otherwise(Settings(), asked) == []
    assert otherwise(Settings(attention="math"), asked) == ["attention"]
    assert otherwise(Settings(), None) == list(speedup_bounds.asked(Settings()))


def test_a_configuration_whose_picture_cannot_be_made_keeps_its_result(
    settings, monkeypatch, caplog
):
    saved = []

    def fails(*_):
        saved.append("pictured")
        raise RuntimeError("the device is gone")

    measuring = "accel_search.runtime.measuring.evaluator.PipelineEvaluator"
    monkeypatch.setattr(measuring, FakeEvaluator)
    monkeypatch.setattr("accel_search.runtime.pictures.write_pictures", fails)
    given = settings(pictures=1, report="auto")
    found = explore(given, FakeEvaluator(), LOG)
    assert found.entry.measured_max_speedup == pytest.approx(2.6, rel=0.02)
    assert found.winner.speedup == found.entry.best_feasible.speedup
    assert saved == ["pictured"]
    (warning,) = [line for line in caplog.messages if "no pictures" in line]
    assert "the device is gone" in warning and "the result is stored" in warning


def test_a_bound_is_saved_before_anything_is_pictured(settings, monkeypatch):
    events = []
    monkeypatch.setattr(
        "accel_search.runtime.pictures.write_pictures", lambda *_: events.append("pictures")
    )
    given = settings(pictures=1, report="auto")
    found = explore(given, FakeEvaluator(), LOG, save=events.append)
    assert events == [found, "pictures"]
