"""Folders of the real formats, made once, and evaluators on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from accel_search.core.workload import Prompt, PromptSet
from accel_search.runtime.loading.pipelines import describe_workload, load_pipeline
from accel_search.runtime.measuring.evaluator import PipelineEvaluator
from accel_search.runtime.provenance import describe
from accel_search.runtime.scoring.clip import ClipScorer, load_scorer
from accel_search.settings import Settings
from tests.support import making
from tests.support.hub import Hub

LOG = logging.getLogger("tests.runtime")
CPU = torch.device("cpu")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    making.make_sd(folder / "sd")
    making.make_sdxl(folder / "sdxl")
    making.make_scorer(folder / "scorer")
    making.make_prompts(folder / "prompts.txt")
    return folder


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A hub with nothing on it, in the place of the real one, and an empty cache."""
    from huggingface_hub import constants

    server = Hub()
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    # Versions below 1 of the client have it in two places.
    monkeypatch.setattr(
        "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE",
        constants.HUGGINGFACE_CO_URL_TEMPLATE,
        raising=False,
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def settings_for(made: Path) -> Callable[..., Settings]:
    def build(kind: str = "sd", **changes: Any) -> Settings:
        values: dict[str, Any] = {
            "pipe": str(made / kind),
            "clip_model": str(made / "scorer"),
            "prompts": str(made / "prompts.txt"),
            "device": "cpu",
            "steps": 3,
            "threads": 1,
        }
        return Settings(**(values | changes))

    return build


@pytest.fixture(scope="session")
def loaded(settings_for: Callable[..., Settings]) -> Callable[[str], Any]:
    """Return (pipeline, workload) of `sd` or `sdxl`, loaded once; leave it as it was."""
    kept: dict[str, Any] = {}

    def load(kind: str) -> Any:
        if kind not in kept:
            settings = settings_for(kind)
            pipe, folder = load_pipeline(settings, LOG)
            kept[kind] = pipe, describe_workload(pipe, settings, folder)
        return kept[kind]

    return load


@pytest.fixture(scope="session")
def scorer(settings_for: Callable[..., Settings]) -> ClipScorer:
    return load_scorer(settings_for(), CPU)


def prompt_set(search: int, held_out: int = 0) -> PromptSet:
    prompts = [Prompt(text, 1000 + i) for i, text in enumerate(making.PROMPTS)]
    return PromptSet("test", tuple(prompts[:search]), tuple(prompts[search : search + held_out]))


@pytest.fixture
def evaluator_for(loaded: Callable[[str], Any], scorer: ClipScorer) -> Callable[..., Any]:
    from dataclasses import replace

    def build(
        search: int = 4,
        held_out: int = 0,
        batch_size: int = 2,
        kind: str = "sd",
        scorer: Any = scorer,
        **options: Any,
    ) -> PipelineEvaluator:
        pipe, workload = loaded(kind)
        workload = replace(workload, batch_size=batch_size)
        prompts = prompt_set(search, held_out)
        provenance = describe(pipe, workload, prompts, revision=None, clip_model="tiny", threads=1)
        return PipelineEvaluator(pipe, scorer, prompts, workload, provenance, log=LOG, **options)

    return build
