"""search_params.json: its keys, what answers a later search, what `load_best` finds."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest

from accel_search.api import load_best
from accel_search.core.machine_health import Health
from accel_search.errors import ConfigurationError
from accel_search.runtime.demo import demo_folder
from accel_search.search.space import JointSpace
from accel_search.settings import Settings
from accel_search.storage.answers import stored_answer
from accel_search.storage.choice import find_result
from accel_search.storage.entries import SearchEntry
from accel_search.storage.json_files import Unreadable, as_type
from accel_search.storage.keys import parse_key
from accel_search.storage.lookup import Wanted, bounds, results
from accel_search.storage.search_results import save, save_winner
from accel_search.storage.workloads import held
from tests.support.fakes import PROVENANCE, WORKLOAD, FakeEvaluator
from tests.support.pages import StepTimed
from tests.support.results import GRID, Halved, searched

ROOT = Path(__file__).parents[2]


def answer(path, settings, provenance=PROVENANCE):
    space = JointSpace(settings.targets, WORKLOAD, settings.space)
    return stored_answer(path, WORKLOAD, settings, space.values(), provenance)


def test_an_upper_bound_is_stored_under_both_kinds_of_key(tmp_path):
    path = tmp_path / "search_params.json"
    searched(path, GRID())
    content = json.loads(path.read_text())
    goals = [ast.literal_eval(key)[3] for key in content]
    assert goals == ["upbound_speedup", 1.9]
    assert all(ast.literal_eval(key)[5] == ["deepcache"] for key in content)


def test_where_the_time_of_the_winners_calls_goes_is_stored(tmp_path):
    path = tmp_path / "search_params.json"
    entry = searched(path, GRID(), evaluator=StepTimed())
    assert answer(path, GRID())[0] == entry
    stored = json.loads(path.read_text())
    # Of deepcache(4, 3): 5 plain calls, 15 partial ones and 0.05 s, 0.27 s an image; a batch of 4.
    assert stored[next(iter(stored))]["evidence"]["step_table"] == {
        "pipeline_calls": 1,
        "batch_size": 4,
        "milliseconds": 1080.0,
        "rows": [
            {
                "type": "plain",
                "calls": 5,
                "milliseconds": 80.0,
                "share": 0.37037,
                "relative_to_plain": 1.0,
            },
            {
                "type": "deepcache partial at branch 3",
                "calls": 15,
                "milliseconds": 32.0,
                "share": 0.44444,
                "relative_to_plain": 0.4,
            },
            {
                "type": "rest of the call (text encoder, scheduler, decoder)",
                "calls": None,
                "milliseconds": 200.0,
                "share": 0.18519,
                "relative_to_plain": None,
            },
        ],
    }


def test_without_timed_unet_calls_it_is_null_and_earlier_files_lack_it(tmp_path):
    path = tmp_path / "search_params.json"
    entry = searched(path, GRID())
    content = json.loads(path.read_text())
    for value in content.values():
        assert value["evidence"].pop("step_table") is None
    path.write_text(json.dumps(content))
    assert answer(path, GRID())[0] == entry


def test_a_requirement_is_stored_under_the_speedup_it_reached(tmp_path):
    path = tmp_path / "search_params.json"
    entry = searched(path, GRID(req_speedup=1.5))
    goals = [ast.literal_eval(key)[3] for key in json.loads(path.read_text())]
    assert goals == [round(entry.speedup, 2)]


def test_a_requirement_that_held_out_timings_just_miss_answers_the_same_again(tmp_path):
    # It was met: the search's value reached it, and the held-out interval does.
    path, required = tmp_path / "f.json", GRID(req_speedup=1.5)
    entry = replace(searched(path, required), speedup=1.49)
    path.unlink()
    assert entry.evidence.in_search.speedup > 1.5
    assert [parse_key(key).goal for key in save(path, WORKLOAD, required, entry)] == [1.49]
    assert answer(path, required)[0] == entry
    assert answer(path, GRID(req_speedup=1.4))[0] == entry
    assert answer(path, GRID(req_speedup=1.51))[0] is None


def test_an_inconclusive_winner_says_how_many_prompts_would_settle_it(tmp_path):
    class Noisy(FakeEvaluator):
        """Loses more on some prompts than on others."""

        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            measured = super().measure(candidate, split, prompts, pairs)
            shifts = [1.0, -1.0] * 16 if split == "search" else [1.2, -1.2] * 16
            scores = (score + shift for score, shift in zip(measured.scores, shifts, strict=False))
            return replace(measured, scores=tuple(scores))

    entry = searched(tmp_path / "f.json", GRID(), evaluator=Noisy())
    evidence = entry.evidence
    assert evidence.held_out.verdict == evidence.verdict == "inconclusive"
    assert evidence.prompts_needed == evidence.held_out.prompts_needed > 32
    assert evidence.prompts_needed != evidence.in_search.prompts_needed


def test_a_loss_is_stored_as_a_part_of_the_usable_range_too(tmp_path):
    class Ranged(FakeEvaluator):
        """Its baseline scores 20 against other captions."""

        def baseline(self, split="search", prompts=None):
            measured = super().baseline(split, prompts)
            return replace(measured, shuffled_scores=(20.0,) * len(measured.scores))

    evidence = searched(tmp_path / "f.json", GRID(), evaluator=Ranged()).evidence
    assert evidence.shuffled_score == 20.0
    share = evidence.baseline_score / (evidence.baseline_score - 20)
    found = evidence.in_search
    assert found.range_loss == pytest.approx(found.score_loss * share, abs=1e-4)
    assert evidence.range_loss == evidence.held_out.range_loss > 2 * evidence.held_out.score_loss
    bare = searched(tmp_path / "g.json", GRID()).evidence
    assert bare.range_loss is None and bare.shuffled_score is None


def test_large_timing_noise_is_stored_with_its_cause_and_what_to_do(tmp_path):
    class Shared(FakeEvaluator):
        """Measures while others use 40 % of the GPU."""

        def _measurement(self, *arguments):
            measured = super()._measurement(*arguments)
            return replace(measured, health=(Health(other_gpu_use=0.4),) * 4)

    shared = Shared(lambda candidate: (6.0, 0.001), noise=0.2)
    entry = searched(tmp_path / "f.json", GRID(), evaluator=shared)
    note = entry.evidence.noise_note
    assert note.cause == "other processes used 40 % of the GPU" and 0.1 < note.noise < 1
    assert note.advice == "stop other work, or --timing_pairs 8"
    assert as_type(json.loads(json.dumps(entry.as_dict())), SearchEntry) == entry
    quiet = searched(tmp_path / "g.json", GRID())
    assert quiet.evidence.noise_note is None


def test_an_entry_is_flat_where_readers_look_and_carries_its_evidence(tmp_path):
    searched(tmp_path / "f.json", GRID())
    entry = next(iter(json.loads((tmp_path / "f.json").read_text()).values()))
    assert (entry["cache_interval"], entry["cache_branch_id"]) == (4, 3)
    assert entry["settings"] == {"deepcache": {"cache_interval": 4, "cache_branch_id": 3}}
    evidence = entry["evidence"]
    low, high = evidence["speedup_interval"]
    assert low <= entry["speedup"] <= high
    # The entry's own figures are those on held-out prompts, and the search's are kept.
    held_out, in_search = evidence["held_out"], evidence["in_search"]
    names = ("speedup_interval", "score_loss_interval", "verdict", "prompts")
    assert held_out["prompts"] == 32
    assert [evidence[name] for name in names] == [held_out[name] for name in names]
    assert (entry["speedup"], entry["score_loss"]) == (held_out["speedup"], held_out["score_loss"])
    assert in_search["speedup"] != held_out["speedup"] and in_search["verdict"] == "pass"
    assert evidence["chance_within_bound"] == 1.0
    assert evidence["tail_loss"] == pytest.approx(entry["score_loss"] * 1.1, rel=0.2)
    assert evidence["fewer_steps"][0]["tail_loss"] > 0
    assert evidence["trials_measured"] == 16 and evidence["settled"]
    assert evidence["fewer_steps"] and evidence["noise_floor"] > 0
    assert entry["provenance"] == PROVENANCE.as_dict() | {"measured_batch_size": 4}


def test_every_committed_entry_is_read_as_it_is_written():
    for name, iterate in (("search_params", results), ("speedup_bounds", bounds)):
        content = json.loads((ROOT / f"{name}.json").read_text())
        entries = [stored.entry for stored in iterate(content, strict=True)]
        assert len(entries) >= len(content) - ("failed_configs" in content) > 0
        for entry in entries:
            assert as_type(json.loads(json.dumps(entry.as_dict())), type(entry)) == entry


@pytest.mark.parametrize(
    "change",
    [
        {"speedup": 0},
        {"speedup": True},
        {"settings": {}},
        {"settings": {"deepcache": {"cache_interval": "3"}}},
        {"evidence": {"speedup_interval": [1.0]}},
        {"provenance": {"versions": {"torch": 2}}},
    ],
)
def test_an_entry_that_does_not_fit_its_type_is_skipped_and_kept(tmp_path, change):
    path = tmp_path / "f.json"
    entry = searched(path, GRID())
    content = json.loads(path.read_text())
    other = str(parse_key(next(iter(content)))._replace(steps="50"))
    corrupt = entry.as_dict() | change | {"of_a_later_version": 1}
    path.write_text(json.dumps(content | {other: corrupt}))
    assert [stored.key.steps for stored in results(json.loads(path.read_text()))] == ["20", "20"]
    with pytest.raises(Unreadable, match=r"at `\$\.|length"):
        list(results({other: corrupt}, strict=True))
    searched(path, GRID(req_score_loss=0.2))
    assert json.loads(path.read_text())[other] == json.loads(json.dumps(corrupt))


def test_the_same_search_is_answered_from_the_file(tmp_path):
    path = tmp_path / "f.json"
    entry = searched(path, GRID())
    assert answer(path, GRID()) == (entry, [])
    assert answer(path, GRID(seed=1))[0] is not None  # the prompt set is in the provenance


@pytest.mark.parametrize(
    "other",
    [
        GRID(req_score_loss=0.01),
        GRID(targets=("tome",)),
        GRID(req_speedup=5.0),
        GRID(space={"deepcache": {"cache_interval": (2, 3)}}),
        GRID(min_psnr=20.0),
    ],
)
def test_another_search_is_not_answered_from_the_file(tmp_path, other):
    path = tmp_path / "f.json"
    searched(path, GRID())
    assert answer(path, other)[0] is None


def test_a_grid_search_answers_others_and_is_answered_by_its_like_alone(tmp_path):
    path = tmp_path / "f.json"
    searched(path, GRID())
    assert answer(path, Settings(strategy="guided"))[0] is not None
    other = tmp_path / "g.json"
    searched(other, Settings(strategy="guided"))
    assert answer(other, Settings(strategy="guided"))[0] is not None
    assert answer(other, GRID())[0] is None


def test_a_requirement_is_answered_by_any_result_that_reached_it(tmp_path):
    path = tmp_path / "f.json"
    searched(path, GRID())
    assert answer(path, GRID(req_speedup=1.5))[0].speedup == pytest.approx(1.9, rel=0.02)


def test_a_requirement_is_met_by_the_speedup_and_not_by_its_key(tmp_path):
    path = tmp_path / "f.json"
    entry = searched(path, GRID())
    content = json.loads(path.read_text())
    upper = next(each for each in content if "upbound" in each)
    path.unlink()
    save_winner(path, upper, replace(entry, speedup=1.81666))
    assert keys_by_goal(path).keys() == {"upbound_speedup", 1.82}
    assert answer(path, GRID(req_speedup=1.82))[0] is None
    assert answer(path, GRID(req_speedup=1.81666))[0].speedup == 1.81666
    # Nor by a key that says too little, e.g. one that a person wrote.
    text = path.read_text().replace(", 1.82, ", ", 1, ")
    path.write_text(text)
    assert answer(path, GRID(req_speedup=1.8))[0] is not None


@pytest.mark.parametrize("goal", [{}, {"req_speedup": 1.5}])
def test_more_timing_pairs_are_measured_and_fewer_are_answered(tmp_path, goal):
    for budget in ({}, {"max_trials": 6}):  # All of the space, or part of it.
        path = tmp_path / f"{len(budget)}.json"
        entry = searched(path, GRID(timing_pairs=5, **goal, **budget))
        for fewer in (5, 3):
            assert answer(path, GRID(timing_pairs=fewer, **goal, **budget))[0] == entry
        assert answer(path, GRID(timing_pairs=6, **goal, **budget))[0] is None
    # One that is older than the field had the default.
    for stored, default in ((None, True), ("many", False)):
        content = json.loads(path.read_text())
        for each in content.values():
            each["evidence"]["search"].pop("timing_pairs", None)
            if stored is not None:
                each["evidence"]["search"]["timing_pairs"] = stored
        path.write_text(json.dumps(content))
        assert (answer(path, GRID(max_trials=6, **goal))[0] is not None) is default
        assert answer(path, GRID(timing_pairs=5, max_trials=6, **goal))[0] is None


def test_part_of_a_space_does_not_answer_for_all_of_it(tmp_path):
    path = tmp_path / "f.json"
    searched(path, GRID(max_trials=6))
    assert answer(path, GRID())[0] is None
    assert answer(path, GRID(max_trials=8))[0] is None
    assert answer(path, GRID(max_trials=6))[0] is not None


def test_a_result_from_elsewhere_is_named_and_not_reused(tmp_path):
    path = tmp_path / "f.json"
    searched(path, GRID())
    elsewhere = replace(PROVENANCE, device_name="NVIDIA H200", driver="580")
    entry, differences = answer(path, GRID(), elsewhere)
    assert entry is None and differences == ["device_name", "driver"]


def test_a_batch_that_was_halved_here_is_no_other_machine(tmp_path):
    path = tmp_path / "f.json"
    # Once it is halved, the evaluator's own provenance says so, too.
    halved = replace(PROVENANCE, batch_size=2)
    for provenance in (PROVENANCE, halved):
        entry = searched(path, GRID(batch_size=4), provenance, evaluator=Halved())
        where = entry.provenance
        assert (where.batch_size, where.measured_batch_size) == (4, 2)
        assert answer(path, GRID(batch_size=4)) == (entry, [])
    # A search of the smaller batch is another one.
    assert answer(path, GRID(batch_size=2), halved) == (None, ["batch_size"])


def test_keys_that_are_no_tuples_are_passed_over(tmp_path):
    path = tmp_path / "f.json"
    searched(path, GRID())
    content = json.loads(path.read_text())
    strange = {"__import__('os').system('touch hacked')": {}, "(1,": 3, "()": {}, "x": None}
    path.write_text(json.dumps(strange | content))
    assert answer(path, GRID())[0] is not None
    assert not (tmp_path / "hacked").exists()


class Pipeline:
    """Only its class name and its scheduler's are looked at."""


