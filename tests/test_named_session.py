"""`--candidate`: these settings and no others, measured, judged and compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from accel_search import load_trials
from accel_search.core.candidate import Candidate
from accel_search.errors import ConfigurationError
from accel_search.settings import Settings, from_command_line, search_parser
from accel_search.storage.run_reader import read_run
from accel_search.traversal_search import main
from tests.support.fakes import FakeEvaluator, deepcache_truth
from tests.support.options import SMALL
from tests.support.replays import TABLE
from tests.support.searches import point

SETTINGS = ["--candidate", "deepcache(4,3)", "--candidate", "deepcache(2, 0)"]


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Return what runs the program on a fake pipeline, and gives its code and what it measured."""
    monkeypatch.chdir(tmp_path)

    def run(*options, **fake):
        evaluator = fake.pop("evaluator", None) or FakeEvaluator(**fake)
        opened = "accel_search.runtime.workbench.open_evaluator"
        monkeypatch.setattr(opened, lambda settings, logger: evaluator)
        return main([*options, "--pictures", "0"]), evaluator.calls

    return run


def test_these_are_measured_on_all_prompts_in_pairs_and_nothing_else_is(measure, tmp_path, capsys):
    evaluator = FakeEvaluator()
    code, calls = measure(*SETTINGS, evaluator=evaluator)
    out = capsys.readouterr().out
    assert code == 0 and evaluator.checked
    assert calls == [(each, "search", range(32)) for each in (point(4, 3), point(2, 0))]
    assert evaluator.pairs_asked == [("search", None)] * 2  # As many as are asked for.
    assert not (tmp_path / "search_params.json").exists()
    assert re.search(r"1\.90 \[.*\]  1\.6 % \[.*\]  pass  deepcache\(4, 3\)\n", out)
    assert "by the goal: faster than the baseline, within 2 % of the baseline's score" in out
    assert "Compared with deepcache(4, 3)" in out
    assert re.search(r"0\.7\d \[.*\]  -0\.8 % \[.*\]  deepcache\(2, 0\): slower, loses less", out)


@pytest.mark.parametrize(
    ("options", "noise", "code", "verdict"),
    [
        ([], 0.002, 0, "pass"),
        (["--req_score_loss", "0.01"], 0.002, 3, "fail"),
        (["--req_speedup", "1.8"], 0.002, 0, "pass"),
        (["--req_speedup", "2.5"], 0.002, 3, "fail"),
        (["--req_speedup", "1.9"], 0.1, 7, "inconclusive"),
        (["--max_tail_loss", "0.001"], 0.002, 3, "fail"),
    ],
)
def test_a_ci_can_gate_on_the_exit_code(measure, capsys, options, noise, code, verdict):
    assert measure("--candidate", "deepcache(4,3)", *options, noise=noise)[0] == code
    out = capsys.readouterr().out
    assert f"deepcache(4, 3): {verdict}. " in out


def test_one_that_fails_fails_all_and_the_others_are_measured(measure, capsys):
    code, calls = measure(*SETTINGS, fails=frozenset({point(4, 3)}))
    out = capsys.readouterr().out
    assert code == 3 and len(calls) == 2
    assert "fail. unknown_error: the pipeline said no" in out
    assert "deepcache(2, 0): not compared, one failed" in out
    # As in a search, what failed is not tried again but by --force.
    assert len(measure(*SETTINGS)[1]) == 0 and len(measure(*SETTINGS, "--force")[1]) == 2


def test_json_has_verdicts_figures_and_comparisons(measure, capsys):
    code, _ = measure(*SETTINGS, "--json", "--req_score_loss", "0.01")
    told = json.loads(capsys.readouterr().out)
    assert code == 3 and told["verdict"] == "fail"
    assert [one["verdict"] for one in told["candidates"]] == ["fail", "pass"]
    first = told["candidates"][0]
    assert first["settings"] == point(4, 3).as_dict()
    assert first["speedup"]["verdict"] == "pass" and first["score_loss"]["verdict"] == "fail"
    low, high = first["speedup"]["interval"]
    assert low < first["speedup"]["value"] < high and first["score_loss"]["prompts"] == 32
    (compared,) = told["comparisons"]
    assert compared["against"] == first["settings"]
    assert compared["score_loss"]["interval"][0] < 0 < compared["speed"]["interval"][0]
    assert told["provenance"]["device_name"] and told["study"]


