"""With torch, diffusers, transformers and NumPy alone a result is applied, and a search says more.

The environment is made of links to those of this one's packages: `pip install --no-deps`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import accel_search

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(accel_search.__file__).parent
GIVEN = ("torch", "diffusers", "transformers", "numpy")
TOME = {"tome": {"ratio": 0.5, "max_downsample": 2}}
TGATE = {"tgate": {"gate_step": 5, "sp_interval": 2, "fi_interval": 1, "warmup": 1}}
APPLIES = f"""
import sys
import torch
sys.path.append({str(ROOT)!r})
from accel_search import accelerate, load_best, load_results, load_trials, restore
from accel_search.errors import ConfigurationError
from tests.support.tiny import make_pipe, render

best = load_best("search_params.json", steps=20, scheduler="DDIM")
pipe = make_pipe()
plain = render(pipe, steps=20)
accelerate(pipe, "search_params.json", steps=20, scheduler="DDIM", model="demo")
assert not torch.equal(render(pipe, steps=20), plain)
restore(pipe)
assert torch.equal(render(pipe, steps=20), plain)
for settings in ({TOME}, {TGATE}):
    with accelerate(pipe, settings):
        assert not torch.equal(render(pipe, steps=20), plain)
assert torch.equal(render(pipe, steps=20), plain)
print(best)
for call in (
    load_trials,
    load_results,
    lambda: accelerate(pipe, {TOME}, implementation="package"),
):
    try:
        call()
    except ConfigurationError as error:
        print(error)
"""


def needed_by(names: tuple[str, ...]) -> set[str]:
    """Return packages and all that they depend on, without extras."""
    needed: set[str] = set()
    left = list(names)
    while left:
        found = distribution(left.pop())
        if found.name not in needed:
            needed.add(found.name)
            wanted = [Requirement(text) for text in found.requires or ()]
            left += [each.name for each in wanted if not each.marker or each.marker.evaluate()]
    return needed


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with those packages alone."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    [packages] = home.glob("lib/python*/site-packages")
    for name in needed_by(GIVEN):
        files = distribution(name).files or ()
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            link = packages / top
            if not link.exists():  # Two packages may share a folder.
                link.symlink_to(distribution(name).locate_file(top))
    (packages / "accel_search").symlink_to(SOURCE)
    files = distribution("accel-search").files or ()
    [metadata] = [Path(str(file.locate())).parent for file in files if file.name == "METADATA"]
    (packages / metadata.name).symlink_to(metadata)  # It names what accel-search depends on.
    return home / "bin" / "python"


def run(python: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [python, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )


def test_a_result_is_applied_and_taken_off_and_what_needs_more_says_what(python, tmp_path):
    shutil.copy(ROOT / "search_params.json", tmp_path)
    ended = run(python, "-c", APPLIES, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    best, trials, results, package = ended.stdout.splitlines()
    assert best == "{'deepcache': {'cache_interval': 5, 'cache_branch_id': 0}}"
    remedy = "not installed: pip install accel-search"
    assert re.fullmatch(f"load_trials needs .*optuna.*, which are {remedy}", trials)
    assert results == f"load_results needs pandas, which is {remedy}"
    assert package == f"implementation='package' needs tomesd, which is {remedy}"


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("traversal_search", "accel-search", ["--pipe", "demo"]),
        ("explore_upper_bounds", "accel-explore", ["--dry_run"]),
        ("write_report", "accel-report", [str(ROOT / "speedup_bounds.json")]),
    ],
)
def test_a_program_names_in_one_line_what_is_not_installed(
    python, tmp_path, module, name, arguments
):
    ended = run(python, "-m", f"accel_search.{module}", *arguments, folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    line = re.fullmatch(
        rf"{name}: error: {name} needs (.+), which are not installed: pip install accel-search\n",
        ended.stderr,
    )
    assert line, ended.stderr
    missing = set(line[1].split(", "))
    assert {"optuna", "scipy", "open-clip-torch", "datasets", "psutil"} <= missing
    assert not missing & {*GIVEN, "pillow", "tqdm", "filelock"}
    assert list(tmp_path.iterdir()) == []
    helped = run(python, "-m", f"accel_search.{module}", "--help", folder=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")


def test_what_needs_no_package_of_a_search_works(python, tmp_path):
    listed = ["--list", "--output", str(ROOT / "search_params.json")]
    ended = run(python, "-m", "accel_search.traversal_search", *listed, folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "deepcache(5, 0): speedup" in ended.stdout
