"""The two lines: settings or a result file, as a handle or a `with` block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from accel_search import accelerate, load_best
from accel_search.errors import AcceleratorError, ConfigurationError
from accel_search.space import search_key
from tests.accelerators.tiny import assert_same as assert_untouched
from tests.accelerators.tiny import make_pipe, make_scheduler, render, snapshot
from tests.fakes import WORKLOAD, with_steps

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


def test_another_scheduler_is_refused_with_what_to_do(pipe: Any, results: Path) -> None:
    pipe.scheduler = make_scheduler("DDIMScheduler")
    with pytest.raises(ConfigurationError, match=r"UniPCMultistepScheduler\.from_config"):
        accelerate(pipe, results, scheduler="UniPC")
    pipe.scheduler = make_scheduler("UniPCMultistepScheduler")
    with pytest.raises(ConfigurationError, match="no result for .*UniPC"):
        accelerate(pipe, results, scheduler="UniPC")
    assert load_best(results, scheduler="DDIM", steps=20) == DEEPCACHE
    pipe.scheduler = make_scheduler("DDIMScheduler")


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
