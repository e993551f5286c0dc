"""Every script can be started: what it imports is there, and it says how it is used."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
FOLDERS = [str(ROOT / "scripts"), str(ROOT / "scripts" / "benchmarks"), str(ROOT)]
OPTIONAL = ("skopt",)
"""Of the dependency group `bench`, which the tests do without."""


@pytest.fixture(autouse=True)
def as_a_script(monkeypatch):
    """Let a script import the folder it lies in, and leave no trace of that."""
    monkeypatch.setattr(sys, "path", [*FOLDERS, *sys.path])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_everything_that_a_script_imports_is_there(path):
    """Imports within functions too, which nothing else reaches before the script is used."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            alone = ast.Module([node], type_ignores=[])
            try:
                # A name that is gone raises here, at the line of the script.
                exec(compile(alone, str(path), "exec"), {"__name__": path.stem})  # noqa: S102
            except ModuleNotFoundError as error:
                if error.name not in OPTIONAL:
                    raise


@pytest.mark.parametrize(
    "path",
    [path for path in SCRIPTS if "argparse" in path.read_text(encoding="utf-8")],
    ids=lambda path: path.stem,
)
def test_a_script_says_how_it_is_used(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {path.name}")
