"""`search`, `measure` and `verify` on a pipeline in memory."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import accel_search
from accel_search import accelerate, measure, search, verify
from accel_search.core.candidate import Candidate
from accel_search.errors import (
    AcceleratorError,
    AccelSearchError,
    BaselineError,
    ConfigurationError,
)
from accel_search.runtime.given.fingerprint import digest_of_pipeline
from tests.live.conftest import load
from tests.support.making import PROMPTS

HERE = Candidate({"deepcache": {"cache_interval": 2, "cache_branch_id": 0}})


def picture(pipe, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    made = pipe("a red ring", num_inference_steps=3, generator=generator, output_type="pt",
                height=32, width=32, **options)  # fmt: skip
    return made.images


def state(pipe):
    """What must be the same afterwards: attributes, their objects, weights, modes and a picture."""
    modes = [module.training for part in pipe.components.values()
             if isinstance(part, torch.nn.Module) for module in part.modules()]  # fmt: skip
    return {name: id(value) for name, value in vars(pipe).items()}, modes, digest_of_pipeline(pipe)


TWO = {"deepcache": {"cache_interval": [4, 8], "cache_branch_id": [0]}}


def test_a_search_finds_what_its_trials_show_and_says_it(pipe, quick, tmp_path):
    found = search(pipe, PROMPTS, targets=["deepcache"], **{**quick, "space": TWO})
    assert {row.candidate["deepcache"]["cache_interval"] for row in found.trials} == {4, 8}
    assert found.winner is not None and found.winner.candidate in [
        r.candidate for r in found.trials
    ]
    assert found.winner.speedup.low <= found.winner.speedup.value <= found.winner.speedup.high
    assert set(found.front) <= set(found.trials) and found.front
    document = json.loads(found.to_json())
    assert document["settings"] == found.winner.settings
    assert document["speedup"] == pytest.approx(found.winner.speedup.value)
    page = found.report("pages/report.html")
    assert page.read_text().startswith("<!doctype html>")
    assert (tmp_path / "search_params.json").exists() and (tmp_path / "accel_search_runs").exists()
    assert str(found) == repr(found) and "deepcache" in repr(found)
    shown = found._repr_mimebundle_()
    assert shown["image/png"].startswith(b"\x89PNG") and shown["text/plain"] == repr(found)


def test_the_pipeline_comes_back_as_it_was(pipe, quick):
    picture(pipe)
    pipe.unet.train()
    before, image = state(pipe), picture(pipe)
    torch.set_num_threads(2)
    found = search(pipe, PROMPTS, sched="Euler a", threads=1, **quick)
    assert torch.get_num_threads() == 2 and pipe.unet.training
    torch.set_num_threads(1)
    assert state(pipe) == before and torch.equal(picture(pipe), image)
    assert found.asked.settings.sched == "Euler a"


@pytest.mark.parametrize("wrong", [KeyboardInterrupt, RuntimeError("no more")])
def test_also_from_an_exception(pipe, quick, monkeypatch, wrong):
    from accel_search.search.loop import Search

    def stop(*_):
        raise wrong

    before = state(pipe)
    monkeypatch.setattr(Search, "run", stop)
    with pytest.raises(type(wrong) if isinstance(wrong, Exception) else wrong):
        search(pipe, PROMPTS, sched="UniPC", **quick)
    assert state(pipe) == before
    assert not logging.getLogger("accel_search").handlers


def test_it_is_not_kept_alive_by_its_result(saved, quick):
    pipe = load(saved / "sd")
    found = search(pipe, PROMPTS, **quick)
    del pipe
    gc.collect()
    assert found.asked.pipe() is None
    with pytest.raises(ConfigurationError, match="the pipeline is gone"):
        found.apply()


def test_apply_does_what_accelerate_does(pipe, quick):
    found = search(pipe, PROMPTS, **quick)
    plain = picture(pipe)
    with accelerate(pipe, found.winner.settings):
        expected = picture(pipe)
    with found.apply():
        assert torch.equal(picture(pipe), expected)
    assert torch.equal(picture(pipe), plain) and not torch.equal(plain, expected)
    # And the file that the search wrote holds it, for this pipeline.
    with accelerate(pipe) as applied:
        assert applied.candidate == found.winner.candidate


def test_of_several_pipelines_in_memory_each_gets_its_own_result(saved, pipe, quick):
    space = {"cache_branch_id": [0]}
    search(pipe, PROMPTS, **{**quick, "space": {"deepcache": {**space, "cache_interval": [7]}}})
    other = load(saved / "sd")
    with torch.no_grad():
        other.unet.conv_in.weight[0, 0, 0, 0] += 1
    search(other, PROMPTS, **{**quick, "space": {"deepcache": {**space, "cache_interval": [8]}}})
    for one, interval in ((pipe, 7), (other, 8)):
        with accelerate(one) as applied:
            assert applied.candidate["deepcache"]["cache_interval"] == interval


def test_the_same_search_again_is_answered_and_goes_on_where_it_was_stopped(pipe, quick):
    quick["space"] = TWO
    search(pipe, PROMPTS, max_trials=1, **quick)
    found = search(pipe, PROMPTS, force=False, **quick)
    again = search(pipe, PROMPTS, **quick)
    assert again.winner.settings == found.winner.settings
    assert [row.candidate for row in again.trials] == [row.candidate for row in found.trials]
    log = Path("traversal_search.log").read_text()
    assert "resumed: 1 finished trial, not measured again" in log
    assert "holds this search's result" in repr(again)


@pytest.mark.slow
def test_a_killed_search_goes_on(saved, quick, tmp_path):
    """In a process of its own, killed after its first trial."""
    quick["space"] = TWO
    code = f"""
