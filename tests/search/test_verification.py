"""`--verify`: a stored result measured again, and what is said of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from accel_search import session
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate, Verdict
from accel_search.core.trial import Goal
from accel_search.errors import ConfigurationError
from accel_search.report.console.verification import verified_json, verified_text
from accel_search.search.space import JointSpace
from accel_search.search.stored_evaluator import StoredEvaluator
from accel_search.search.verification import (
    Stored,
    differences,
    find_stored,
    judge_speedup,
    verify,
)
from accel_search.settings import UPPER_BOUND
from accel_search.storage.entries import SearchEntry
from accel_search.storage.json_files import as_type
from accel_search.storage.keys import search_key
from accel_search.storage.search_results import save_winner
from accel_search.storage.trials_file import read_trials
from accel_search.traversal_search import main
from tests.support.fakes import PROVENANCE, WORKLOAD, FakeEvaluator, deepcache_truth
from tests.support.options import FAST, SMALL, SURE
from tests.support.results import GRID, Halved, searched

TABLE = Path(__file__).parents[1] / "data" / "tables" / "deepcache.json.gz"


def slower(factor, loss=0.0):
    """Return a truth whose speedups have shrunk, and whose losses have grown."""

    def truth(candidate):
        speedup, lost = deepcache_truth(candidate)
        return speedup * factor, lost + loss

    return truth


def verified(path, settings, evaluator=None, provenance=PROVENANCE):
    evaluator = evaluator or FakeEvaluator()
    evaluator.provenance = provenance
    stored = find_stored(settings, evaluator.workload, evaluator.provenance)
    return verify(stored, evaluator, StoredEvaluator(evaluator, None))


@pytest.fixture
def stored(tmp_path):
    """Return settings whose result is stored."""
    settings = GRID(output=str(tmp_path / "f.json"))
    searched(tmp_path / "f.json", settings)
    return settings


def test_what_holds_passes_and_nothing_is_written(stored, tmp_path):
    before = (tmp_path / "f.json").read_bytes()
    evaluator = FakeEvaluator()
    found = verified(None, stored, evaluator)
    assert found.verdict == found.speedup_verdict == found.score_verdict == "pass"
    assert found.stored.candidate == Candidate(
        {"deepcache": {"cache_interval": 4, "cache_branch_id": 3}}
    )
    assert found.prompts == 32 and found.differences == () and evaluator.checked
    assert found.speedup.value == pytest.approx(1.9, rel=0.01)
    assert (tmp_path / "f.json").read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"f.json", "f.json.lock"}


def test_a_machine_on_which_it_is_slower_fails(stored):
    found = verified(None, stored, FakeEvaluator(slower(0.9)))
    assert (found.verdict, found.speedup_verdict, found.score_verdict) == ("fail", "fail", "pass")
    assert "does not hold here" in verified_text(found, stored)


def test_pictures_that_became_worse_fail(stored):
    found = verified(None, stored, FakeEvaluator(slower(1.0, loss=0.03)))
    assert (found.verdict, found.speedup_verdict, found.score_verdict) == ("fail", "pass", "fail")


def test_what_cannot_be_told_is_inconclusive_and_says_what_would_tell(stored):
    class Scattered(FakeEvaluator):
        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            measured = super().measure(candidate, split, prompts, pairs)
            shift = np.random.default_rng(0).normal(0, 1, len(measured.scores))
            return replace(measured, scores=tuple(np.asarray(measured.scores) + shift))

    found = verified(None, stored, Scattered())
    assert (found.verdict, found.score_verdict) == ("inconclusive", "inconclusive")
    assert found.prompts_needed > 32
    assert "prompts would settle it (--num_samples)" in verified_text(found, stored)
    # So noisy that no gain can be told from none.
    found = verified(None, stored, FakeEvaluator(noise=0.4))
    assert found.verdict == found.speedup_verdict == "inconclusive"
    assert "More --timing_pairs than 4" in verified_text(found, stored)


def test_a_candidate_that_fails_here_fails(stored):
    winner = Candidate({"deepcache": {"cache_interval": 4, "cache_branch_id": 3}})
    found = verified(None, stored, FakeEvaluator(fails=frozenset({winner})))
    assert found.verdict == "fail" and "the pipeline said no" in found.failure
    assert "the pipeline said no" in verified_text(found, stored)
    json.dumps(verified_json(found), allow_nan=False)


@pytest.mark.parametrize(
    ("low", "value", "high", "required", "verdict"),
    [
        (2.1, 2.3, 2.5, None, "pass"),
        (2.6, 2.8, 3.0, None, "pass"),
        (1.8, 1.95, 2.05, None, "inconclusive"),
        (1.7, 1.8, 1.9, None, "fail"),
        (0.9, 2.5, 6.0, None, "inconclusive"),
        (2.0, 2.2, 2.4, 2.0, "pass"),
        (1.9, 2.2, 2.4, 2.0, "inconclusive"),
        (1.7, 1.8, 1.9, 2.0, "fail"),
        (1.7, 1.8, 1.9, 1.5, "pass"),
    ],
)
def test_the_speedup_is_held_against_what_was_stored_or_required(
    low, value, high, required, verdict
):
    stored = Stored("f", Candidate(), Estimate(2.2, 2.0, 2.4), None, {}, Goal(0.02, required))
    assert judge_speedup(Estimate(value, low, high), 0.05, stored) == verdict


def test_a_gain_within_the_noise_of_two_copies_is_none():
    stored = Stored("f", Candidate(), Estimate(1.05, 1.0, 1.1), None, {}, Goal(0.02))
    found = Estimate(1.05, 1.01, 1.09)
    assert judge_speedup(found, 0.01, stored) is Verdict.PASS
    assert judge_speedup(found, 0.08, stored) is Verdict.INCONCLUSIVE


def test_the_luck_of_the_winner_is_not_held_against_the_machine(stored, tmp_path):
    path = tmp_path / "f.json"
    content = json.loads(path.read_text())
    for entry in content.values():
        entry["speedup"], entry["evidence"]["speedup_interval"] = 2.2, [2.1, 2.3]
        entry["evidence"]["held_out"]["speedup_interval"] = [1.8, 2.0]
    path.write_text(json.dumps(content))
    found = verified(None, stored)
    assert (found.stored.speedup.low, found.stored.speedup.high) == (1.8, 2.3)
    assert found.verdict == "pass"


def test_a_requirement_looks_up_what_reached_it_and_is_held(stored):
    found = verified(None, replace(stored, req_speedup=1.5), FakeEvaluator(slower(0.9)))
    assert found.stored.goal.min_speedup == 1.5 and found.verdict == "pass"
    with pytest.raises(ConfigurationError, match="no result that reached 5x for --pipe demo"):
        verified(None, replace(stored, req_speedup=5.0))


def test_a_bound_on_likeness_is_held_the_stored_one_or_the_one_given(tmp_path):
    class Like(FakeEvaluator):
        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            measured = super().measure(candidate, split, prompts, pairs)
            return replace(measured, ssim=(0.8,) * len(measured.scores))

    settings = GRID(output=str(tmp_path / "f.json"))
    searched(tmp_path / "f.json", settings)
    assert verified(None, settings, Like()).verdict == "pass"
    found = verified(None, replace(settings, min_ssim=0.9), Like())
    said = verified_text(found, settings)
    assert found.score_verdict == "fail" and "SSIM to the baseline's images: 0.80" in said
    content = json.loads((tmp_path / "f.json").read_text())
    for entry in content.values():
        entry["evidence"]["search"]["min_ssim"] = 0.85
    (tmp_path / "f.json").write_text(json.dumps(content))
    assert verified(None, settings, Like()).score_verdict == "fail"


def test_a_bound_on_the_worst_prompts_is_held_the_stored_one_or_the_one_given(tmp_path):
    class Uneven(FakeEvaluator):
        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            measured = super().measure(candidate, split, prompts, pairs)
            first, *others = self._scores[split]
            return replace(measured, scores=(0.9 * first, *others))

    settings = GRID(output=str(tmp_path / "f.json"))
    searched(tmp_path / "f.json", settings)
    assert verified(None, settings, Uneven()).verdict == "pass"
    found = verified(None, replace(settings, max_tail_loss=0.01), Uneven())
    assert found.score_verdict == "fail" and 0.01 < found.tail_loss < 0.1
    assert "The worst tenth of prompts loses 2." in verified_text(found, settings)
    assert verified_json(found)["score_loss"]["max_tail_loss"] == 0.01
    content = json.loads((tmp_path / "f.json").read_text())
    for entry in content.values():
        entry["evidence"]["search"]["max_tail_loss"] = 0.01
    (tmp_path / "f.json").write_text(json.dumps(content))
    assert verified(None, settings, Uneven()).score_verdict == "fail"


def test_in_what_the_machine_differs_is_said_version_by_version(stored):
    here = replace(PROVENANCE, driver="590", versions={"torch": "2.16.0"}, date="2027-01-01")
    found = verified(None, stored, provenance=here)
    assert [(each.name, each.stored, each.here) for each in found.differences] == [
        ("driver", None, "590"),
        ("torch", "2.15.0", "2.16.0"),
    ]
    said = verified_text(found, stored)
    assert "torch: 2.15.0 -> 2.16.0" in said
    assert verified_json(found)["differences"]["torch"] == {"stored": "2.15.0", "here": "2.16.0"}
    assert differences({}, here) == ()


def test_of_several_models_the_one_that_is_loaded_is_meant(stored, tmp_path):
    key = search_key(WORKLOAD, UPPER_BOUND, 0.02, ("deepcache",))
    entry = as_type(json.loads((tmp_path / "f.json").read_text())[key], SearchEntry)
    where = replace(entry.provenance, model_id="sd2-community/sd21")
    save_winner(tmp_path / "f.json", key, replace(entry, provenance=where, speedup=9.0))
    assert verified(None, stored).stored.speedup.value < 3
    elsewhere = replace(PROVENANCE, model_id="/models/copy")
    with pytest.raises(ConfigurationError, match="results of demo, sd2-community/sd21, but not of"):
        verified(None, stored, provenance=elsewhere)


def test_a_copy_of_the_only_model_is_verified_and_named(stored):
    found = verified(None, stored, provenance=replace(PROVENANCE, model_id="/models/copy"))
    assert [each.name for each in found.differences] == ["model_id"]


def test_a_batch_that_is_halved_here_is_held_against_the_baseline_of_its_size(stored):
    class Halved(FakeEvaluator):
        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            measured = super().measure(candidate, split, prompts, pairs)
            return replace(measured, batch_size=2)

        @property
        def baselines(self):
            return {"search": replace(self.baseline(), batch_size=2)}

    assert verified(None, stored, Halved()).verdict == "pass"


def test_a_batch_that_was_halved_there_too_is_no_difference(tmp_path):
    settings = GRID(output=str(tmp_path / "f.json"))
    searched(tmp_path / "f.json", settings, evaluator=Halved())
    here = replace(PROVENANCE, batch_size=2)
    assert verified(None, settings, Halved(), provenance=here).differences == ()
    (found,) = verified(None, settings).differences
    assert (found.name, found.stored, found.here) == ("batch_size", 2, 4)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ("{", "cannot be read"),
        ("[]", "cannot be read: Expected `object`, got `array`"),
        ("{}", "holds no result for --pipe demo --sched DDIM --steps 20 --targets deepcache"),
    ],
)
def test_without_a_stored_result_it_is_one_line_before_anything_loads(
    tmp_path, monkeypatch, capsys, content, says
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "search_params.json").write_text(content)
    assert main(["--verify"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    # A guard moves no file aside.
    kept = "search_params.json"
    assert content is None or (tmp_path / kept).read_text() == content
    assert not list(tmp_path.glob("*corrupt*"))


def test_an_entry_that_lacks_its_settings_is_none(stored, tmp_path):
    content = json.loads((tmp_path / "f.json").read_text())
    for entry in content.values():
        del entry["settings"]
        entry["by_model"] = {"demo": {"speedup": 1.0}}
    (tmp_path / "f.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="holds no result for"):
        verified(None, stored)


def test_an_entry_that_cannot_be_read_is_passed_over(stored, tmp_path):
    content = json.loads((tmp_path / "f.json").read_text())
    for entry in content.values():
        entry["evidence"]["speedup_interval"] = ["fast", 1.0]
    (tmp_path / "f.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="holds no result"):
        verified(None, stored)


def test_to_verify_and_to_search_again_are_two_things(capsys):
    assert main(["--verify", "--force"]) == 2
    assert "--verify and --force: choose one" in capsys.readouterr().err


@pytest.fixture
def replay(tmp_path, monkeypatch, capsys):
    """Return a function that verifies against recorded trials; their own winner is stored."""
    monkeypatch.chdir(tmp_path)
    command = ["--replay", str(TABLE), "--strategy", "grid"]
    assert main([*command, "--json"]) == 0
    entry = as_type(json.loads(capsys.readouterr().out), SearchEntry)
    key = search_key(read_trials(TABLE).workload, UPPER_BOUND, 0.02, ("deepcache",))

    def run(*arguments, **changes):
        save_winner(tmp_path / "search_params.json", key, replace(entry, **changes))
        code = main([*command, "--verify", *arguments])
        return code, capsys.readouterr().out

    return run


def test_the_program_verifies_against_recorded_trials_with_its_three_codes(replay):
    code, out = replay()
    assert code == 0 and "\npass: the result stored in search_params.json holds" in out
    assert "The trials were recorded" in out
    # A search's own options, those of a configuration file among them, write nothing here.
    code, _ = replay("--report", "page.html", "--trials_out", "out.json", "--export", "fast.py")
    assert code == 0 and not {"page.html", "out.json", "fast.py"} & {
        each.name for each in Path().iterdir()
    }
    slow = {"deepcache": {"cache_interval": 2, "cache_branch_id": 3}}
    code, out = replay("--json", settings=slow)
    assert code == 3 and json.loads(out)["speedup"]["verdict"] == "fail"
    code, out = replay("--json", "--req_speedup", "2.0")
    found = json.loads(out)
    low, high = found["speedup"]["interval"]
    assert (code, found["verdict"]) == ((0, "pass") if low >= 2 else (7, "inconclusive"))
    assert found["speedup"]["required"] == 2.0 and low < found["speedup"]["value"] < high


def test_an_inconclusive_one_is_code_7(replay):
    _, out = replay("--json")
    value = json.loads(out)["speedup"]["value"]
    code, out = replay("--json", "--req_speedup", f"{value:.2f}", speedup=value + 0.01)
    assert (code, json.loads(out)["verdict"]) == (7, "inconclusive")


def test_a_search_that_finds_a_result_from_elsewhere_offers_to_verify_it(
    stored, tmp_path, monkeypatch, capsys
):
    class Elsewhere(FakeEvaluator):
        def __init__(self):
            super().__init__()
            self.provenance = replace(PROVENANCE, driver="590", prompt_set_hash="f")

    monkeypatch.chdir(tmp_path)
    space = JointSpace(("deepcache",), WORKLOAD)
    monkeypatch.setattr(session, "open_evaluator", lambda *_: (Elsewhere(), space))
    command = ["--output", stored.output, "--strategy", "grid"]
    assert main([*command, "--verify"]) == 0
    out = capsys.readouterr().out
    assert "driver: None -> 590" in out and "prompts or seed: 0123456789abcdef -> f" in out
    assert main(command) == 0
    said = capsys.readouterr().err
    assert (
        "measured elsewhere (other driver, prompts or seed); searching here (--verify measures "
        "that one" in said
    )
    # Now it is of this machine, and answers at once.
    assert main(command) == 0
    assert "--verify measures it again, --force searches again." in capsys.readouterr().out


def test_what_was_timed_once_holds_nothing_and_says_so(stored):
    class Once(FakeEvaluator):
        def baseline(self, split="search", prompts=None):
            return replace(super().baseline(split, prompts), baseline_seconds_per_image=())

        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            return super().measure(candidate, split, prompts, 1)

    found = verified(None, stored, Once())
    assert found.speedup_verdict == "inconclusive"
    said = verified_text(found, stored)
    assert "1.90 [unknown]" in said and "nothing was timed twice" in " ".join(said.split())
    figures = json.loads(json.dumps(verified_json(found), allow_nan=False))["speedup"]
    assert figures["interval"] is None and figures["noise_floor"] is None


def ends_as_its_figures_say(code, found):
    """Check a verification's exit code and speedup verdict by the figures that it gives.

    Which verdict it is hangs on how busy the machine is.
    """
    said = found["speedup"]
    here, there = (Estimate(each["value"], *each["interval"]) for each in (said, said["stored"]))
    kept = Stored(found["file"], Candidate(found["settings"]), there, None, {}, Goal(1.0))
    assert said["verdict"] == judge_speedup(here, said["noise_floor"], kept)
    assert code == {"pass": 0, "fail": 3, "inconclusive": 7}[found["verdict"]]
    # Beside a score that passes or that is none, the speed alone decides.
    assert found["verdict"] == said["verdict"]


@pytest.mark.slow
def test_the_demo_is_verified_on_the_machine_that_searched_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fast.toml").write_text(FAST.replace("5, 4", "5"))
    command = ["--config", "fast.toml", "--req_score_loss", "1", *SMALL, *SURE]
    # On two prompts hardly any loss is certain: not even that it is less than all of the score.
    command += ["--num_samples", "16", "--held_out_samples", "0"]
    assert main([*command, "--strategy", "grid"]) == 0
    before = (tmp_path / "search_params.json").read_bytes()
    capsys.readouterr()
    code = main([*command, "--verify", "--json"])
    found = json.loads(capsys.readouterr().out)
    ends_as_its_figures_say(code, found)
    # The same machine makes the same pictures, so nothing but the timings differs.
    loss = found["score_loss"]
    assert loss["stored"] == {name: loss[name] for name in ("value", "interval")}
    assert loss["verdict"] == "pass" and found["differences"] == {}
    assert (tmp_path / "search_params.json").read_bytes() == before
    content = json.loads(before)
    for entry in content.values():
        entry["evidence"]["speedup_interval"] = [49.0, 51.0]
        entry["evidence"]["held_out"] = entry["evidence"]["in_search"] = None
        entry["speedup"] = 50.0
        entry["provenance"]["versions"]["torch"] = "1.13"
    (tmp_path / "search_params.json").write_text(json.dumps(content))
    assert main([*command, "--verify"]) == 3
    assert "torch: 1.13 -> " in capsys.readouterr().out


@pytest.mark.slow
def test_a_bound_on_speed_alone_is_verified_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fast.toml").write_text(FAST.replace("5, 4", "5"))
    command = ["--config", "fast.toml", "--latency_only", *SMALL]
    assert main(command) in (0, 3)  # On a busy machine a gain may drown in the noise.
    capsys.readouterr()
    code = main([*command, "--verify", "--json"])
    found = json.loads(capsys.readouterr().out)
    ends_as_its_figures_say(code, found)
    assert found["score_loss"] is None and found["file"] == "speedup_bounds.json"
