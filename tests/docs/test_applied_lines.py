"""Python that people are shown accelerates, run as it is printed: counted, and compared."""

from __future__ import annotations

import ast
import itertools
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from accel_search.report.html.page import search_page
from accel_search.report.html.script import write_script
from accel_search.storage.run_reader import read_run
from accel_search.traversal_search import main as accel_search
from tests.support.docs_pages import (
    APPLIES,
    NAMES,
    ROOT,
    applications_in,
    blocks,
    is_abridged,
    notebook_cells,
    printed_python,
    project_in,
    spans,
    tokens,
)
from tests.support.pages import make_run_dir

KINDS = {"docs/sdxl.md": "SDXL"}
"""What a page's `pipe` is where it is no SD1.5."""
STORED = json.loads((ROOT / "search_params.json").read_text())
SETTINGS = next(iter(STORED.values()))["settings"]
"""What the files hold that lines are run with here."""
AROUND_SPANS = (
    "from accel_search import accelerate, load_best\n"
    'path, settings = "search_params.json", load_best("search_params.json")\n'
)
"""What code within a line is part of."""


class Printed(NamedTuple):
    """Lines as they are printed."""

    where: str
    text: str
    kind: str = "SD1.5"
    stored: dict[str, Any] = SETTINGS
    """What the result file that they name holds."""

    @property
    def applied(self) -> list[dict[str, Any]]:
        """Return the settings that each `accelerate` is given, there or in its file."""
        tree = ast.parse(self.text)
        values = {
            ast.unparse(node.targets[0]): node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
        }
        found = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "accelerate":
                given = values.get(ast.unparse(node.args[1]), node.args[1])
                is_literal = isinstance(given, ast.Dict)
                found[node.lineno] = ast.literal_eval(given) if is_literal else self.stored
        return [found[line] for line in sorted(found)]

    @property
    def stays(self) -> bool:
        """Return whether the lines leave the pipeline accelerated."""
        ends = r"^with accelerate\(|\.remove\(\)|^restore\("
        return not re.search(ends, ast.unparse(ast.parse(self.text)), re.M)

    @property
    def watched(self) -> str:
        """Return the lines, and around them what `run_printed.py` watches them by."""
        around = AROUND_SPANS if self.where.endswith("`") else ""
        end = f"finish(pipe, {self.where!r}, {self.stays})"
        return f"{around}pipe = start({self.kind!r})\n{self.text.rstrip()}\n{end}\n"


def run_printed(
    folder: Path,
    scripts: dict[str, list[Printed]],
    content: dict[str, Any] = STORED,
    **environment: str,
) -> list[str]:
    """Run lines, each name's in a script and a process of its own, and return what is wrong.

    Args:
        folder: The scripts' folders are made there.
        scripts: Name -> its lines.
        content: Of the result files that they name.
        environment: Variables of the environment.
    """
    paths = []
    for number, printed in enumerate(scripts.values()):
        paths.append(folder / f"script{number}" / "script.py")
        paths[-1].parent.mkdir()
        paths[-1].write_text("\n".join(lines.watched for lines in printed))
        for lines in printed:
            write_results(paths[-1].parent, lines, content)
    # Tokenizers in threads of their own and forks do not go together.
    alone = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **alone, **environment}
    command = [sys.executable, ROOT / "tests/support/run_printed.py", *paths]
    subprocess.run(command, check=True, env=environment)
    wrong = []
    for path, (name, printed) in zip(paths, scripts.items(), strict=True):
        code, stderr = (path.with_name(each).read_text() for each in ("code", "stderr"))
        if code != "0" or "Exception ignored" in stderr:
            wrong.append(f"{name}: exit code {code}: {stderr}")
            continue
        seen = map(json.loads, path.with_name("seen.jsonl").read_text().splitlines())
        for lines, note in zip(printed, seen, strict=True):
            wrong += [f"{lines.where}: {what}" for what in complaints(lines, note)]
    return wrong