import os, signal
from accel_search import search
from accel_search.search.events import Observer
from accel_search.report.console.progress import Progress
from tests.live.conftest import load
from tests.support.making import PROMPTS

def kill(self, *rest):
    os.kill(os.getpid(), signal.SIGKILL)

if {{kills}}:
    Progress.on_trial = kill
found = search(load({str(saved / "sd")!r}), PROMPTS, **{quick!r})
print(len(found.trials), found.winner.settings)
"""
    root = Path(__file__).parents[2]
    done = [
        subprocess.run(
            [sys.executable, "-c", code.replace("{kills}", kills)],
            capture_output=True, text=True, check=False, cwd=tmp_path,
            env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        )
        for kills in ("True", "False")
    ]  # fmt: skip
    assert done[0].returncode == -9, done[0].stderr
    assert done[1].returncode == 0 and done[1].stdout.startswith("2 {'deepcache'"), done[1].stderr
    assert "resumed: 1 finished trial" in (tmp_path / "traversal_search.log").read_text()


def test_other_weights_or_arguments_are_searched_anew_and_nothing_is_deleted(pipe, quick):
    first = search(pipe, PROMPTS, **quick)
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] += 1
    second = search(pipe, PROMPTS, **quick)
    third = search(pipe, PROMPTS, call={"eta": 0.5}, **quick)
    fourth = search(pipe, PROMPTS, call={"negative_prompt": "blue"}, **quick)
    assert all("holds this search's result" not in repr(r) for r in (first, second, third, fourth))
    text = Path("search_params.json").read_text()
    digests = {json.loads(r.to_json())["provenance"]["weights"] for r in (first, second)}
    assert len(digests) == 2 and all(text.count(digest) for digest in digests)
    assert '"eta": 0.5' in text and '"negative_prompt": "blue"' in text


def test_the_arguments_of_a_call_reach_the_pipeline(pipe, quick):
    """The same pictures as a script of a few lines makes, with the same noise."""
    from accel_search.runtime.measuring.generation import initial_noise, prompt_generators

    cases = [{"prompt": PROMPTS[0], "seed": 7}, {"prompt": PROMPTS[1], "seed": 8}]
    cases += [{"prompt": PROMPTS[2], "seed": 9}, {"prompt": PROMPTS[3], "seed": 10}]
    call = {"negative_prompt": "blue", "eta": 1.0}
    found = search(pipe, cases, call=call, pictures=4, **quick)
    assert json.loads(found.to_json())["provenance"]["call"] == call
    shown = {p.text: p.seed for p in found.run.pictures.prompts}
    assert shown == {case["prompt"]: case["seed"] for case in cases}
    order = list(found.run.pictures.prompts)[:2]
    generators = prompt_generators([prompt.seed for prompt in order])
    script = pipe(
        [prompt.text for prompt in order], negative_prompt=["blue", "blue"], height=32, width=32,
        num_inference_steps=8, latents=initial_noise(generators, (4, 16, 16)), eta=1.0,
        generator=generators, output_type="np",
    ).images  # fmt: skip
    baseline = next(c for c in found.run.pictures.columns if c.part == "baseline")
    for file, made in zip(baseline.files, script, strict=False):
        assert np.array_equal(np.asarray(Image.open(file)), (made * 255).round().astype("uint8"))


def test_measure_judges_and_compares_what_is_named(pipe, quick):
    del quick["space"], quick["strategy"]
    other = {"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}
    found = measure(pipe, ["deepcache(2,0)", other], PROMPTS, **quick)
    assert len(found.trials) == 2 and len(found.comparisons) == 1
    assert found.verdict in ("pass", "fail", "inconclusive")
    assert json.loads(found.to_json())["verdict"] == found.verdict
    assert [one.candidate for one in found.named][0] == HERE
    single = measure(pipe, "deepcache(2,0)", PROMPTS, **quick)
    assert single.named[0].candidate == HERE and not Path("search_params.json").exists()


def test_verify_measures_a_result_again(pipe, quick):
    found = search(pipe, PROMPTS, **quick)
    again = verify(pipe, found)
    assert again.stored.candidate == found.winner.candidate and again.prompts == 4
    assert again.verdict in ("pass", "fail", "inconclusive") and not again.differences
    from_file = verify(pipe, "search_params.json", PROMPTS, **quick)
    assert from_file.stored.candidate == found.winner.candidate


def test_generate_makes_what_is_no_plain_call(saved, quick):
    """Image-to-image, from a picture of each case's own."""
    pipe = load(saved / "sd", "StableDiffusionImg2ImgPipeline")
    cases = [
        {"prompt": text, "start": Image.new("RGB", (32, 32), (10 * i, 255 - 10 * i, 90))}
        for i, text in enumerate(PROMPTS[:8])
    ]
    seen = []

    def generate(pipe, cases, generators):
        seen.append([sorted(case) for case in cases])
        return pipe(
            [case["prompt"] for case in cases], image=[case["start"] for case in cases],
            strength=0.5, num_inference_steps=16, generator=generators,
        )  # fmt: skip

    found = search(pipe, cases, generate=generate, sched="DDIM", **{**quick, "steps": 16})
    assert len(found.trials) == 1
    assert found.run.record.workload.unet_calls == 8  # Half of the steps, by strength.
    assert seen[-1][0] == ["prompt", "seed", "start"]
    where = json.loads(found.to_json())["provenance"]["call"]["generate"]
    assert "test_generate_makes_what_is_no_plain_call" in where


