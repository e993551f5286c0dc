"""Recorded trials in place of a pipeline, through the whole program."""

import ast
import gzip
import json
import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from accel_search.core.candidate import Candidate
from accel_search.errors import ConfigurationError
from accel_search.search.replay import open_replay
from accel_search.search.strategies import all_strategies
from accel_search.storage.trials_file import FORMAT, read_trials
from accel_search.traversal_search import main
from tests.support.fakes import WORKLOAD
from tests.support.replays import TABLE
from tests.support.trials import recorded


@pytest.fixture
def replay(tmp_path, monkeypatch):
    """Return a function that writes a file and runs the program on it."""
    monkeypatch.chdir(tmp_path)

    def run(content, *arguments):
        (tmp_path / "trials.json").write_text(
            content if isinstance(content, str) else json.dumps(content)
        )
        return main(["--replay", "trials.json", *arguments])

    return run


@pytest.mark.parametrize("strategy", sorted(all_strategies()))
def test_a_plain_file_is_searched(replay, capsys, strategy):
    assert replay(recorded(), "--strategy", strategy, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cache_interval"] == 3
    assert found["speedup"] == pytest.approx(3, rel=0.01)
    assert found["provenance"] is None


def test_a_replay_never_writes_a_result_file(replay, tmp_path):
    assert replay(recorded(), "--quiet") == 0
    assert not (tmp_path / "search_params.json").exists()


def test_what_a_replay_says_to_use_stands_in_what_it_says(replay, capsys):
    assert replay(recorded(), "--strategy", "grid") == 0
    said = capsys.readouterr().out
    assert replay(recorded(), "--strategy", "grid", "--json") == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    call = ast.parse(textwrap.dedent(said.split("Use it:\n")[1])).body[-1].value
    assert ast.literal_eval(call.args[1]) == settings
    assert "search_params.json" not in said


def test_timed_unet_calls_are_a_table_in_the_result_and_count_once(replay, capsys):
    content = json.loads(gzip.decompress(TABLE.read_bytes()))
    count = content["workload"]["unet_calls"]
    for trial in content["trials"]:
        interval = trial["candidate"]["deepcache"]["cache_interval"]
        seconds = [0.01 if call % interval else 0.04 for call in range(count)]
        times = {"call": 2 * sum(seconds), "seconds": seconds, "baseline_calls": count}
        times["kinds"] = [int(call % interval > 0) for call in range(count)]
        trial["step_times"] = [times, times]
    assert replay(content, "--strategy", "guided", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    table = found["evidence"]["step_table"]
    assert table["pipeline_calls"] == 2  # However many stages it was scored in.
    plain, partial, rest = table["rows"]
    assert plain["calls"] == math.ceil(count / found["cache_interval"])
    assert (plain["calls"] + partial["calls"], rest["calls"]) == (count, None)
    assert partial["type"] == f"deepcache partial at branch {found['cache_branch_id']}"
    assert (partial["relative_to_plain"], rest["share"]) == (0.25, 0.5)


def test_nothing_within_the_bound_is_code_3(replay, capsys):
    assert replay(recorded(), "--req_speedup", "9", "--json") == 3
    assert json.loads(capsys.readouterr().out)["speedup"] is None


def noisy():
    """Return recorded trials, timed on a GPU that its power cap held back at half of the calls."""
    content = recorded()
    health = {"sm_mhz": 1980.0, "max_sm_mhz": 1980.0, "throttle_reasons": 0, "watts": 500.0}
    slowed = health | {"sm_mhz": 1410.0, "throttle_reasons": 4, "watts": 700.0}
    for part, seconds in ((content["baseline"], 0.5), *((t, 0.25) for t in content["trials"])):
        part["seconds_per_image"] = [seconds, 1.6 * seconds, 1.5 * seconds, seconds]
        part["health"] = [health, slowed, slowed, health]
    return content


def test_noise_is_explained_in_the_log_the_summary_the_report_and_the_json(
    replay, tmp_path, capsys
):
    note = r"iming noise ±[\d,]+ % \(the GPU ran at 1,410 of 1,980 MHz: power cap\): lock its clock"
    made = ["--report", "page.html", "--trials_out", "out.json", "--strategy", "grid"]
    assert replay(noisy(), *made) == 3
    said = " ".join(capsys.readouterr().out.split())
    (first, *_) = re.findall(f"baseline: 0.625 s an image, .*; t{note}", said)
    assert re.search(f" T{note} lower", said.partition(first)[2])
    assert re.search(f">T{note}", (tmp_path / "page.html").read_text())
    assert replay(noisy(), "--json", "--strategy", "grid") == 3
    found = json.loads(capsys.readouterr().out)["noise_note"]
    assert found["cause"] == "the GPU ran at 1,410 of 1,980 MHz: power cap"
    assert found["advice"].endswith("or --timing_pairs 4") and found["noise"] > 0.1
    trials = read_trials(tmp_path / "out.json").trials
    assert {each.measurement.health for each in trials} == {
        each.measurement.health for each in read_trials(tmp_path / "trials.json").trials
    }
    # A trial in two stages holds each sample once.
    (first, *_), (evaluator, _) = trials, open_replay(tmp_path / "out.json", ("deepcache",))
    stages = [evaluator.measure(first.candidate, prompts=part) for part in (range(2), range(2, 3))]
    assert stages[0].joined(stages[1]).health == first.measurement.health
    assert len(first.measurement.health) == 4
    # Of files without samples the noise is stated, and not explained.
    bare = noisy()
    for part in (bare["baseline"], *bare["trials"]):
        del part["health"]
    replay(bare)
    said = capsys.readouterr().out
    assert "%: stop other work, or --timing_pairs 4" in said and "MHz" not in said


def test_recorded_seconds_are_charged_to_the_budget(replay, capsys):
    # The baseline is charged 8 s (4 calls of 4 images); the first trial exceeds the rest.
    assert replay(recorded(), "--time_budget", "8.1", "--json") in (0, 3)
    capsys.readouterr()
    assert replay(recorded(), "--time_budget", "8.1") in (0, 3)
    assert capsys.readouterr().out.count("speedup: ") >= 1


def test_a_recorded_failure_is_a_failed_trial(replay, capsys):
    content = recorded()
    content["trials"][1] = {
        "candidate": content["trials"][1]["candidate"],
        "seconds_per_image": [],
        "scores": [],
        "failure": {"kind": "cuda_oom", "message": "tried to allocate 2 GiB", "seconds": 3.0},
    }
    assert replay(content) == 0
    out = capsys.readouterr().out
    assert "failed: cuda_oom: tried to allocate 2 GiB" in out
    assert "cache_interval=2" in out


def test_what_a_search_writes_is_what_a_replay_reads(replay, tmp_path, capsys):
    assert replay(recorded(), "--strategy", "grid", "--trials_out", "out.json", "--quiet") == 0
    written = read_trials(tmp_path / "out.json")
    assert len(written.trials) == 3
    assert {str(t.candidate) for t in written.trials} == {
        str(Candidate(t["candidate"])) for t in recorded()["trials"]
    }
    capsys.readouterr()
    assert main(["--replay", "out.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cache_interval"] == 3


def test_a_compressed_file_is_written_and_read_and_is_the_same_each_time(replay, tmp_path):
    for name in ("one.json.gz", "two.json.gz", "plain.json"):
        assert replay(recorded(), "--strategy", "grid", "--trials_out", name, "--quiet") == 0
    one, two = ((tmp_path / name).read_bytes() for name in ("one.json.gz", "two.json.gz"))
    assert one == two and gzip.decompress(one) == (tmp_path / "plain.json").read_bytes()
    assert read_trials(tmp_path / "one.json.gz") == read_trials(tmp_path / "plain.json")
    (tmp_path / "cut.json.gz").write_bytes(one[:-20])
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_trials(tmp_path / "cut.json.gz")


@pytest.mark.parametrize("strategy", ["guided", "bayes", "grid"])
@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_a_bound_on_what_was_not_recorded_is_refused(replay, capsys, strategy, name):
    bound = {"psnr": ["--min_psnr", "20"], "ssim": ["--min_ssim", "0.5"]}[name]
    content = recorded()
    assert replay(content, *bound, "--strategy", strategy) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{' '.join(bound)}: trials.json lacks the {name.upper()} of some" in line
    for trial in content["trials"]:
        trial[name] = [30.0] * 3 if name == "psnr" else [0.9] * 3
    assert replay(content, *bound, "--strategy", strategy, "--quiet") == 0
    content["trials"][2][name].pop()  # One picture's is missing.
    assert replay(content, *bound, "--strategy", strategy) == 2
    assert "cache_interval=5" in capsys.readouterr().err
    content["beside"] = {"held_out:deepcache(cache_interval=3, cache_branch_id=0)": {
        **content["trials"][1], name: [], "batch_size": 4, "seconds": 1.0,
        "baseline_seconds_per_image": [0.5],
    }}  # fmt: skip
    content["trials"][2][name] = [*content["trials"][1][name]]
    assert replay(content, *bound, "--strategy", strategy) == 2
    assert "cache_interval=3" in capsys.readouterr().err


def test_an_early_look_is_answered_and_charged_in_part(tmp_path):
    path = tmp_path / "t.json"
    content = recorded(baseline={"seconds_per_image": [0.5, 0.5], "scores": [30.0] * 8})
    for trial in content["trials"]:
        trial["scores"] = [float(each) for each in range(20, 28)]
    path.write_text(json.dumps(content))
    evaluator, space = open_replay(path, ("deepcache",))
    whole = evaluator.measure(space.candidate_at(0))
    looks = [
        evaluator.measure(space.candidate_at(0), prompts=range(a, b)) for a, b in ((0, 4), (4, 8))
    ]
    assert looks[0].scores == (20.0, 21.0, 22.0, 23.0)
    assert looks[0].joined(looks[1]) == whole
    assert looks[0].seconds == looks[1].seconds == whole.seconds / 2


def test_coinciding_points_are_one_where_the_workload_is_known(tmp_path):
    content = recorded(
        workload={**vars(WORKLOAD), "attention_downsamples": [1, 2, 4]},
        trials=[
            {
                "candidate": {"tome": {"ratio": ratio, "max_downsample": level}},
                "seconds_per_image": [0.4],
                "scores": [30, 31, 32],
                "failure": None,
            }
            for ratio, level in ((0.8, 2), (0.9, 3), (0.3, 1))
        ],
    )
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    _, space = open_replay(path, ("tome",))
    assert len(space) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("not json", "cannot be read"),
        ("[1]", "format is None"),
        (json.dumps({"format": "other/2"}), "other/2"),
        (json.dumps({"format": FORMAT}), "workload"),
        (json.dumps(recorded(baseline={"seconds_per_image": [], "scores": []})), "no samples"),
        (json.dumps(recorded(trials=[{"candidate": {}}])), "seconds_per_image"),
        (json.dumps(recorded(trials=[])), "no trial"),
    ],
)
def test_a_bad_file_is_one_line_and_code_2(replay, capsys, content, says):
    assert replay(content) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def of_one_prompt():
    content = recorded()
    for each in (content["baseline"], *content["trials"]):
        each["scores"] = each["scores"][:1]
    return content


def test_one_prompt_says_nothing_for_certain_and_makes_no_invalid_file(replay, tmp_path, capsys):
    made = ["--report", "page.html", "--trials_out", "out.json"]
    assert replay(of_one_prompt(), "--strategy", "grid", "--json", *made) == 0
    said = capsys.readouterr().out
    evidence = json.loads(said)["evidence"]
    assert evidence["verdict"] == "inconclusive" and evidence["score_loss_interval"] is None
    assert evidence["prompts_needed"] is None
    (drawn,) = re.findall(r'id="data">(.*?)</script>', (tmp_path / "page.html").read_text())
    rows = json.loads(drawn)["rows"]
    assert [row["l"][1:] for row in rows] == [[None, None]] * 3
    for text in (said, *((tmp_path / each).read_text() for each in ("page.html", "out.json"))):
        assert not re.search(r"\b(NaN|Infinity|inf|nan)\b", text.split("<script>")[0])
    assert replay(of_one_prompt(), "--strategy", "grid") == 0
    assert "score loss: 1.0 % [unknown]  inconclusive, 1 prompt" in capsys.readouterr().out


@pytest.mark.parametrize("strategy", sorted(all_strategies()))
def test_one_sample_of_each_shows_no_gain_and_says_why(replay, tmp_path, capsys, strategy):
    content = recorded()
    for each in (content["baseline"], *content["trials"]):
        each["seconds_per_image"] = each["seconds_per_image"][:1]
    made = ["--report", "page.html", "--trials_out", "out.json"]
    assert replay(content, "--strategy", strategy, *made) == 3
    said = capsys.readouterr().out
    assert "timing noise unknown" in said
    assert "3.00 [unknown]" in said and "nothing was timed twice" in " ".join(said.split())
    page = (tmp_path / "page.html").read_text()
    (drawn,) = re.findall(r'id="data">(.*?)</script>', page)
    assert json.loads(drawn)["noise"] is None and "lie an unknown distance apart" in page
    assert {tuple(row["s"][1:]) for row in json.loads(drawn)["rows"]} == {(None, None)}
    # What it wrote is read again, and is no surer.
    assert main(["--replay", "out.json", "--json"]) == 3


def test_a_second_sample_of_the_baseline_is_a_pair(replay, capsys):
    content = recorded()
    content["baseline"]["seconds_per_image"] = [0.5, 0.501]
    assert replay(content, "--strategy", "grid", "--json") == 0
    low, high = json.loads(capsys.readouterr().out)["evidence"]["speedup_interval"]
    assert low < 3 < high and high - low > 0.01


@pytest.mark.parametrize("scores", [[], [30, 31, 32, 33]])
def test_more_scores_than_the_baseline_has_are_refused(tmp_path, scores):
    content = recorded()
    content["trials"][0]["scores"] = scores
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=f"{len(scores)} scores, the baseline has 3"):
        read_trials(path)