def write_results(folder: Path, lines: Printed, content: dict[str, Any]) -> None:
    """Write the result files that lines name, with a result for their pipeline."""
    if lines.kind == "SDXL":  # Of no model: the pipeline has been loaded from nowhere.
        content = {
            key.replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"): {
                name: value for name, value in entry.items() if name != "provenance"
            }
            for key, entry in content.items()
        }
    for name in re.findall(r'"([\w/]+\.json)"', lines.watched):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))


def complaints(lines: Printed, note: dict[str, Any]) -> list[str]:
    """Return what lines have not done that they should have."""
    wrong = []
    if note["applied"] != lines.applied:
        wrong.append(f"applies {note['applied']}, and shows {lines.applied}")
    if note["is_bare_at_end"] == lines.stays:
        wrong.append("is bare at the end" if lines.stays else "is still accelerated at the end")
    pictured = [call["settings"] for call in note["calls"]]
    if any(settings not in pictured for settings in lines.applied):
        wrong.append("makes no picture with what is applied: show a call of the pipeline")
    for call in note["calls"]:
        counts = f"{call['full']} full UNet calls of {call['full_bare']}"
        cache = call["settings"].get("deepcache", {"cache_interval": 1})
        expected = math.ceil(call["unet"] / cache["cache_interval"])
        if (
            call["full"] != call["full_kept"]
            or "deepcache" in call["settings"]
            and (call["full"] != expected or call["full"] >= call["full_bare"])
        ):
            wrong.append(f"{counts}, and {call['full_kept']} with a handle that is kept")
        if call["is_as_bare"]:
            wrong.append("makes the baseline's picture")
        if not call["is_as_kept"]:
            wrong.append("makes another picture than with a handle that is kept")
    return wrong


def shown() -> dict[str, list[Printed]]:
    """Return what the pages and the notebook's outputs show, by page, the same lines once."""
    found = {
        name: [
            Printed(where, text, KINDS.get(name, "SD1.5")) for where, text in applications_in(name)
        ]
        for name in NAMES
    }
    outputs = [output for cell in notebook_cells() for output in cell["outputs"]]
    text = "".join("".join(output.get("text", "")) for output in outputs)
    found["docs/demo.ipynb"] = [Printed("docs/demo.ipynb", lines) for lines in printed_python(text)]
    places: dict[tuple[str, str], list[str]] = {}
    for lines in itertools.chain(*found.values()):
        places.setdefault((lines.text, lines.kind), []).append(lines.where)
    first = {where[0]: ", ".join(where) for where in places.values()}
    return {
        name: kept
        for name, printed in found.items()
        if (
            kept := [
                each._replace(where=first[each.where]) for each in printed if each.where in first
            ]
        )
    }


def test_every_line_of_the_pages_is_found():
    for name in NAMES:
        fences = [token.content for token in tokens(name) if token.type == "fence"]
        code = fences + [span for span in spans(name) if not is_abridged(span)]
        found = [text for _, text in applications_in(name)]
        count = sum(text.count(APPLIES) for text in code)
        assert sum(text.count(APPLIES) for text in found) == count, name
    places = " ".join(lines.where for printed in shown().values() for lines in printed)
    for name in ("README.md", "README_zh.md", "docs/quickstart.md", "docs/sdxl.md", "demo.ipynb"):
        assert f"{name}" in places


def copied(page: Path) -> list[Printed]:
    """Return what the copy buttons of a report hold."""
    text = page.read_text()
    return [
        Printed(f"{page.name}: {name}", unescape(code))
        for name in re.findall(r'data-copy="([\w-]+)"', text)
        for code in re.findall(rf'<code id="{name}">(.*?)</code>', text, re.S)
    ]


def reported(folder: Path) -> dict[str, list[Printed]]:
    """Return what a report's page lets copy, and the script that is exported of it."""
    run = read_run(make_run_dir(folder / "runs", pictures=False))
    page, script = folder / "page.html", folder / "run_fast.py"
    page.write_text(search_page(run))
    small = replace(run.record.workload, steps=6, height=64, width=64)
    write_script(replace(run, record=replace(run.record, workload=small)), script)
    assert len(copied(page)) == 2
    return {"page": copied(page), "script": [Printed(script.name, script.read_text())]}