def test_a_pipeline_with_an_image_is_searched_by_columns_of_its_cases(saved, quick):
    pipe = load(saved / "sd", "StableDiffusionImg2ImgPipeline")
    cases = [{"prompt": text, "image": Image.new("RGB", (32, 32), (0, 9 * i, 90))}
             for i, text in enumerate(PROMPTS[:8])]  # fmt: skip
    found = search(pipe, cases, call={"strength": 0.5}, sched="DDIM", **{**quick, "steps": 16})
    assert found.run.record.workload.unet_calls == 8 and len(found.trials) == 1
    assert found.run.record.workload.pipeline_class == "StableDiffusionImg2ImgPipeline"
    with accelerate(pipe, scheduler="DDIM") as applied:  # The result of its own class is found.
        assert applied.candidate == found.winner.candidate


def test_sdxl_is_searched_too(saved, quick):
    pipe = load(saved / "sdxl", "StableDiffusionXLPipeline")
    before = state(pipe)
    found = search(pipe, PROMPTS, targets="deepcache,tome", max_trials=2, **quick)
    assert found.trials and state(pipe) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stepz": 3}, r"stepz=: there is no such option; did you mean steps=\?"),
        ({"dtype": "float16"}, "dtype=: the pipeline has its own: set it there"),
        ({"compile": True}, r"compile=: call accel_search.compile_unet\(pipe\) before"),
        ({"steps": 0}, "steps 0: expected a whole number, 1 or more"),
        ({"steps": "many"}, "steps = 'many' has the wrong type"),
        ({"targets": "deepcash"}, "deepcash"),
        ({"call": {"num_inference_steps": 3}}, "'num_inference_steps' is set by steps="),
        ({"call": {"generator": 3}}, "'generator' is set in every measured call"),
        ({"call": {"negativ_prompt": ""}}, "did you mean 'negative_prompt'"),
        ({"call": {"eta": 1}, "generate": print}, "generate= makes the calls"),
        ({"latency_only": True}, "latency_only: is for the command line"),
        ({"clip_model": "no/such/folder"}, "no/such/folder"),
        ({"log_file": "/proc/none/x.log"}, "log_file='/proc/none/x.log': cannot be written"),
        ({"prompts": ["one", "two"], "num_samples": None, "held_out_samples": None},
         "prompts: 2 given; give 4 or more different ones"),
        ({"prompts": [1, 2, 3, 4, 5]}, "number 1 is int; give a text"),
        ({"prompts": [{"prompt": "a", "seed": -1}] * 3 + list("bcde")}, "seed of number 1 is -1"),
        ({"prompts": "nowhere.txt"}, "nowhere.txt: no such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_and_the_pipeline_is_as_it_was(
    pipe, quick, options, message
):
    before = state(pipe)
    with pytest.raises(AccelSearchError, match=message) as caught:
        search(pipe, options.pop("prompts", PROMPTS), **{**quick, **options})
    assert "\n" not in str(caught.value) and state(pipe) == before