CALL = {"call": 1.0, "seconds": [0.2, 0.1, 0.2], "kinds": [0, 1, 0], "baseline_calls": 3}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kinds": [1, 1, 1]}, "tell no speedup"),
        ({"kinds": [0, 1]}, "tell no speedup"),
        ({"seconds": [], "kinds": [], "probes": [[0, 0.1]]}, "tell no speedup"),
        ({"seconds": [0.2, 5e-324, 0.2]}, "seconds"),
        ({"baseline_calls": 10**400}, "not a valid"),
        ({"baseline_calls": 5}, "baseline_calls is 5, but unet_calls of the workload 3"),
        ({"kinds": [0, 10**30, 0]}, "not a valid"),
        ({"probes": [[10**30, 0.1]]}, "not a valid"),
    ],
    ids=str,
)
def test_unet_calls_that_tell_nothing_take_no_pairs_place(tmp_path, changes, problem):
    content = recorded()
    content["workload"]["unet_calls"] = CALL["baseline_calls"]
    for trial in content["trials"]:
        trial |= {"baseline_seconds_per_image": [], "step_times": [CALL]}
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    assert all(trial.measurement.step_times for trial in read_trials(path).trials)
    content["trials"][1]["step_times"] = [CALL | changes]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=problem):
        read_trials(path)


def test_a_replay_loads_no_torch(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(recorded()))
    code = (
        "import sys\nfrom accel_search.traversal_search import main\n"
        "assert main(['--replay', 't.json', '--quiet']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL
    )


def test_a_replay_is_reported_and_exported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = Path(__file__).parents[1] / "data" / "tables" / "deepcache.json.gz"
    command = ["--replay", str(table), "--report", "page.html", "--export", "fast.py"]
    assert main([*command, "--req_score_loss", "0.05"]) == 0
    out = capsys.readouterr().out
    for name in ("page.html", "search_results.png", "fast.py"):
        assert f"Written: {name}" in out and (tmp_path / name).exists()
    assert "Strategy <strong>guided</strong>" in (tmp_path / "page.html").read_text()
    compile((tmp_path / "fast.py").read_text(), "fast.py", "exec")
    # It measured nothing, so it leaves nothing that could be taken for a measurement.
    assert not (tmp_path / "accel_search_runs").exists()
