"""The shape of the package: who may import whom, and what is public."""

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

#: Layers, from the ground up: a module imports, at its top, only from its own layer or below.
LAYERS = [
    {"errors", "interrupts", "logging_utils", "nvidia_smi", "turns"},
    {"anew", "discovery", "completion", "program", "racing"},
    {"options"},
    {"records"},
    {"result_files", "accelerators", "statistics", "storage", "watchdog"},
    {"space"},
    {"outcome", "step_plans", "store", "trials_file"},
    {"latency", "quality"},
    {"strategies", "trackers"},
    {"settings"},
    {"search"},
    {"speed_bound", "replay"},
    {"no_gain"},
    {"results"},
    {"story", "lookup"},
    {"bounds"},
    {"verification"},
    {"sweep"},
    {"report"},
    {"tracking"},
    {"study"},
    {"exploration"},
    {"runtime", "api", "frames"},
    {"traversal_search", "explore_upper_bounds", "write_report", ""},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part_of(module: str) -> str:
    """Return the top-level part of the package that a module belongs to."""
    return (module.split(".") + [""])[1]


def test_nothing_outside_runtime_loads_torch():
    code = (
        f"import importlib, sys\n"
        f"for name in {TORCH_FREE!r}:\n"
        f"    importlib.import_module(name)\n"
        f"heavy = {{'torch', 'diffusers', 'open_clip', 'optuna'}} & set(sys.modules)\n"
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


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    part = part_of(module)
    assert part in LEVEL, f"{module}: put its part into LAYERS"
    path = ROOT / Path(*module.split(".")[1:])
    source = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("accel_search"):
            targets = (
                [node.module]
                if node.module != "accel_search"
                else [f"accel_search.{a.name}" for a in node.names]
            )
            for target in targets:
                assert LEVEL[part_of(target)] <= LEVEL[part], f"{module} imports {target}"


def test_public_names_are_exact():
    names = {"Acceleration", "__version__", "accelerate", "compile_unet", "load_best"}
    names |= {"load_results", "load_trials"}
    assert set(accel_search.__all__) == names
    for name in accel_search.__all__:
        assert getattr(accel_search, name)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = accel_search.nothing_of_the_kind
