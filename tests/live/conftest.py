"""A tiny pipeline in memory, and what a quick search of it is given."""

import warnings

import pytest
import torch

from tests.support import making

# Few calls of the UNet in full: the speedups are beyond any noise, so that there is a winner.
QUICK = {
    "steps": 8,
    "height": 32,
    "width": 32,
    "batch_size": 2,
    "timing_pairs": 4,
    "num_samples": 4,
    "held_out_samples": 0,
    "req_score_loss": 1.0,
    "strategy": "grid",
    "space": {"deepcache": {"cache_interval": [8], "cache_branch_id": [0]}},
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A folder with a pipeline of each kind, and a scorer."""
    folder = tmp_path_factory.mktemp("live")
    making.make_sd(folder / "sd")
    making.make_sdxl(folder / "sdxl")
    making.make_scorer(folder / "scorer")
    return folder


def load(folder, cls_name="StableDiffusionPipeline", **options):
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers warns of settings of its own defaults.
        return getattr(diffusers, cls_name).from_pretrained(folder, **options)


@pytest.fixture
def pipe(saved):
    torch.set_num_threads(1)
    return load(saved / "sd")


@pytest.fixture
def quick(saved, tmp_path, monkeypatch):
    """Options of a search that takes seconds, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return {**QUICK, "clip_model": str(saved / "scorer")}
