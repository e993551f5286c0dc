"""The diagrams in the docs are those that the accelerators' code draws today."""

from __future__ import annotations

import sys
from importlib.metadata import version

import pytest

from tests.support.docs_pages import ROOT, links

sys.path.insert(0, str(ROOT / "scripts" / "docs"))

import draw_diagrams  # noqa: E402

PAGE = "docs/parameters.md"
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)


def test_every_drawing_is_shown():
    shown = set(links(PAGE))
    assert {f"diagrams/{name}.svg" for name in draw_diagrams.DIAGRAMS} <= shown
    kept = (ROOT / "docs" / "pictures").glob("*.png")
    assert {f"pictures/{path.name}" for path in kept} <= shown


@pytest.mark.slow
@pytest.mark.parametrize("name", draw_diagrams.DIAGRAMS)
def test_drawings_are_up_to_date(name, tmp_path, monkeypatch):
    if version("matplotlib") != PINNED["matplotlib"]:
        pytest.skip("another matplotlib draws the same in other bytes")
    kept = draw_diagrams.OUT / f"{name}.svg"
    monkeypatch.setattr(draw_diagrams, "OUT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["draw_diagrams.py", name])
    draw_diagrams.main()
    same = (tmp_path / f"{name}.svg").read_bytes() == kept.read_bytes()
    assert same, f"python scripts/docs/draw_diagrams.py {name}"
