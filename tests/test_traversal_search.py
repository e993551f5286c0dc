"""The whole program on the embedded pipeline, as a user runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from diffusers import StableDiffusionPipeline

from accel_search import accelerate
from accel_search.errors import ConfigurationError, TrialFailure
from accel_search.runtime.demo import demo_folder
from accel_search.storage.run_folder import pictures_path
from accel_search.storage.run_reader import read_run
from accel_search.traversal_search import main
from tests.support.docs_pages import printed_python
from tests.support.fakes import FakeEvaluator
from tests.support.options import FAST, SMALL, SURE
from tests.support.replays import TABLE

# A few trials' worth, to be killed in between.
SLOW = ["--strategy", "random", *SMALL, "--max_trials", "3", "--held_out_samples", "0"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Run in an empty folder, with a configuration of two fast candidates in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fast.toml").write_text(FAST)
    return tmp_path


def log_lines(folder):
    path = folder / "traversal_search.log"
    return path.read_text().splitlines() if path.exists() else []


def trials_in(folder):
    """Return the candidates in the log's trial lines, in order."""
    found = [re.search(r"trial \d+/\d+  (.*?\))  ", line) for line in log_lines(folder)]
    return [match[1] for match in found if match]


def test_a_search_ends_with_a_result_that_is_reused_and_applied_in_two_lines(folder, capsys):
    command = ["--config", "fast.toml", "--req_score_loss", "1", "--strategy", "grid"]
    command += [*SMALL, *SURE]
    assert main([*command, "--trials_out", "trials.json"]) == 0
    out = capsys.readouterr().out
    assert (
        len(re.findall(r"^trial .* speedup: \d\.\d\d \[.*score loss: -?\d+\.\d % \[", out, re.M))
        == 2
    )
    assert re.search(r", [248] held-out prompts", out)
    assert "baseline pipeline at" in out
    assert_applied(printed_python(out)[0])
    stamped = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - traversal_search - INFO - trial 1/2 "
    assert any(re.match(stamped, line) for line in log_lines(folder))

    stored = json.loads((folder / "search_params.json").read_text())
    assert len(stored) == 2
    entry = stored[next(iter(stored))]
    assert f"speedup: {entry['speedup']:.2f} [" in out and entry["cache_branch_id"] == 0
    assert entry["provenance"]["clip_model"] and entry["provenance"]["versions"]["torch"]
    steps = entry["evidence"]["step_table"]["rows"]
    assert [row["type"] for row in steps][:2] == ["plain", "deepcache partial at branch 0"]
    trials = json.loads((folder / "trials.json").read_text())
    assert all(trial["step_times"] and trial["health"] for trial in trials["trials"])
    assert trials["format"] == "accel-search-trials/1"
    assert [len(trial["scores"]) for trial in trials["trials"]] == [2, 2]

    lines = len(log_lines(folder))
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == entry
    assert not trials_in_new_lines(folder, lines)

    assert main([*command, "--trials_out", "again.json"]) == 0
    captured = capsys.readouterr()
    said = "--trials_out again.json: not written, since a stored result answers; --force searches"
    assert (captured.out + captured.err).count(said) == 1
    assert not (folder / "again.json").exists()

    kept = (folder / "trials.json").read_bytes()
    assert main([*command, "--trials_out", "trials.json"]) == 0
    captured = capsys.readouterr()
    assert "--trials_out trials.json: left as it is, since a stored result" in captured.out
    assert "WARNING" not in captured.out + captured.err
    assert (folder / "trials.json").read_bytes() == kept


def trials_in_new_lines(folder, before):
    return [line for line in log_lines(folder)[before:] if "trial " in line]


