"""Every Python sample of the pages runs, on the embedded pipeline."""

from __future__ import annotations

import shutil

import pytest
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser

from tests.support.docs_pages import NAMES, ROOT, blocks

pytestmark = pytest.mark.slow
WITH_PYTHON = [name for name in NAMES if blocks(name, "python")]


@pytest.fixture(scope="module")
def pipe():
    """Load the pipeline that the samples call `pipe`."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from accel_search.runtime.demo import demo_folder

    torch.set_num_threads(1)
    found = StableDiffusionPipeline.from_pretrained(demo_folder() / "pipeline", safety_checker=None)
    found.scheduler = DDIMScheduler.from_config(found.scheduler.config)
    found.set_progress_bar_config(disable=True)
    found.unet.register_to_config(sample_size=8)  # Pictures of 64 pixels: a quarter of the time.
    return found


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_samples_run(name, pipe, tmp_path, monkeypatch):
    from accel_search import restore
    from tests.support.fakes import WORKLOAD
    from tests.support.pages import make_run_dir

    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "build" / "demo"):  # Where `make demo` writes its own.
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "search_params.json", folder)
    make_run_dir(tmp_path / "accel_search_runs", pictures=False)
    document = Document.parse(str(ROOT / name), PythonCodeBlockParser())
    document.namespace.update(
        pipe=pipe,
        candidate={"deepcache": {"cache_interval": 3, "cache_branch_id": 0}},
        workload=WORKLOAD,
    )
    before = set(vars(pipe.unet.mid_block))
    examples = list(document.examples())
    assert len(examples) == len(blocks(name, "python"))
    try:
        for example in examples:
            example.evaluate()
    finally:
        restore(pipe)  # After samples that end accelerated.
    assert set(vars(pipe.unet.mid_block)) == before
