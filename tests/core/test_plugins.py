"""An accelerator from a package of its own: installed, found, searched, reported, applied."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from accel_search import accelerators
from accel_search.traversal_search import main
from tests.support.options import SMALL

SOURCE = Path(__file__).parents[1] / "plugin" / "guidance_cutoff.py"


def build_wheel(folder: Path) -> Path:
    """Write a wheel of the plug-in; what a build tool makes, with no tool to fetch."""
    name = "guidance_cutoff-1.0"
    files = {
        "guidance_cutoff.py": SOURCE.read_text(encoding="utf-8"),
        f"{name}.dist-info/METADATA": (
            "Metadata-Version: 2.1\nName: guidance-cutoff\nVersion: 1.0\n"
        ),
        f"{name}.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
        f"{name}.dist-info/entry_points.txt": (
            "[accel_search.accelerators]\ncutoff = guidance_cutoff:GuidanceCutoff\n"
        ),
    }
    files[f"{name}.dist-info/RECORD"] = "".join(f"{each},,\n" for each in files)
    wheel = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install the plug-in with pip, into a folder that this process then imports from."""
    target = tmp_path / "site"
    wheel = build_wheel(tmp_path)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*command, "--target", str(target), str(wheel)], check=True)
    monkeypatch.syspath_prepend(str(target))
    accelerators._discovered.cache_clear()
    yield
    accelerators._discovered.cache_clear()
    sys.modules.pop("guidance_cutoff", None)


def test_a_plug_in_is_installed_found_searched_reported_and_applied(
    installed, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert metadata.version("guidance-cutoff") == "1.0"
    assert list(accelerators.all_accelerators()) == [
        "cutoff", "deepcache", "steps", "tgate", "tome",
    ]  # fmt: skip

    # Far more than the noise of a busy machine, and any loss will do.
    (tmp_path / "c.toml").write_text("[space.cutoff]\ncutoff_step = [2]\n")
    options = ["--config", "c.toml", "--req_score_loss", "1", "--held_out_samples", "0", *SMALL]
    code = main(["--targets", "cutoff", *options, "--trials_out", "trials.json"])
    out = capsys.readouterr().out
    assert "cutoff(cutoff_step=2)" in out
    trial = json.loads((tmp_path / "trials.json").read_text())["trials"][0]
    assert trial["candidate"] == {"cutoff": {"cutoff_step": 2}} and len(trial["scores"]) == 2
    # On a busy machine a gain may drown in the noise; then there is no entry.
    if code == 0:
        entry = next(iter(json.loads((tmp_path / "search_params.json").read_text()).values()))
        assert entry["cutoff_step"] == 2 and entry["settings"] == trial["candidate"]


def test_it_composes_with_the_packages_own(installed):
    import torch

    from accel_search import accelerate
    from tests.support.tiny import make_pipe, render, runs

    pipe = make_pipe()
    before = render(pipe, steps=7)
    seen = runs(pipe.unet.mid_block)
    cache = {"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}
    with accelerate(pipe, cache | {"cutoff": {"cutoff_step": 4}}):
        assert torch.isfinite(render(pipe, steps=7)).all()
    # Full at 0 and 3, and anew at 4, where the batch changes.
    assert seen == [4, 4, 2]
    assert torch.equal(render(pipe, steps=7), before)


def test_without_it_the_program_says_what_there_is(capsys):
    assert main(["--targets", "cutoff"]) == 2
    assert "'cutoff': choose from deepcache, steps, tgate, tome" in capsys.readouterr().err