def test_a_call_that_fails_is_told_before_anything_is_measured(pipe, quick):
    def fails(*_):
        raise ValueError("no image here")

    with pytest.raises(BaselineError, match="a call of the pipeline raised ValueError: no image"):
        search(pipe, PROMPTS, generate=fails, **quick)
    with pytest.raises(ConfigurationError, match="called the pipeline 2 times; call it once"):
        search(pipe, PROMPTS, generate=lambda p, c, g: [picture(p), picture(p)][0], **quick)
    with pytest.raises(ConfigurationError, match=r"generate: returned Tensor \[2, 3, 32, 32\]"):
        search(pipe, PROMPTS, generate=lambda p, c, g: picture(p).repeat(2, 1, 1, 1), **quick)
    with pytest.raises(ConfigurationError, match="called the pipeline 0 times"):
        search(pipe, PROMPTS, generate=lambda p, c, g: torch.zeros(len(c), 3, 8, 8), **quick)


def test_an_accelerated_pipeline_and_what_is_none_are_refused(pipe, quick):
    with accelerate(pipe, HERE), pytest.raises(AcceleratorError, match="accelerated already"):
        search(pipe, PROMPTS, **quick)
    with pytest.raises(AcceleratorError, match="cannot be accelerated"):
        search(object(), PROMPTS, **quick)


def test_the_functions_are_there_whatever_was_imported_before():
    code = (
        "import accel_search.search.loop, accel_search; from accel_search import search\n"
        "assert callable(search) and search is accel_search.search, search\n"
        "import accel_search.search.space\n"
        "assert callable(accel_search.search) and callable(accel_search.measure)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"search", "measure", "verify"} <= set(accel_search.__all__)
