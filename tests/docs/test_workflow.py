"""The workflow that docs/use.md gives is YAML, and its steps gate by the three verdicts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from tests.support.docs_pages import NAMES, blocks
from tests.support.options import SMALL

PAGE = "docs/use.md"
BASH = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c"]
"""How GitHub runs a step whose shell is bash."""


def workflows():
    return [yaml.safe_load(block.text) for name in NAMES for block in blocks(name, "yaml")]


def steps():
    """Return the steps of the workflow that run the program."""
    (workflow,) = workflows()
    (job,) = workflow["jobs"].values()
    return [step["run"] for step in job["steps"] if "accel-search" in step.get("run", "")]


@pytest.fixture
def run(tmp_path):
    """Return what runs a step with a stand-in for the program, as text of a shell script."""

    def run_step(program):
        tools = tmp_path / "bin"
        tools.mkdir()
        (tools / "accel-search").write_text(f"#!/bin/bash\n{program}\n")
        (tools / "accel-search").chmod(0o755)
        environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
            "OMP_NUM_THREADS": "1",
        }
        (step,) = steps()
        return subprocess.run(
            [*BASH, step],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )

    return run_step


def test_the_workflow_is_one_that_github_runs():
    (workflow,) = workflows()
    assert {"pull_request", "schedule"} == set(workflow[True])  # YAML 1.1 takes `on` for true.
    (job,) = workflow["jobs"].values()
    assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    kept = next(step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    assert kept["if"] == "always()" and Path("verdicts.xml").match(kept["with"]["path"])


@pytest.mark.parametrize(
    ("code", "ends", "said"),
    [
        (0, 0, ""),
        (3, 3, "::error::the settings in use fail"),
        (7, 0, "::warning::the settings in use are inconclusive"),
        (5, 5, "::error::accel-search ended with code 5, without a verdict"),
    ],
)
def test_the_three_verdicts_open_close_and_warn(run, tmp_path, code, ends, said):
    writes = "" if code == 5 else "echo '## a table' > verdicts.md; "
    done = run(f"{writes}exit {code}")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (ends, said, "")
    summary = tmp_path / "summary.md"
    assert summary.exists() is (code != 5)


def test_the_command_measures_and_leaves_its_verdicts(run, tmp_path):
    options = " ".join(
        ["--pipe", "demo", *SMALL, "--quiet", "--report"]
    )  # The last of an option counts.
    done = run(f'exec {sys.executable} -m accel_search.traversal_search "$@" {options}')
    assert done.returncode in (0, 3), done.stderr  # On two prompts nothing passes.
    assert "::warning::" in done.stdout or "::error::the settings in use fail" in done.stdout
    assert "Compared with deepcache(3, 0)" in done.stdout
    assert (tmp_path / "summary.md").read_text() == (tmp_path / "verdicts.md").read_text() != ""
    page = (tmp_path / "accel_search_runs" / "report.html").read_text()
    assert page.count("<figure>") == 2 * 3  # Two prompts, by the baseline and both candidates.
    assert not (tmp_path / "search_params.json").exists()
    root = ET.parse(tmp_path / "verdicts.xml").getroot()  # noqa: S314 - our own
    names = [case.get("name") for case in root.iter("testcase")]
    assert names == ["deepcache(3, 0)", "deepcache(2, 0)"]