def assert_applied(lines):
    """Run the lines as the program prints them, on a pipeline that a user has loaded."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    from accel_search import restore
    from accel_search.runtime.demo import demo_folder
    from tests.support.tiny import runs

    assert 'accelerate(pipe, "search_params.json", steps=6, scheduler="DDIM")' in lines
    pipe = StableDiffusionPipeline.from_pretrained(demo_folder() / "pipeline", safety_checker=None)
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config)  # As SD1.5 comes with.
    full = runs(pipe.unet.mid_block)
    exec(lines, {"pipe": pipe})  # noqa: S102
    pipe("a red ring", num_inference_steps=6, height=64, width=64)
    assert len(full) == 2  # Of six, a full one every five or every four.
    restore(pipe)
    full.clear()
    pipe("a red ring", num_inference_steps=6, height=64, width=64)
    assert len(full) == len(pipe.scheduler.timesteps) == 15  # PNDM's.


@pytest.mark.slow
def test_weights_replaced_in_place_are_searched_anew_and_both_results_stay(folder, capsys):
    pipe = shutil.copytree(demo_folder() / "pipeline", folder / "mine")
    command = ["--config", "fast.toml", "--req_score_loss", "1", "--strategy", "grid"]
    command += ["--pipe", "mine", "--prompts", "builtin", *SMALL, *SURE]
    command += ["--clip_model", str(demo_folder() / "scorer")]
    assert main(command) == main(command) == 0
    assert len(trials_in(folder)) == 2  # The second time it was answered.
    weights = pipe / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    capsys.readouterr()
    assert main(command) == 0
    assert "holds results of other weights; this one is searched" in capsys.readouterr().out
    assert len(trials_in(folder)) == 4
    assert main(["--list", "--json"]) == 0
    before, after = (each["provenance"] for each in json.loads(capsys.readouterr().out))
    assert before["weights"] != after["weights"] and before["model_id"] == after["model_id"]
    # The pipeline gets the result of its weights, whichever was measured last.
    loaded = StableDiffusionPipeline.from_pretrained(pipe)
    accelerate(loaded, req_score_loss=1.0, scheduler="DDIM").remove()
    assert after["date"] in capsys.readouterr().err
    weights.write_bytes(content)
    assert main(command) == 0 and len(trials_in(folder)) == 4
    capsys.readouterr()
    accelerate(loaded, req_score_loss=1.0, scheduler="DDIM").remove()
    assert before["date"] in capsys.readouterr().err


@pytest.mark.slow
def test_targets_are_searched_jointly(folder, capsys):
    targets = "deepcache,steps,tgate,tome"
    options = [*SMALL, "--max_trials", "2", "--strategy", "random", "--held_out_samples", "0"]
    options += ["--steps", "8"]
    assert main(["--search_targets", targets, *options, "--req_score_loss", "1"]) in (0, 3)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial ")]
    assert len(lines) == 2
    for name in targets.split(","):
        assert all(f"{name}(" in line for line in lines)


def test_nothing_within_the_goal_is_code_3(folder, capsys):
    options = ["--config", "fast.toml", "--req_speedup", "500", "--max_trials", "1", *SMALL]
    assert main([*options, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["speedup"] is None and "no_gain" in found and found["refused"] is None
    assert not (folder / "search_params.json").exists()


def test_a_replay_says_which_numbers_of_prompts_it_ignores(folder, capsys):
    options = ["--replay", str(TABLE), "--max_trials", "1"]
    main([*options, "--num_samples", "64"])
    assert "ignored" not in capsys.readouterr().err
    main([*options, "--num_samples", "16", "--held_out_samples", "8"])
    said = capsys.readouterr().err
    assert "the prompts are those recorded; ignored: --num_samples 16, --held_out_samples 8" in said


def test_what_a_bound_beside_that_on_score_refused_is_in_the_answer_for_scripts(folder, capsys):
    options = ["--replay", str(TABLE), "--strategy", "grid", "--max_tail_loss", "0"]
    assert main([*options, "--json"]) == 3
    assert "--max_tail_loss 0 refused" in json.loads(capsys.readouterr().out)["refused"]


def test_speed_alone_is_bounded_labelled_and_kept_apart_from_results(folder, capsys):
    options = ["--config", "fast.toml", "--latency_only", *SMALL]
    assert main(options) in (0, 3)  # On a busy machine a gain may drown in the noise.
    out = capsys.readouterr().out
    assert "Latency only: demo, 64 × 64 pixels" in out and "Nothing was scored" in out
    assert not (folder / "search_params.json").exists()
    kept = json.loads((folder / "speedup_bounds.json").read_text())
    entry = next(iter(kept.values()))
    assert entry["latency_only"] is True and entry["best_feasible"] is None
    assert entry["measured_max"]["params"]["cache_branch_id"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--latency_only", "--replay", "t.json"], 2, "--latency_only and --replay"),
        (["--memory_limit", "4", "--latency_only"], 2, "--memory_limit 4"),
        (["--pipe", "./no/such/folder"], 5, "./no/such/folder"),
        (["--clip_model", "./no/such/scorer"], 5, "./no/such/scorer"),
        (["--prompts", "none.txt"], 5, "none.txt"),
        (["--num_samples", "100000"], 2, "100000"),
        (["--targets", "tgate", "--steps", "5"], 2, "gate_step"),
        (["--targets", "steps,tgate", "--steps", "6"], 2, "no combination"),
        (["--log_file", "/proc/no/such.log"], 2, "--log_file"),
        (["--storage", "nonsense", *SMALL], 2, "--storage"),
    ],
)
def test_a_users_mistake_is_one_line_with_its_code(folder, capsys, arguments, code, says):
    assert main(["--device", "cpu", *arguments]) == code
    error = capsys.readouterr().err
    assert says in error
    assert [line for line in error.splitlines() if "Traceback" in line] == []
    assert error.strip().splitlines()[-1].startswith("accel-search: error: ")


@pytest.mark.parametrize("kind", [["--strategy", "guided"], ["--latency_only"]], ids=str)
def test_a_space_in_which_nothing_changes_the_pipeline_is_code_3(folder, capsys, kind):
    # One step leaves nothing to be cached.
    assert main([*SMALL, "--steps", "1", *kind]) == 3
    out, error = capsys.readouterr()
    assert "very point is the baseline pipeline" in out and "Traceback" not in error
    assert main([*SMALL, "--steps", "1", *kind, "--json"]) == 3
    assert "very point is the baseline pipeline" in json.loads(capsys.readouterr().out)["stopped"]
    assert not (folder / "speedup_bounds.json").exists()


@pytest.mark.parametrize("kind", [["--strategy", "grid"], ["--latency_only"]], ids=str)
def test_every_candidate_failing_is_code_3_and_says_why(folder, capsys, monkeypatch, kind):
    class AllFail(FakeEvaluator):
        def measure(self, *arguments, **options):
            raise TrialFailure("8 bytes do not fit", "cuda_oom")

    opened = "accel_search.runtime.workbench.open_evaluator"
    monkeypatch.setattr(opened, lambda settings, logger: AllFail())
    assert main([*kind, "--pictures", "0"]) == 3
    out, error = capsys.readouterr()
    assert re.search(r"\d+ failed: cuda_oom: 8 bytes do not fit\b", " ".join(out.split()))
    assert not error


class Interrupted(FakeEvaluator):
    """Interrupted as a trial begins; notes in `seen` what was measured on the search's prompts."""

    at, seen = None, []

    def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
        if len(self.calls) == self.at:
            raise KeyboardInterrupt
        if split == "search" and "deepcache" in candidate:
            self.seen.append(candidate)
        return super().measure(candidate, split, prompts, pairs)


