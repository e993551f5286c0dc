"""The table and the options of a sweep: checked before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel_search.errors import ConfigurationError
from accel_search.explore_upper_bounds import main
from accel_search.storage.keys import Configuration
from accel_search.sweep.settings import SweepSettings, from_command_line, sweep_parser

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def parsed(*arguments):
    return from_command_line(sweep_parser("accel-explore", "", "0"), arguments)


def test_the_default_table_is_the_missions():
    table = parsed().table
    assert len(table) == len(set(table)) == 81
    assert table[0] == Configuration("SD1.5", "DDIM", 20, "deepcache")
    assert table[-1] == Configuration("SDXL", "UniPC", 50, "tome")
    search = parsed().search_settings(table[0])
    assert (search.num_samples, search.batch_size, search.req_score_loss) == (32, 4, 0.02)
    assert search.scheduler_class == "DDIMScheduler" and search.targets == ("deepcache",)


def test_the_committed_tables_are_what_they_are_said_to_be():
    assert parsed("--sweep", str(CONFIGS / "paper.toml")) == SweepSettings(
        common={"num_samples": 32, "batch_size": 4, "req_score_loss": 0.02}
    )
    demo = parsed("--sweep", str(CONFIGS / "demo_sweep.toml"))
    assert len(demo.table) == 18 and demo.models == ("demo",)


def test_flags_narrow_the_table_and_the_rest_goes_to_every_search(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(
        'models = ["demo"]\nscheds = ["ddim"]\nsteps = [10, 20]\nmethods = ["tome+deepcache"]\n'
        'num_samples = 8\ntimeout = "5m"\n[space.tome]\nratio = [0.5]\n'
    )
    settings = parsed("--sweep", str(file), "--steps", "20", "--timing-pairs", "2")
    assert [str(each) for each in settings.table] == ["demo DDIM 20 deepcache+tome"]
    assert settings.timeout == 300
    search = settings.search_settings(settings.table[0])
    assert (search.num_samples, search.timing_pairs) == (8, 2)
    assert search.targets == ("deepcache", "tome") and search.space == {"tome": {"ratio": (0.5,)}}
    assert search.run_dir == "accel_search_runs/demo_DDIM_20_deepcache+tome"


def test_a_file_may_hold_lists_and_numbers(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text("gpus = [0, 2]\nsteps = 20\ntimeout = 90\nlog_rotate = 5000\n")
    settings = parsed("--sweep", str(file))
    assert (settings.gpus, settings.steps) == ((0, 2), (20,))
    assert (settings.timeout, settings.log_rotate) == (90, 5000)


@pytest.mark.parametrize(
    "line", ["timeout = [1]", "log_rotate = true", "dry_run = 1", "batch_size = 'four'"]
)
def test_a_value_of_the_wrong_type_is_named(tmp_path, line):
    file = tmp_path / "sweep.toml"
    file.write_text(line)
    with pytest.raises(ConfigurationError, match=f"{line.split()[0]} = .* has the wrong type"):
        parsed("--sweep", str(file))


def test_what_the_table_calls_by_other_names_is_understood():
    settings = parsed("--pipe", "SDXL", "--sched", "UniPC", "--targets", "tome")
    assert settings.table[0] == Configuration("SDXL", "UniPC", 20, "tome")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "deepcash"], "deepcash"),
        (["--scheds", "Eulr"], "DPM-Solver++"),
        (["--scheds", "DPM2 Karras"], "accel-search --sched takes DPM2 Karras, too"),
        (["--steps", "20,many"], "20,25,50"),
        (["--num_samples", "1"], "--num_samples 1"),
        (["--retry_failed", "boredom"], "cuda_oom"),
        (["--isolation", "none"], "model, config"),
        (["--workers", "0"], "1 or more"),
        (["--workers", "2", "--gpus", "all"], "choose one"),
        (["--ray_address", "auto"], "--executor ray"),
        (["--log_rotate", "big"], "50MB"),
        (["--timeout", "soon"], "a duration"),
        (["--req_speedup", "2"], "--req_speedup"),
        (["--json"], "--json"),
        (["--models", "SDXL,demo", "--revision", "v1"], "--revision v1: --pipe demo is part"),
        (["--models", "me/own,.", "--revision", "v1"], "--revision v1: --pipe . is a folder"),
        (["--latency_only", "--revision", "v1"], "--revision v1: --latency_only fetches nothing"),
        (["--sweep", "none.toml"], "none.toml"),
    ],
)
def test_a_mistake_is_one_line_with_code_2(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_with_debug_a_mistake_shows_where_it_was_found(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["--gpus", "all", "--log_level", "DEBUG"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_gpus_that_are_not_there_are_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert main(["--gpus", "0,1"]) == 2
    assert "GPUs 0 to 0" in capsys.readouterr().err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["--gpus", "all"]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_every_configuration_has_a_folder_of_its_own():
    odd = [Configuration(model, "DDIM", 20, "tome") for model in ("a/b", "a_b", "../a b", "a:b")]
    slugs = {each.slug for each in (*odd, *parsed().table)}
    assert len(slugs) == 85
    assert not any("/" in slug or ".." in slug or slug.startswith(".") for slug in slugs)


def test_options_of_one_kind_of_value_are_parsed():
    with pytest.raises(ConfigurationError, match="50MB"):
        SweepSettings(**{"log_rotate": parsed("--log_rotate", "0MB").log_rotate})
    assert parsed("--log_rotate", "2MB").log_rotate == 2_000_000
    assert parsed("--retry_failed").retry_failed == "all"
    assert parsed("--retry_failed", "timeout").retry_failed == "timeout"
    assert parsed("--gpus", "0,2").gpus == (0, 2) and parsed("--gpus", "all").gpus == "all"
