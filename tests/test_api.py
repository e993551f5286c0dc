"""The two lines: settings or a result file, as a handle or a `with` block."""

from __future__ import annotations

import ast
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler

from accel_search import accelerate, load_best, restore
from accel_search.core.candidate import Candidate
from accel_search.core.schedulers import scheduler_class
from accel_search.errors import AcceleratorError, ConfigurationError, LoadError
from accel_search.report.console.summary import snippet
from accel_search.settings import Settings
from accel_search.storage.keys import search_key
from tests.support.fakes import PROVENANCE, WORKLOAD, with_steps
from tests.support.results import GRID, searched
from tests.support.tiny import assert_same as assert_untouched
from tests.support.tiny import make_img2img, make_pipe, make_scheduler, render, snapshot

DEEPCACHE = {"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}
TOME = {"tome": {"ratio": 0.5, "max_downsample": 2}}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return make_pipe()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A result file with a result for 20 steps and two for 25."""
    path = tmp_path / "search_params.json"
    content = {
        search_key(workload, "upbound_speedup", 0.02, targets): {
            "speedup": speedup,
            "settings": settings,
        }
        for workload, targets, speedup, settings in (
            (WORKLOAD, ["deepcache"], 2.1, DEEPCACHE),
            (with_steps(25), ["tome"], 1.1, TOME),
            (with_steps(25), ["deepcache", "tome"], 2.3, DEEPCACHE | TOME),
        )
    }
    path.write_text(json.dumps(content))
    return path


def test_a_handle_applies_until_it_is_removed(pipe: Any) -> None:
    plain, before = render(pipe, steps=7), snapshot(pipe)
    handle = accelerate(pipe, DEEPCACHE)
    assert handle.candidate == DEEPCACHE
    assert not torch.equal(render(pipe, steps=7), plain)
    handle.remove()
    handle.remove()  # A second time does nothing.
    assert_untouched(before, snapshot(pipe))
    assert torch.equal(render(pipe, steps=7), plain)


def test_a_with_block_removes_also_when_its_body_raises(pipe: Any) -> None:
    before = snapshot(pipe)
    with pytest.raises(KeyError), accelerate(pipe, DEEPCACHE) as handle:
        assert handle.candidate == DEEPCACHE
        raise KeyError
    assert_untouched(before, snapshot(pipe), called=False)


def test_twice_is_an_error_that_says_so(pipe: Any) -> None:
    with accelerate(pipe, DEEPCACHE), pytest.raises(AcceleratorError, match="already"):
        accelerate(pipe, TOME)


def test_the_stored_winner_is_picked(pipe: Any, results: Path) -> None:
    pipe.scheduler = make_scheduler("DDIMScheduler")
    for options, expected in (
        ({}, DEEPCACHE | TOME),
        ({"steps": 20}, DEEPCACHE),
        ({"steps": 25}, DEEPCACHE | TOME),
        ({"steps": 25, "targets": ["tome"]}, TOME),
        ({"scheduler": "DDIM", "steps": 20}, DEEPCACHE),
        ({"scheduler": "DDIMScheduler", "steps": 20}, DEEPCACHE),
    ):
        with accelerate(pipe, results, **options) as handle:  # type: ignore[arg-type]
            assert handle.candidate == expected
        with accelerate(pipe, str(results), **options) as handle:  # type: ignore[arg-type]
            assert handle.candidate == expected


@pytest.mark.parametrize(
    ("kind", "own"), [("SD", "PNDMScheduler"), ("SDXL", "EulerDiscreteScheduler")]
)
@pytest.mark.parametrize("name", ["DDIM", "DPM-Solver++", "UniPCMultistepScheduler"])
def test_the_scheduler_that_was_searched_with_takes_the_stock_ones_place(
    kind: str, own: str, name: str
) -> None:
    pipe = make_pipe(kind, own)
    plain = render(pipe, steps=7)
    stock, before = pipe.scheduler, snapshot(pipe)
    with accelerate(pipe, DEEPCACHE, scheduler=name):
        assert type(pipe.scheduler).__name__ == scheduler_class(name)
        assert not getattr(pipe.scheduler.config, "clip_sample", False)
        assert (pipe.scheduler.config.steps_offset == 1) or kind == "SDXL"
        # The accelerators watch the scheduler that is in place.
        once, again = render(pipe, steps=7), render(pipe, steps=7)
        assert torch.equal(once, again) and not torch.equal(once, plain)
    assert pipe.scheduler is stock
    assert_untouched(before, snapshot(pipe))
    assert torch.equal(render(pipe, steps=7), plain)


def test_a_scheduler_of_the_same_class_is_made_as_a_search_makes_it() -> None:
    pipe = make_pipe("SD", "PNDMScheduler")
    clipping = DDIMScheduler.from_config(pipe.scheduler.config)
    assert clipping.config.clip_sample  # As diffusers makes it of Stable Diffusion's.
    pipe.scheduler = clipping
    handle = accelerate(pipe, DEEPCACHE, scheduler="DDIM")
    assert not pipe.scheduler.config.clip_sample
    handle.remove()
    handle.remove()
    assert pipe.scheduler is clipping


def test_the_old_scheduler_is_back_also_when_applying_fails() -> None:
    pipe = make_pipe("SD", "PNDMScheduler")
    own, config, before = pipe.scheduler, dict(pipe.config), snapshot(pipe)
    with pytest.raises(ConfigurationError, match="cache_interval"):
        accelerate(pipe, {"deepcache": {"cache_interval": 3}}, scheduler="DDIM")
    with accelerate(pipe, DEEPCACHE, scheduler="UniPC"):
        inner = pipe.scheduler
        with pytest.raises(AcceleratorError, match="already"):
            accelerate(pipe, TOME, scheduler="DDIM")
        assert pipe.scheduler is inner
    for name in ("Nonesuch", "UNet2DConditionModel", "NonesuchScheduler"):
        with pytest.raises(ConfigurationError, match=f"'{name}': expected one of DDIM, DPM-Solver"):
            accelerate(pipe, DEEPCACHE, scheduler=name)
    assert pipe.scheduler is own and dict(pipe.config) == config
    assert_untouched(before, snapshot(pipe))


def test_a_stock_pipeline_is_told_which_schedulers_the_file_holds(results: Path) -> None:
    pipe = make_pipe("SD", "PNDMScheduler")
    content = json.loads(results.read_text())
    more = {
        key.replace("DDIMScheduler", "UniPCMultistepScheduler"): content[key] for key in content
    }
    results.write_text(json.dumps(content | more))
    said = 'StableDiffusionPipeline, PNDMScheduler, 20 steps, .*: give scheduler="DDIM" or "UniPC"$'
    with pytest.raises(ConfigurationError, match=said):
        accelerate(pipe, results, steps=20)
    assert type(pipe.scheduler).__name__ == "PNDMScheduler"
    with pytest.raises(ConfigurationError, match='DPMSolver.*give scheduler="DDIM" or "UniPC"$'):
        load_best(results, pipe, steps=20, scheduler="DPM-Solver++")
    with pytest.raises(ConfigurationError, match="50 steps; run accel-search for it first"):
        accelerate(pipe, results, steps=50)
    own = pipe.scheduler
    assert load_best(results, pipe, steps=20, scheduler="ddim") == DEEPCACHE
    assert pipe.scheduler is own  # To look is not to exchange.
    with accelerate(pipe, results, steps=20, scheduler="UniPC") as handle:
        assert handle.candidate == DEEPCACHE
        assert type(pipe.scheduler).__name__ == "UniPCMultistepScheduler"
    assert pipe.scheduler is own


def applied_by(lines: list[str]) -> Candidate:
    """Run the lines that a search prints, on a stock pipeline, and return what they applied."""
    pipe = make_pipe("SD", "PNDMScheduler")
    own = pipe.scheduler
    *imports, call = ast.parse("\n".join(lines)).body
    scope: dict[str, Any] = {"pipe": pipe}
    exec("\n".join(map(ast.unparse, imports)), scope)  # noqa: S102
    with eval(ast.unparse(call), scope) as handle:  # noqa: S307
        assert type(pipe.scheduler).__name__ == "DDIMScheduler"
        found: Candidate = handle.candidate
    assert pipe.scheduler is own
    return found


def test_the_lines_that_are_printed_apply_the_result_that_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def printed(settings: Settings, *others: Any, **options: Any) -> list[str]:
        entry = searched(Path(settings.output), settings, *others, **options)
        lines = snippet(entry, settings, WORKLOAD)
        assert applied_by(lines) == entry.settings
        return lines

    first = printed(GRID(req_score_loss=0.2))
    assert len(first) == 2 and first[1].endswith('steps=20, scheduler="DDIM")')
    # A stricter search, which finds less.
    assert "    req_score_loss=0.01," in printed(GRID(req_score_loss=0.01))
    with pytest.raises(ConfigurationError, match="say which with req_score_loss="):
        applied_by(first)
    assert "    req_score_loss=0.2," in printed(GRID(req_score_loss=0.2))
    # The same again, on a slower day.
    slow = printed(GRID(req_score_loss=0.2), truth=lambda _: (1.3, 0.0))
    assert "    req_score_loss=0.2," in slow
    # On another device, which is slower; then on the first.
    elsewhere = replace(PROVENANCE, device_name="T4", date="2026-02-01T00:00:00+00:00")
    printed(GRID(req_score_loss=0.2), elsewhere, truth=lambda _: (1.1, 0.0))
    printed(GRID(req_score_loss=0.2), replace(PROVENANCE, date="2026-03-01T00:00:00+00:00"))
    # Other targets, of which those of before are faster.
    joint = printed(
        GRID(req_score_loss=0.2, targets=("deepcache", "tome"), max_trials=4),
        truth=lambda _: (1.2, 0.0),
    )
    assert '    targets=["deepcache", "tome"],' in joint
    # What meets a requirement, with a faster one in the file: its settings stand in the lines.
    needed = printed(GRID(req_score_loss=0.2, req_speedup=1.5), truth=lambda _: (1.6, 0.0))
    assert '"cache_interval": ' in "".join(needed)


def test_what_chooses_among_results_needs_a_file(pipe: Any) -> None:
    with pytest.raises(ConfigurationError, match="give the path"):
        accelerate(pipe, DEEPCACHE, steps=20)
    with pytest.raises(ConfigurationError, match=r"none\.json: no such file"):
        accelerate(pipe, "none.json", steps=20)


def test_a_search_for_fewer_steps_is_applied_like_any_other(pipe: Any) -> None:
    expected = render(pipe, steps=5)
    with accelerate(pipe, {"steps": {"num_inference_steps": 5}}):
        assert torch.equal(render(pipe, steps=20), expected)
        assert torch.equal(render(pipe, steps=3), render(pipe, steps=3))


# What is applied is said


def test_a_files_result_is_named_in_one_line(
    pipe: Any, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accelerate(pipe, results, steps=20)
    restore(pipe)
    line = capsys.readouterr().err
    assert line.startswith(f"accel-search: {results}: applied deepcache(") and line.count("\n") == 1
    assert "likely" not in line
    assert "expected speedup 2.10" in line and "an unknown device" in line and "20 steps" in line
    with accelerate(pipe, results, steps=20, quiet=True), accelerate(make_pipe(), DEEPCACHE):
        assert capsys.readouterr().err == ""
    # All that a result may say, held-out figures first; nothing of it can steer a terminal.
    content = json.loads(results.read_text())
    entry = next(iter(content.values()))
    entry |= {
        "score_loss": 0.013,
        "evidence": {
            "chance_within_bound": 0.82,
            "held_out": {
                "speedup": 2.04, "speedup_interval": [1.98, 2.11],
                "score_loss": -0.004, "score_loss_interval": [-0.01, 0.003],
            },
        },
        "provenance": {
            "device_name": "NVIDIA\x1b[31m H200", "date": "2026-11-28T01:00:00+00:00",
            "model_id": "demo", "width": 512, "height": 768, "batch_size": 4,
        },
    }  # fmt: skip
    results.write_text(json.dumps(content))
    accelerate(pipe, results, steps=20, model="demo").remove()
    line = capsys.readouterr().err
    for part in (
        "speedup 2.04 [1.98, 2.11]", "score loss -0.4 % [-1.0, 0.3]", "2026-11-28",
        "likely (82 %) to be within ",
        "demo, StableDiffusionPipeline, DDIM, 20 steps, 512 x 768 px, batch size 4",
        r"NVIDIA\x1b[31m H200",
    ):  # fmt: skip
        assert part in line
    assert "\x1b" not in line


def test_a_pipeline_of_a_class_that_is_not_searched_takes_the_text_to_image_result(
    results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = make_img2img()
    pipe.scheduler = make_scheduler("DDIMScheduler")
    own = load_best(results, make_pipe(), steps=20)
    with caplog.at_level(logging.WARNING), accelerate(pipe, results, steps=20) as handle:
        assert handle.candidate == own
    assert "searched on StableDiffusionPipeline and applied to StableDiffusionImg2ImgPipeline" in (
        caplog.text
    )
    with pytest.raises(ConfigurationError, match="no result for StableDiffusionPipeline.*50 steps"):
        accelerate(pipe, results, steps=50)
    # Not to another model's kind of UNet.
    xl = make_pipe("SDXL")
    with pytest.raises(ConfigurationError, match="no result for StableDiffusionXLPipeline"):
        accelerate(xl, results, steps=20)
    assert type(xl.scheduler).__name__ == "DDIMScheduler"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, None),
        ({"use_karras_sigmas": True}, "use_karras_sigmas=True"),
        ({"algorithm_type": "sde-dpmsolver++"}, "algorithm_type='sde-dpmsolver++'"),
        ({"solver_order": 3}, "solver_order=3"),
    ],
)
def test_another_sampler_of_the_same_class_is_warned_of(
    options: dict[str, Any], named: str | None, results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = results.read_text().replace("DDIMScheduler", "DPMSolverMultistepScheduler")
    results.write_text(text)
    pipe = make_pipe("SD", "DPMSolverMultistepScheduler", **options)
    for scheduler in (None, "DPM-Solver++"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            accelerate(pipe, results, steps=20, scheduler=scheduler).remove()
        assert ("another sampler" in caplog.text) == bool(named)
        assert named is None or named in caplog.text


@pytest.mark.parametrize("given", ["Nope", "Euler(karras=true", "NopeScheduler"])
def test_what_is_no_scheduler_is_refused_with_the_names(given: str, results: Path) -> None:
    for settings in (DEEPCACHE, results):
        with pytest.raises(ConfigurationError, match="expected one of DDIM, DPM-Solver"):
            accelerate(make_pipe(), settings, scheduler=given)


@pytest.mark.parametrize("own", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"])
def test_noise_that_is_not_searched_is_refused_when_it_is_given(own: str) -> None:
    pipe = make_pipe()
    with pytest.raises(LoadError, match="flow matching, EDM"):
        accelerate(pipe, DEEPCACHE, scheduler=own)
    theirs = pipe.scheduler = getattr(diffusers, own)()
    with pytest.raises(LoadError, match=f"{own}, so the model was trained with noise"):
        accelerate(pipe, DEEPCACHE, scheduler="DDIM")
    assert pipe.scheduler is theirs
    accelerate(pipe, DEEPCACHE).remove()  # Nothing was left accelerated.