def test_load_best_takes_the_fastest_that_fits(tmp_path):
    path = tmp_path / "f.json"
    searched(path, GRID(req_score_loss=0.2))
    pipe = type("StableDiffusionPipeline", (), {"scheduler": type("DDIMScheduler", (), {})()})()
    assert load_best(path, pipe, steps=20) == {
        "deepcache": {"cache_interval": 5, "cache_branch_id": 0}
    }
    assert find_result(path, Wanted(targets=["deepcache"])).entry.settings == load_best(path)
    with pytest.raises(ConfigurationError, match="no result for .*50"):
        load_best(path, pipe, steps=50)
    with pytest.raises(ConfigurationError, match="no such file"):
        load_best(tmp_path / "none.json")


def test_of_several_bounds_one_has_to_be_said(tmp_path):
    path = tmp_path / "f.json"
    loose = searched(path, GRID(req_score_loss=0.2))
    strict = searched(path, GRID(req_score_loss=0.01))
    assert loose.speedup > strict.speedup
    with pytest.raises(ConfigurationError, match=r"say which with req_score_loss=0\.01 or 0\.2$"):
        load_best(path)
    assert load_best(path, req_score_loss=0.01) == strict.settings
    assert load_best(path, req_score_loss=0.2) == loose.settings
    with pytest.raises(ConfigurationError, match="no result for 20 steps, req_score_loss 0.5; run"):
        load_best(path, steps=20, req_score_loss=0.5)