def test_the_same_command_goes_on_and_measures_nothing_twice(measure, capsys):
    class Interrupted(FakeEvaluator):
        def measure(self, candidate, *arguments, **options):
            if self.calls:
                raise KeyboardInterrupt
            return super().measure(candidate, *arguments, **options)

    code, calls = measure(*SETTINGS, evaluator=Interrupted())
    assert code == 130 and len(calls) == 1
    assert measure(*SETTINGS) == (0, [(point(2, 0), "search", range(32))])
    first = capsys.readouterr().out
    assert measure(*SETTINGS) == (0, [])
    again = capsys.readouterr().out
    table = re.compile(r"^  speedup  .*?\n\n", re.S | re.M)
    assert table.search(first)[0] == table.search(again)[0] and "2 in an earlier run" in again
    # Others of the same workload are in the same study.
    assert measure(*SETTINGS, "--candidate", "tome(0.4,2)", truth=lambda _: (1.5, 0.01))[1] == [
        (Candidate({"tome": {"ratio": 0.4, "max_downsample": 2}}), "search", range(32))
    ]


def test_what_a_search_measured_is_not_measured_again(measure):
    assert measure("--strategy", "grid", "--quiet")[0] == 0
    code, calls = measure(*SETTINGS, "--candidate", "deepcache(7,0)")
    assert code == 3 and [candidate for candidate, *_ in calls] == [point(7, 0)]
    assert len(measure(*SETTINGS, "--force")[1]) == 2


def test_what_a_search_gave_up_early_is_measured_on_all_prompts(measure):
    """Where little may be lost, four prompts are enough for most of DeepCache's settings."""
    search = ["--strategy", "random", "--req_score_loss", "0.001", "--quiet"]
    _, calls = measure(*search)
    stages = {}
    for candidate, split, prompts in calls:
        if split == "search" and "deepcache" in candidate:
            stages[candidate] = prompts.stop
    given_up = next(candidate for candidate, stop in stages.items() if stop < 32)
    assert measure("--candidate", str(given_up))[1] == [(given_up, "search", range(32))]


def test_a_search_knows_nothing_of_what_was_named(measure, tmp_path):
    """One outside its space would win it, and one inside would not be chosen by its strategy."""

    def truth(candidate):
        return deepcache_truth(candidate)[0], 0.0

    assert measure("--candidate", "deepcache(9,0)", truth=truth)[0] == 0
    code, calls = measure("--strategy", "grid", "--quiet", truth=truth)
    assert code == 0 and len({candidate for candidate, *_ in calls} - {point(9, 0)}) >= 16
    stored = json.loads((tmp_path / "search_params.json").read_text())
    assert {entry["cache_interval"] for entry in stored.values()} == {5}
    before = (tmp_path / "search_params.json").read_bytes()
    assert measure("--candidate", "deepcache(8,0)", truth=truth)[0] == 0
    assert (tmp_path / "search_params.json").read_bytes() == before


def test_what_coincides_is_measured_once_and_said(measure, capsys):
    named = ["tome(0.8,1)", "tome(0.9,1)", "tome(.8, 1)"]
    options = [word for text in named for word in ("--candidate", text)]
    code, calls = measure(*options, truth=lambda _: (1.5, 0.0))
    out = capsys.readouterr().out
    assert code == 0 and len(calls) == 1
    assert "tome(ratio=0.8, max_downsample=1) is named 2 times and measured once" in out
    assert out.count("the same computation\n") == 1 and "= tome(0.9, 1), the same" in out
    assert "is the same computation as tome(ratio=0.8, max_downsample=1) here" in out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("deepcache(1,0)", "changes nothing"),
        ("tome(0,2)", "changes nothing"),
        ("steps(20)", "cannot have num_inference_steps 20 at 20 steps"),
        ("tgate(20,2,2,1)", "cannot have gate_step 20 at 20 steps"),
        ("steps(6) + tgate(10,2,2,1)", "cannot have gate_step 10 at 6 steps"),
    ],
)
def test_what_means_nothing_on_the_workload_is_one_line(measure, capsys, text, says):
    code, calls = measure("--candidate", "deepcache(3,0)", "--candidate", text)
    error = capsys.readouterr().err
    assert code == 2 and not calls and error.count("\n") == 1
    assert says in error and "--candidate" in error