@pytest.mark.parametrize("kind", [["--strategy", "grid"], ["--latency_only"]], ids=str)
def test_a_forced_search_that_was_interrupted_goes_on_by_the_same_command(
    folder, monkeypatch, kind
):
    def search(*options, at=None):
        """Return the exit code and what was measured."""
        seen = []

        class Evaluator(Interrupted):
            pass

        Evaluator.at, Evaluator.seen = at, seen
        monkeypatch.setattr(
            "accel_search.runtime.workbench.open_evaluator", lambda settings, logger: Evaluator()
        )
        code = main([*kind, "--pictures", "0", "--quiet", *options])
        return code, len(seen), len(set(seen))

    # One that was not forced is no forced one to go on with.
    assert search(at=2)[0] == 130
    code, begun, _ = search("--force", at=3)
    assert code == 130 and begun == 3
    code, rest, distinct = search("--force")
    assert code == 0 and rest == distinct
    code, whole, distinct = search("--force")  # The last one has ended.
    assert code == 0 and whole == distinct == begun + rest


def test_a_search_that_goes_on_leaves_no_end_of_an_earlier_one(folder, monkeypatch):
    def search(*options, at=None):
        class Evaluator(Interrupted):
            pass

        Evaluator.at = at
        monkeypatch.setattr(
            "accel_search.runtime.workbench.open_evaluator", lambda settings, logger: Evaluator()
        )
        kind = ["--strategy", "grid", "--pictures", "0", "--quiet"]
        return main([*kind, "--output", f"{len(options)}.json", *options])

    assert search("--max_trials", "2") == 0
    ended = read_run(folder / "accel_search_runs")
    assert ended.is_confirmed and ended.record.end.stopped == "--max_trials 2 was reached"
    pictured(ended, folder / "accel_search_runs")
    assert read_run(folder / "accel_search_runs").pictures is not None
    assert search(at=8) == 130
    going_on = read_run(folder / "accel_search_runs")
    assert len(going_on.rows) > 2 and not going_on.is_confirmed
    assert going_on.record.is_open and going_on.asked.max_trials is None
    assert going_on.pictures is None
    assert search() == 0
    again = read_run(folder / "accel_search_runs")
    assert (
        again.is_confirmed and again.record.end.stopped == "every distinct candidate was measured"
    )