def keys_by_goal(path):
    return {ast.literal_eval(key)[3]: value for key, value in json.loads(path.read_text()).items()}


def test_a_search_that_finds_less_takes_its_predecessors_place(tmp_path):
    path = tmp_path / "f.json"
    before = searched(path, GRID())
    required = searched(path, GRID(req_speedup=1.5), truth=lambda _: (1.55, 0.0))
    elsewhere = searched(tmp_path / "g.json", GRID(), replace(PROVENANCE, device_name="other"))
    other_bound = searched(path, GRID(req_score_loss=0.2))
    after = searched(path, GRID(), truth=lambda _: (1.2, 0.0))
    assert after.speedup < required.speedup < before.speedup
    found = keys_by_goal(path)
    assert found["upbound_speedup"]["speedup"] in (after.speedup, other_bound.speedup)
    speedups = {goal: each["speedup"] for goal, each in found.items() if goal != "upbound_speedup"}
    # What was found for a requirement, or within another bound, is another result.
    assert set(speedups.values()) == {each.speedup for each in (after, required, other_bound)}
    assert answer(path, GRID(req_speedup=1.8))[0] is None
    # Another device's is another result, too.
    path = tmp_path / "g.json"
    searched(path, GRID(), truth=lambda _: (1.2, 0.0))
    assert keys_by_goal(path)[1.9]["speedup"] == elsewhere.speedup


