"""What the tests of the docs start from."""

from __future__ import annotations

import sys

import pytest

from accel_search import accelerators
from accel_search.search import strategies
from tests.support.docs_pages import blocks, project_in


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return what installs the package of a page: its module, under the entry points it names."""
    names = []

    def install(page):
        code = blocks(page, "python")[0].text
        project = project_in(page)
        name, points = project["name"], project["entry-points"]
        site = tmp_path / "site"
        info = site / f"{name}-{project['version']}.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(code)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {project['version']}\n"
        )
        (info / "entry_points.txt").write_text(
            "".join(
                f"[{group}]\n"
                + "".join(f"{key} = {value}\n" for key, value in group_points.items())
                for group, group_points in points.items()
            )
        )
        names.append(name)
        monkeypatch.syspath_prepend(str(site))
        accelerators._discovered.cache_clear()
        strategies.all_strategies.cache_clear()

    yield install
    accelerators._discovered.cache_clear()
    strategies.all_strategies.cache_clear()
    for name in names:
        sys.modules.pop(name, None)
