"""Every command, configuration, JSON text and option that the pages show is one that works."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from accel_search.cli.options import given_options, read_config
from accel_search.errors import ConfigurationError
from accel_search.settings import Settings, search_parser
from accel_search.settings import from_command_line as search_settings
from accel_search.storage.trials_file import read_trials
from accel_search.sweep.settings import from_command_line as sweep_settings
from accel_search.sweep.settings import options as sweep_options
from accel_search.sweep.settings import sweep_parser
from accel_search.write_report import ReportSettings, report_parser
from tests.support.docs_pages import (
    NAMES,
    PROGRAMS,
    ROOT,
    blocks,
    commands,
    commands_in,
    project_in,
    spans,
    tokens,
)

#: Options of other programs that the pages speak of.
OTHERS = {"--no-deps", "--workers", "--requeue", "--no-sandbox"}
GROUPS = ("accel_search.accelerators", "accel_search.strategies")


def parse(program, arguments):
    """Parse and check a command line as the program does, and stop there."""
    if program == "accel-search":
        return search_settings(search_parser(program, "", "0"), arguments)
    if program == "accel-explore":
        return sweep_settings(sweep_parser(program, "", "0"), arguments)
    options = fields(ReportSettings)
    return ReportSettings(**given_options(report_parser(), arguments, options))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Run in a folder with the repository's files and those that a search leaves."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for name in ("accel_search_runs", "build/demo", "build/demo_sweep/runs"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("build/demo/trials.json", "speedup_bounds.json", "trials.json"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


def check_command(words):
    """Return what is wrong with a command, or None."""
    program, arguments = Path(words[0]).name, words[1:]
    if program in PROGRAMS:
        try:
            parse(program, arguments)
        except ConfigurationError as error:
            return str(error)
        except SystemExit as ended:  # Options that only print, e.g. --print_completion.
            return f"exit code {ended.code}" if ended.code else None
    elif program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
        unknown = [each for each in arguments if "=" not in each and each not in targets]
        return f"no such target: {unknown}" if unknown else None
    elif program == "python" and arguments[0].startswith("scripts/"):
        script = ROOT / arguments[0]
        if not script.exists():
            return f"no {script}"
        source = script.read_text()
        unknown = [each for each in arguments if each.startswith("--") and each not in source]
        return f"no option {unknown} in {script}" if unknown else None
    return None


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_accepted_by_the_programs(checkout, name):
    wrong = [
        f"{where}: {' '.join(words)}: {complaint}"
        for where, words in commands_in(name)
        if (complaint := check_command(words))
    ]
    assert not wrong, "\n".join(wrong)


def test_commands_are_found_and_wrong_ones_are_refused(checkout):
    found = [words for name in NAMES for _, words in commands_in(name) if words[0] in PROGRAMS]
    assert len(found) > 40
    assert {words[0] for words in found} == set(PROGRAMS)
    assert "--stepz" in check_command(["accel-search", "--stepz", "20"])
    assert "nowhere" in check_command(["accel-report", "nowhere"])
    assert check_command(["make", "nothing"]) and check_command(["python", "scripts/no.py"])


def program_options():
    parsers = (search_parser("", "", ""), sweep_parser("", "", ""), report_parser())
    return {option for each in parsers for option in each._option_string_actions}


@pytest.mark.parametrize("name", NAMES)
def test_options_that_a_page_speaks_of_exist(name):
    known = program_options() | OTHERS
    scripts = "".join(path.read_text() for path in (ROOT / "scripts").rglob("*.py"))
    spoken = {
        option for span in spans(name) for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)
    }
    unknown = {each for each in spoken - known if f'"{each}"' not in scripts}
    assert not unknown


@pytest.mark.parametrize("name", NAMES)
def test_options_that_a_page_gives_values_are_accepted(checkout, installed, name):
    if project := project_in(name):
        # The page teaches to write a plug-in, and speaks of it by name.
        assert "entry-points" in project
        installed(name)
    for span in spans(name):
        words = next(commands(span), []) if span.startswith("--") else []
        # `--num_samples N` stands for any number, and `--num_samples` for the option as such.
        if len(words) < 2 or any(word.isupper() for word in words):
            continue
        if not {word for word in words if word.startswith("--")} <= program_options():
            continue  # A script's: the test above knows them.
        words += ["--strategy", "bayes"] if "--sampler" in words else []
        words += ["--pipe", "model.safetensors"] if "--prediction_type" in words else []
        complaints = [check_command([program, *words]) for program in PROGRAMS[:2]]
        complaints.append(check_command(["accel-report", "accel_search_runs", *words]))
        assert None in complaints, f"`{span}`: {complaints}"


@pytest.mark.parametrize("name", NAMES)
def test_toml_blocks_are_configurations(name, tmp_path):
    for block in blocks(name, "toml"):
        content = tomllib.loads(block.text)
        if "project" in content:
            assert content["project"]["entry-points"].keys() <= set(GROUPS), block
            continue
        path = tmp_path / "block.toml"
        path.write_text(block.text)
        is_sweep = {"models", "methods", "scheds"} & content.keys()
        options = sweep_options() if is_sweep else fields(Settings)
        read = read_config(path, options, "accel-search")
        if not is_sweep:
            Settings(**read)


@pytest.mark.parametrize("name", NAMES)
def test_json_blocks_are_json_and_files_of_trials_can_be_read(name, tmp_path):
    for block in blocks(name, "json"):
        content = json.loads(block.text)
        if "format" in content:
            path = tmp_path / "trials.json"
            path.write_text(block.text)
            assert len(read_trials(path).trials) == len(content["trials"])


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_in_a_language_that_is_checked(name):
    # Anything else would be a sample that no test looks at.
    checked = ("python", "console", "bash", "toml", "json", "yaml")
    unchecked = ("text", "{toctree}", "{eval-rst}")
    fences = {token.info.strip() for token in tokens(name) if token.type == "fence"}
    assert fences <= {*checked, *unchecked}