def test_of_two_models_only_ones_predecessor_goes(tmp_path):
    path = tmp_path / "f.json"
    entry = searched(path, GRID())
    content = json.loads(path.read_text())
    key = next(each for each in content if "upbound" in each)
    other = replace(entry, provenance=replace(entry.provenance, model_id="other"))
    save_winner(path, key, other)
    save_winner(path, key, replace(entry, speedup=1.1))
    kept = keys_by_goal(path)[1.9]
    assert kept["provenance"]["model_id"] == "other" and len(held(kept)) == 1
    # What cannot be read is no predecessor.
    content = json.loads(path.read_text())
    content[key.replace("'upbound_speedup'", "1.5")] = {"by_model": {"demo": 3}}
    path.write_text(json.dumps(content))
    save_winner(path, key, replace(entry, speedup=1.05))
    found = keys_by_goal(path)
    assert found[1.5] == {"by_model": {"demo": 3}} and 1.05 in found and 1.1 not in found


def test_a_faster_result_of_another_device_is_not_taken(tmp_path, caplog):
    path = tmp_path / "f.json"
    old = replace(PROVENANCE, device_name="H100", date="2026-01-01T00:00:00+00:00")
    new = replace(PROVENANCE, device_name="T4", date="2026-02-01T00:00:00+00:00")
    fast = searched(path, GRID(), old)
    slow = searched(path, GRID(), new, truth=lambda each: (1.2 if "deepcache" in each else 1, 0.0))
    assert fast.speedup > slow.speedup and fast.settings != slow.settings
    assert find_result(path, device="T4").entry.settings == slow.settings
    assert find_result(path, device="H100").entry.settings == fast.settings
    assert not caplog.records
    # Where the device is not known, the last one measured on, and it is said.
    assert load_best(path) == find_result(path, device="L4").entry.settings == slow.settings
    assert "holds results of H100, T4; taking those of T4, measured last" in caplog.text


