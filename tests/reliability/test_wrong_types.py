"""Every value of a run record and of a list of pictures replaced by values of other types.

A report passes over what it does not need, or says in one line what it cannot show.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from accel_search.errors import ConfigurationError, LoadError
from accel_search.report.html.page import search_page
from accel_search.report.html.script import script
from accel_search.storage.run_reader import read_run
from accel_search.storage.tables import load_trials
from accel_search.write_report import main
from tests.support.pages import make_run_dir
from tests.support.wrong_types import OTHERS, wrong_types

ROOT = Path(__file__).parents[2]
INSTEAD = (*OTHERS, math.nan)
SHARE = 199
"""Of so many cases the default suite takes one; a prime, so that all values have their turns."""


@pytest.fixture
def cases(tmp_path):
    """Return a run folder, and a function that yields it with each damage done to it in turn."""
    run_dir = make_run_dir(tmp_path / "run")
    files = [*(run_dir / "stories").iterdir(), *(run_dir / "pictures").rglob("pictures.json")]
    assert len(files) == 2

    def damage(share=1):
        count = 0
        for file in files:
            sound = file.read_text()
            for path, value, broken in wrong_types(json.loads(sound), INSTEAD):
                count += 1
                if count % share == 0:
                    file.write_text(json.dumps(broken))
                    yield path, f"{file.name}: {path} is {value!r}"
            file.write_text(sound)

    return run_dir, damage


def says_one_line(call):
    """Return what a call returns, or None where it says in one line why it does not."""
    try:
        return call()
    except (ConfigurationError, LoadError) as error:
        assert "\n" not in str(error)
        return None


@pytest.mark.parametrize("share", [SHARE, pytest.param(1, id="all", marks=pytest.mark.torture)])
def test_a_value_of_another_type_is_passed_over_or_told_in_one_line(cases, share):
    run_dir, damage = cases
    assert search_page(read_run(run_dir)) and script(read_run(run_dir))
    wrong = []
    for path, case in damage(share):
        try:
            run = says_one_line(lambda: read_run(run_dir))
            if run is not None:
                page = says_one_line(lambda: search_page(run))
                assert page is None or page.rstrip().endswith("</html>")
                text = says_one_line(lambda: script(run))
                if text is not None:
                    compile(text, "run_fast.py", "exec")
            if len(path) <= 1:
                says_one_line(lambda: load_trials(run_dir))
        except Exception as error:
            wrong.append(f"{case}: {error!r}")
    assert wrong == []


@pytest.fixture
def damaged_run(tmp_path):
    """Return a run folder, below that of a sweep, whose record cannot be read."""
    folder = make_run_dir(tmp_path / "runs" / "SDXL_DDIM_20_deepcache")
    [record] = (folder / "stories").iterdir()
    changed = json.loads(record.read_text()) | {"workload": "text", "held_out": 7}
    record.write_text(json.dumps(changed))
    return folder


def test_a_sweeps_report_is_written_without_the_page_of_a_damaged_run(
    damaged_run, tmp_path, capsys
):
    page = tmp_path / "sweep.html"
    command = [str(ROOT / "speedup_bounds.json"), "--output", str(page)]
    assert main([*command, "--run_dir", str(damaged_run.parent)]) == 0
    assert "</html>" in page.read_text() and "sweep_files" not in page.read_text()
    assert capsys.readouterr().err == ""


def test_a_table_of_a_damaged_run_is_refused_in_one_line(damaged_run):
    with pytest.raises(LoadError, match="cannot be read as a run record") as caught:
        load_trials(damaged_run)
    assert "\n" not in str(caught.value)
