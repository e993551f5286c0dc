"""The shape of the package: what loads torch, and what is public; `make lint` checks who may import
whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import accel_search

ROOT = Path(accel_search.__file__).parent
MODULES = sorted(
    ".".join(("accel_search", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    )
    for path in ROOT.rglob("*.py")
)
TORCH_FREE = [name for name in MODULES if not name.startswith("accel_search.runtime")]
HEAVY = {"torch", "diffusers", "open_clip", "optuna", "pandas", "tomesd", "DeepCache", "tgate"}


def test_nothing_outside_runtime_loads_torch():
    code = (
        f"import importlib, sys\n"
        f"for name in {TORCH_FREE!r}:\n"
        f"    importlib.import_module(name)\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\n"
        f"assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("entry", ["traversal_search", "explore_upper_bounds"])
def test_help_imports_neither_torch_nor_optuna(entry):
    code = (
        f"import sys\nfrom accel_search.{entry} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'optuna', 'scipy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "--req_score_loss" in done.stdout


def test_public_names_are_exact():
    names = {"Acceleration", "__version__", "accelerate", "compile_unet", "load_best"}
    names |= {"load_results", "load_trials", "measure", "restore", "search", "verify"}
    assert set(accel_search.__all__) == names
    for name in accel_search.__all__:
        assert getattr(accel_search, name)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = accel_search.nothing_of_the_kind


LONGEST_FILE, LONGEST_FUNCTION = 450, 70
"""Lines that are still read at one go."""
SOURCES = sorted([*ROOT.rglob("*.py"), *(ROOT.parents[1] / "scripts").rglob("*.py")])


def test_files_and_functions_stay_short():
    longer = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > LONGEST_FILE:
            longer.append(str(path))
        longer += [
            f"{path}: {node.name}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.end_lineno - node.lineno >= LONGEST_FUNCTION
        ]
    assert not longer
