"""The program at few steps: what there is to gain is said first."""

from __future__ import annotations

import json

import pytest

from accel_search.traversal_search import main
from tests.support import making

QUICK = ["--device", "cpu", "--threads", "1", "--num_samples", "2", "--held_out_samples", "0"]
QUICK += ["--timing_pairs", "1", "--batch_size", "2", "--max_trials", "1", "--strategy", "grid"]
QUICK += ["--pipe", "sd", "--clip_model", "scorer", "--prompts", "prompts.txt"]
LITTLE = "deepcache has little to gain at "


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    making.make_sd(folder / "sd")
    making.make_scorer(folder / "scorer")
    making.make_prompts(folder / "prompts.txt")
    return folder


@pytest.fixture
def search(made, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(made)
    files = [f"--{name}={tmp_path / name}" for name in ("output", "bounds", "run_dir", "log_file")]

    def run(*words):
        code = main([*QUICK, *files, *words])
        return code, capsys.readouterr()

    return run


@pytest.mark.parametrize("kind", [[], ["--latency_only"]], ids=str)
@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (2, ["--sched", "Euler(spacing=trailing)", "--guidance_scale", "0"]),
        (4, ["--sched", "LCM", "--guidance_scale", "1"]),
        (8, ["--sched", "LCM", "--guidance_scale", "1"]),
    ],
)
def test_little_to_gain_is_in_the_first_line(search, steps, words, kind):
    code, captured = search("--steps", str(steps), *words, *kind)
    assert code in (0, 3)
    first = captured.out.splitlines()[0]
    assert (f"{LITTLE}{steps} UNet calls" in first) is (steps < 8)
    assert captured.out.count(LITTLE) == (steps < 8)
    assert captured.out.index("baseline") > captured.out.find(LITTLE)


def test_one_step_ends_before_anything_is_loaded(search, monkeypatch, tmp_path):
    from accel_search.runtime import workbench

    monkeypatch.setattr(workbench, "open_evaluator", None)
    turbo = ["--steps", "1", "--sched", "Euler(spacing=trailing)", "--guidance_scale", "0"]
    code, captured = search(*turbo, "--junit", str(tmp_path / "v.xml"))
    assert code == 3
    why = "every point is the baseline pipeline: at 1 UNet call deepcache can gain nothing"
    assert f"Nothing to search: {why}." in captured.out
    assert why in (tmp_path / "v.xml").read_text()
    code, captured = search(*turbo, "--json")
    assert code == 3 and json.loads(captured.out) == {"speedup": None, "stopped": why}
    code, captured = search(*turbo, "--latency_only")
    assert code == 3 and why in " ".join(captured.out.split())


def test_one_step_of_tome_is_searched(search):
    code, captured = search("--steps", "1", "--sched", "LCM", "--targets", "deepcache,tome")
    assert code in (0, 3)
    assert "deepcache can gain nothing at 1 UNet call" in captured.out.splitlines()[0]
    assert "trial 1/" in captured.out