def replayed(capsys: pytest.CaptureFixture[str]) -> dict[str, list[Printed]]:
    """Return what a search of recorded trials prints, which writes no result file."""
    table = ROOT / "tests/data/tables/deepcache.json.gz"
    assert accel_search(["--replay", str(table), "--targets", "deepcache"]) == 0
    lines = printed_python(capsys.readouterr().out)
    assert len(lines) == 1
    return {"replay": [Printed("--replay", lines[0])]}


def test_all_that_is_shown_accelerates(tmp_path, installed, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pages = shown()
    for name in NAMES:
        if name in pages and project_in(name):  # The accelerator that the page teaches to write.
            installed(name)
    # Compiling takes longer than all the rest: it has a test of its own.
    environment = {"PYTHONPATH": str(tmp_path / "site"), "TORCHDYNAMO_DISABLE": "1"}
    scripts = pages | reported(tmp_path) | replayed(capsys)
    wrong = run_printed(tmp_path, scripts, **environment)
    assert not wrong, "\n".join(wrong)
    # What pages show of stderr is what the lines have written there.
    written = "".join(path.read_text() for path in tmp_path.glob("script*/stderr")).splitlines()
    said = [
        line
        for name in NAMES
        for block in blocks(name, "text")
        for line in block.text.splitlines()
        if re.match("accel-search: .*: applied ", line)
    ]
    assert said and set(said) <= set(written)


@pytest.mark.slow
def test_what_compiles_accelerates(tmp_path):
    compiled = {
        name: [lines for lines in printed if "compile_unet(" in lines.text]
        for name, printed in shown().items()
    }
    compiled = {name: printed for name, printed in compiled.items() if printed}
    assert compiled
    wrong = run_printed(tmp_path, compiled)
    assert not wrong, "\n".join(wrong)


SMALL = ["--device", "cpu", "--threads", "1", "--batch_size", "1", "--timing_pairs", "8"]
SMALL += ["--num_samples", "2", "--held_out_samples", "0", "--height", "64", "--width", "64"]
SMALL += ["--req_score_loss", "1", "--strategy", "grid"]


@pytest.mark.slow
def test_what_make_demo_prints_reports_and_exports_accelerates(tmp_path):
    def program(*words: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name(words[0]), *words[1:]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done

    assert "accel-search --config configs/demo.toml\n" in (ROOT / "Makefile").read_text()
    space = "[space.deepcache]\ncache_interval = [5]\ncache_branch_id = [0]\n"
    (tmp_path / "demo.toml").write_text((ROOT / "configs/demo.toml").read_text() + space)
    search = ["accel-search", "--config", "demo.toml", *SMALL]
    printed = {}
    for name in ("search", "answer"):  # The second is answered from the file of the first.
        lines = printed_python(program(*search).stdout)
        assert len(lines) == 1 and '"build/demo/search_params.json"' in lines[0]
        printed[name] = [Printed(name, lines[0])]
    program("accel-report", "build/demo", "--export", "run_fast.py")
    script = (tmp_path / "run_fast.py").read_text()
    printed |= {
        "page": copied(tmp_path / "build/demo/report.html"),
        "script": [Printed("run_fast.py", script)],
    }
    content = json.loads((tmp_path / "build/demo/search_params.json").read_text())
    assert next(iter(content.values()))["settings"] == SETTINGS
    assert len(printed["page"]) == 2
    wrong = run_printed(tmp_path, printed, content)
    assert not wrong, "\n".join(wrong)
    # As it is; of all that libraries print, there are bars of progress.
    written = program(Path(sys.executable).name, "run_fast.py").stderr
    bar = re.compile(r".*\d+%\|.*")
    assert [line for line in re.split(r"[\r\n]+", written) if line and not bar.match(line)] == []