def test_a_mistake_is_found_before_torch_is_loaded():
    code = (
        "import sys\nfrom accel_search.traversal_search import main\n"
        "assert main(['--candidate', 'deepcach(3,0)']) == 2\n"
        "assert main(['--candidate', 'deepcache(0,0)']) == 2\n"
        "assert main(['--candidate', 'tome(.4,2)', '--targets', 'deepcache']) == 2\n"
        "assert not {'torch', 'optuna', 'diffusers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.count("\n") == 3 and "did you mean deepcache?" in done.stderr


def parse(*arguments):
    return from_command_line(search_parser("accel-search", "", "0"), arguments)


@pytest.mark.parametrize(
    ("beside", "says"),
    [
        (["--targets", "tome"], "--targets tome: the accelerators of --candidate are deepcache;"),
        (["--targets", "deepcache,tome"], "leave --targets out"),
        (["--verify"], "--candidate and --verify: choose one"),
        (["--latency_only"], "--candidate and --latency_only: choose one"),
        (["--export", "f.py"], "--candidate and --export: choose one"),
    ],
)
def test_what_contradicts_it_is_one_line(beside, says):
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        parse("--candidate", "deepcache(3,0)", *beside)


def test_candidates_come_from_a_file_and_flags_win(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('candidate = ["deepcache(3,0)", {tome = {ratio = 0.4, max_downsample = 2}}]\n')
    settings = parse("--config", str(path))
    assert settings.targets == ("deepcache", "tome") and len(settings.candidate) == 2
    assert parse("--config", str(path), *SETTINGS).candidate == (point(4, 3), point(2, 0))
    assert Settings(candidate=[point(2, 0)]).candidate == (point(2, 0),)


def test_a_report_is_of_the_named_settings(measure, tmp_path):
    assert measure(*SETTINGS, "--report", "r.html", "--trials_out", "t.json")[0] == 0
    page = (tmp_path / "r.html").read_text()
    assert "deepcache(4, 3)" in page and "1.90×" in page
    assert "search_params.json" not in page  # Where it is not.
    run = read_run(tmp_path / "accel_search_runs")
    assert run.winner.candidate == point(4, 3) and run.asked.strategy == "named"
    assert len(load_trials(tmp_path / "accel_search_runs")) == 2
    # What was written can be replayed.
    assert main(["--replay", "t.json", *SETTINGS]) == 0
    assert measure("--candidate", "deepcache(5,0)", "--report", "r.html")[0] == 3
    assert (
        "None of the named settings is shown to meet the goal" in (tmp_path / "r.html").read_text()
    )


def test_recorded_trials_are_judged_without_a_pipeline(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    replay = ["--replay", str(TABLE)]
    assert main([*replay, "--candidate", "deepcache(3,0)", "--candidate", "deepcache(5,0)"]) == 0
    assert "Compared with deepcache(3, 0)" in capsys.readouterr().out
    assert main([*replay, "--candidate", "deepcache(7,0)"]) == 2
    assert "holds no trial of it" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"traversal_search.log"}


@pytest.mark.slow  # tests/docs/test_workflow.py measures on one, too.
def test_a_real_pipeline_is_measured_with_settings_outside_the_space(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [
        *SMALL,
        "--candidate",
        "deepcache(7,0)",
        "--candidate",
        "deepcache(3,1) + tome(.5,1)",
    ]
    code = main([*options, "--report", "--quiet"])
    out = capsys.readouterr().out
    # On two prompts nothing passes.
    assert code in (3, 7) and "deepcache(7, 0): " in out
    assert "Compared with deepcache(7, 0)" in out
    page = (tmp_path / "accel_search_runs" / "report.html").read_text()
    assert page.count("<figure>") == 3 * 2
    assert main([*options, "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert [len(one["settings"]) for one in told["candidates"]] == [1, 2]