def test_two_models_of_one_class_keep_their_own_results(tmp_path):
    path = tmp_path / "f.json"
    entry = searched(path, GRID())
    key = next(each for each in json.loads(path.read_text()) if "upbound" in each)
    settings = {"deepcache": {"cache_interval": 2, "cache_branch_id": 3}}
    where = replace(entry.provenance, model_id="sd2-community/sd21")
    other = replace(entry, speedup=9.0, settings=settings, provenance=where)
    save_winner(path, key, other)
    models = [each["provenance"]["model_id"] for each in held(json.loads(path.read_text())[key])]
    assert models == ["demo", "sd2-community/sd21"]
    # Each answers for its own model, and another result of it takes its own place alone.
    assert answer(path, GRID())[0] == entry
    save_winner(path, key, replace(other, speedup=8.0))
    assert answer(path, GRID())[0] == entry
    elsewhere = replace(PROVENANCE, model_id="sd2-community/sd21")
    assert answer(path, GRID(), elsewhere)[0].speedup == 8.0

    assert load_best(path, loaded_by("sd2-community/sd21"), steps=20) == settings
    assert load_best(path, loaded_by("demo"), steps=20) == entry.settings
    assert load_best(path, loaded_by("/a/copy"), model="demo") == entry.settings
    with pytest.raises(ConfigurationError, match="demo, sd2-community/sd21, .* /a/copy: say whose"):
        load_best(path, loaded_by("/a/copy"))
    with pytest.raises(ConfigurationError, match="no result for SDXL"):
        load_best(path, model="SDXL")
    # Without a pipeline to tell whose is meant, the fastest of all.
    assert load_best(path) == settings


