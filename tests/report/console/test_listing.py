"""What `--list` shows of a result file."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from accel_search.errors import ConfigurationError
from accel_search.report.console.listing import as_json, listing, stored_in
from accel_search.traversal_search import main
from tests.support.fakes import PROVENANCE
from tests.support.results import GRID, searched


def test_each_result_is_listed_once_below_its_workload(tmp_path):
    path = tmp_path / "f.json"
    entry = searched(path, GRID())
    searched(path, GRID(req_speedup=1.5))
    other = {"weights": "0123456789abcdef", "scheduler": {"use_karras_sigmas": True}, "vae": "v@1"}
    searched(path, GRID(batch_size=1), replace(PROVENANCE, batch_size=1, **other))
    lines = listing(stored_in(path), path).splitlines()
    assert lines[0] == f"{path}: 3 results"
    assert lines[2] == (
        "demo, StableDiffusionPipeline, DDIM, 20 steps, 128 x 128 px, batch size 4, guidance 4, "
        "float32, a processor"
    )
    assert lines[3].startswith("  deepcache(4, 3): speedup 1.90 [")
    assert "score loss 1.6 %" in lines[3]
    assert lines[4] == "    of deepcache within 2 %; 2026-01-01"
    assert lines[6] == "    of deepcache within 2 %, 1.5x required; 2026-01-01"
    assert lines[8] == (
        "demo, StableDiffusionPipeline, DDIM, 20 steps, 128 x 128 px, batch size 1, VAE v@1, "
        "guidance 4, float32, use_karras_sigmas=True, weights 0123456789abcdef, a processor"
    )
    first = as_json(stored_in(path))[0]
    assert first["speedup"] == entry.speedup and first["targets"] == ["deepcache"]


def test_a_hostile_file_steers_no_terminal_and_shows_no_secret(tmp_path):
    path = tmp_path / "f.json"
    searched(path, GRID(), replace(PROVENANCE, model_id="a\x1b[31m\nb hf_" + "x" * 34))
    said = listing(stored_in(path), path)
    assert "\x1b" not in said and "\nb" not in said and "x" * 34 not in said


def test_the_program_lists_and_measures_nothing(tmp_path, capsys):
    path = tmp_path / "f.json"
    command = ["--list", "--output", str(path), "--log_file", str(tmp_path / "log")]
    assert main(command) == 2
    assert "no such file; accel-search writes it" in capsys.readouterr().err
    path.write_text("{}")
    assert main(command) == 3 and capsys.readouterr().out == f"{path}: 0 results\n"
    searched(path, GRID())
    assert main(command) == 0 and "deepcache(4, 3)" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["steps"] == "20"
    assert {each.name for each in tmp_path.iterdir()} <= {"f.json", "f.json.lock"}
    path.write_text("[")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        stored_in(path)


def test_the_lines_of_the_documentation_list_a_file(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "use.md").read_text()
    block = page.partition("## What a file holds")[2].partition("```console\n")[2]
    lines = block.partition("```")[0].strip().splitlines()
    for name in ("search_params.json", "other.json"):
        searched(tmp_path / name, GRID())
    said = []
    for line in lines:
        program, *arguments = shlex.split(line, comments=True)
        command = [str(Path(sys.executable).with_name(program)), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        said.append(done.stdout)
    assert len(said) == 2 and said[0].startswith("search_params.json: 1 result\n")
    assert json.loads(said[1])[0]["targets"] == ["deepcache"]