def pictured(run, run_dir):
    """Leave a picture of a run's winner, as a search does."""
    place = pictures_path(run_dir, run.record.study)
    place.mkdir(parents=True)
    (place / "0.png").touch()
    column = {"part": "winner", "candidate": run.record.end.winner, "files": ["0.png"]}
    content = {"prompts": [{"text": "a ring", "seed": 0}], "columns": [column]}
    (place / "pictures.json").write_text(json.dumps(content))


def start(folder, *arguments):
    """Start the program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "accel_search.traversal_search", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_trials(folder, process, count):
    deadline = time.monotonic() + 240
    while len(trials_in(folder)) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no trial within four minutes"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_search_goes_on_where_it_was(folder, capsys, monkeypatch):
    from accel_search.runtime.measuring.evaluator import PipelineEvaluator

    killed = start(folder, *SLOW)
    wait_for_trials(folder, killed, 1)
    killed.kill()
    killed.wait()

    # A polite kill, as the trial after the next begins.
    original, calls = PipelineEvaluator.measure, []

    def measure(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PipelineEvaluator, "measure", measure)
        assert main(SLOW) == 130
    assert capsys.readouterr().err.strip().endswith("run the same command again to resume")

    assert main(SLOW) in (0, 3)
    measured = trials_in(folder)
    assert len(measured) == len(set(measured)) == 3
    assert re.search(r"resumed: [23] finished trials", capsys.readouterr().out)


@pytest.fixture
def fails_to_picture(monkeypatch):
    """Have every picture of a result fail, on a fake evaluator."""

    def fails(*_):
        raise ConfigurationError("--run_dir: no space left")

    measuring = "accel_search.runtime.measuring.evaluator.PipelineEvaluator"
    monkeypatch.setattr(measuring, FakeEvaluator)
    monkeypatch.setattr("accel_search.runtime.pictures.write_pictures", fails)
    opened = "accel_search.runtime.workbench.open_evaluator"
    monkeypatch.setattr(opened, lambda settings, logger: FakeEvaluator())


def test_a_search_whose_picture_cannot_be_made_keeps_its_result(folder, capsys, fails_to_picture):
    command = ["--strategy", "grid", "--force"]
    assert main([*command, "--pictures", "1", "--report", "page.html"]) == 0
    warning = "no space left): the result is stored, the report is without them"
    assert warning in capsys.readouterr().err
    assert json.loads((folder / "search_params.json").read_text())
    assert read_run(folder / "accel_search_runs").is_confirmed
    assert (folder / "page.html").exists()