def loaded_by(name):
    members = {"scheduler": type("DDIMScheduler", (), {})(), "config": {"_name_or_path": name}}
    return type("StableDiffusionPipeline", (), members)()


def test_a_result_that_may_be_of_another_model_is_applied_with_a_warning(tmp_path, caplog):
    path = tmp_path / "f.json"
    entry = searched(path, GRID())
    for name in ("stable-diffusion-v1-5/stable-diffusion-v1-5", str(tmp_path), "", None):
        assert load_best(path, loaded_by(name)) == entry.settings
        (record,) = caplog.records
        assert f"its result is of demo, and the pipeline was loaded from {name or 'elsewhere'}" in (
            record.getMessage()
        )
        caplog.clear()
        assert load_best(path, loaded_by(name), model="demo") == entry.settings
        assert load_best(path) == entry.settings
        assert not caplog.records


def test_one_model_by_its_names_is_no_other(tmp_path, caplog, monkeypatch):
    hub_id, path = "owner/sd--15", tmp_path / "f.json"
    snapshot = tmp_path / "hub" / "models--owner--sd--15" / "snapshots" / "0123abc"
    folder, link = tmp_path / "models" / "mine", tmp_path / "link"
    for each in (snapshot, folder):
        each.mkdir(parents=True)
    link.symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    demo = demo_folder() / "pipeline"
    (tmp_path / "demo").mkdir()  # `--pipe demo` never means a folder of that name.
    for model, names in {
        hub_id: [hub_id, str(snapshot), f"{snapshot}/"],
        "models/mine": [str(folder), "./models/mine", folder, str(link)],
        "demo": [demo, str(demo), "demo"],
    }.items():
        path.unlink(missing_ok=True)
        entry = searched(path, GRID(), replace(PROVENANCE, model_id=model))
        for name in names:
            assert load_best(path, loaded_by(name)) == entry.settings
        # Nor where the file has another's results, too.
        searched(path, GRID(), replace(PROVENANCE, model_id="another"), truth=lambda _: (1.2, 0.0))
        for name in names:
            assert load_best(path, loaded_by(name)) == entry.settings
    assert not caplog.records
