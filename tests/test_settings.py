"""Options: one declaration, two spellings, one line for each mistake."""

from dataclasses import fields

import pytest

from accel_search.cli.options import parse_seconds
from accel_search.errors import ConfigurationError
from accel_search.settings import Settings, from_command_line, search_parser
from accel_search.storage.keys import search_key
from accel_search.sweep.settings import from_command_line as sweep_settings
from accel_search.sweep.settings import sweep_parser
from accel_search.traversal_search import main
from tests.support.fakes import WORKLOAD


def parse(*arguments):
    return from_command_line(search_parser("accel-search", "", "0"), arguments)


def test_no_arguments_give_the_defaults():
    assert parse() == Settings()


@pytest.mark.parametrize(
    "option", [each for each in fields(Settings) if each.metadata], ids=lambda each: each.name
)
def test_both_spellings_of_every_option_work(option):
    values = {
        "attention": "flash",
        "implementation": "package",
        "sched": "UniPC",
        "targets": "tome",
        "strategy": "random",
        "time_budget": "30m",
        "trial_timeout": "0",
        "device": "cuda:1",
        "dtype": "float16",
        "log_level": "DEBUG",
        "height": "512",
        "width": "512",
        "req_score_loss": "0.5",
        "min_ssim": "0.5",
        "max_tail_loss": "0.5",
        "sampler": "gp",
        "candidate": "deepcache(7,0)",
        "sched_option": "karras=true",
        "prediction_type": "epsilon",
        "lora": "style.safetensors:0.8",
        "pipe_class": "img2img",
    }
    value = [] if option.metadata["parse"] is bool else [values.get(option.name, "2")]
    needs = {
        "sampler": ["--strategy", "bayes"],
        "revision": ["--pipe", "SDXL"],
        "prediction_type": ["--pipe", "model.safetensors"],
        "ip_adapter_scale": ["--ip_adapter", "adapter.safetensors"],
    }
    beside = needs.get(option.name, [])
    with_underscores = parse(f"--{option.name}", *value, *beside)
    with_hyphens = parse(f"--{option.name.replace('_', '-')}", *value, *beside)
    assert with_underscores == with_hyphens != Settings()


def test_the_original_scripts_spellings_are_understood():
    settings = parse("--search_targets", "tome,deepcache", "--sched", "UniPCMultistepScheduler")
    assert settings.targets == ("deepcache", "tome")
    assert settings.sched == "UniPC" and settings.scheduler_class == "UniPCMultistepScheduler"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--steps", "0"], ["--steps", "0", "1 or more"]),
        (["--steps", "x"], ["--steps", "'x'", "whole number"]),
        (["--batch_size", "-1"], ["--batch_size", "1 or more"]),
        (["--num_samples", "1"], ["--num_samples", "2 or more"]),
        (["--height", "100"], ["--height", "multiple of 8"]),
        (["--req_score_loss", "2"], ["--req_score_loss", "fraction"]),
        (["--req_score_loss", "nan"], ["--req_score_loss", "fraction"]),
        (["--req_speedup", "0.5"], ["--req_speedup", "1 or more"]),
        (["--guidance_scale", "inf"], ["--guidance_scale"]),
        (["--time_budget", "soon"], ["--time_budget", "'soon'", "30m"]),
        (["--trial_timeout", "-1"], ["--trial_timeout", "'-1'", "30m", "0 for none"]),
        (["--trial_timeout", "nan"], ["--trial_timeout", "'nan'", "30m", "0 for none"]),
        (["--sched", "Eulr"], ["--sched", "'Eulr'", "DDIM", "did you mean 'Euler'?"]),
        (["--device", "tpu"], ["--device", "'tpu'", "cuda"]),
        (["--dtype", "int8"], ["--dtype", "float16"]),
        (["--targets", "deepcache,magic"], ["'magic'", "deepcache", "tome", "tgate"]),
        (["--targets", ","], ["--targets", "deepcache"]),
        (["--min_psnr", "-3"], ["--min_psnr", "decibels"]),
        (["--min_ssim", "2"], ["--min_ssim", "similarity"]),
        (["--max_tail_loss", "-1"], ["--max_tail_loss", "from 0 to 1", "0.2 for 20 %"]),
        (["--max_tail_loss", "2"], ["--max_tail_loss", "from 0 to 1", "0.2 for 20 %"]),
        (["--log_level", "LOUD"], ["--log_level", "INFO"]),
        (["--json", "--quiet"], ["--json", "--quiet"]),
        (["--revision", "v1"], ["--revision v1", "--pipe demo", "leave it out"]),
        (["--revision", "v1", "--pipe", "."], ["--revision v1", "--pipe . is a folder"]),
        (["--revision", "v1", "--pipe", "SDXL", "--latency_only"], ["v1", "fetches nothing"]),
        (["--revision", "v1", "--pipe", "SDXL", "--replay", "t.json"], ["v1", "--replay loads"]),
        (["--lora", "a.pt"], ["--lora a.pt", "is a pickle", ".safetensors"]),
        (["--lora", "a.ckpt:0.5"], ["--lora a.ckpt", "is a pickle"]),
        (
            ["--lora", "a.safetensors:nan"],
            ["--lora", "'a.safetensors:nan'", "style.safetensors:0.8"],
        ),
        (["--lora", " :1"], ["--lora", "a .safetensors file"]),
        (["--lora", "a\nb"], ["--lora", "control characters"]),
        (["--lora", "a", "--replay", "t.json"], ["--lora a", "--replay loads no pipeline"]),
        (["--nonsense"], ["--nonsense", "--help"]),
        (["--step", "20"], ["--step", "--help"]),
    ],
)
def test_a_mistake_is_one_line_that_names_value_and_choices(arguments, names):
    with pytest.raises(ConfigurationError) as refused:
        parse(*arguments)
    message = str(refused.value)
    assert "\n" not in message
    assert all(name in message for name in names), message
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--strategy", "luck"], ["'luck'", "guided", "bayes", "grid", "random"]),
        (["--sampler", "gp"], ["--sampler", "'gp'", "no sampler", "guided"]),
        (["--strategy", "bayes", "--sampler", "x"], ["--sampler", "'x'", "tpe, gp"]),
    ],
)
def test_a_strategy_or_sampler_that_there_is_none_of_is_refused(arguments, names, capsys):
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and all(name in message for name in names), message
    with pytest.raises(ConfigurationError, match=names[0]):
        sweep_settings(sweep_parser("accel-explore", "", "0"), [*arguments, "--models", "demo"])


@pytest.mark.parametrize(
    "arguments", [["--pipe", "SDXL"], ["--pipe", "me/own"], ["--pipe", "me/own", "--latency_only"]]
)
def test_a_revision_of_a_repository_is_taken(arguments):
    assert parse("--revision", "v1", *arguments).revision == "v1"


def test_a_toml_file_gives_options_and_flags_win(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        'steps = 25\nsched = "unipc"\ntargets = ["tome"]\nnum-samples = 8\n'
        'time_budget = "1h30m"\ntrial_timeout = 0\n'
        "[space.tome]\nratio = [0.3, 0.5]\n"
    )
    settings = parse("--config", str(config), "--steps", "50")
    assert (settings.steps, settings.sched, settings.targets) == (50, "UniPC", ("tome",))
    assert (settings.num_samples, settings.time_budget) == (8, 5400.0)
    assert settings.trial_timeout == 0.0
    assert settings.space == {"tome": {"ratio": (0.3, 0.5)}}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("steps = ", ["TOML"]),
        ("stepz = 3", ["stepz", "--help"]),
        ('steps = "20"', ["steps", "'20'"]),
        ("steps = true", ["steps", "True"]),
        ("json = 1", ["json"]),
        ("[space.magic]\nratio = [0.5]", ["magic", "tome"]),
        ("[space.tome]\nratios = [0.5]", ["ratios", "ratio"]),
        ("[space.tome]\nratio = 0.5", ["space.tome"]),
        ("[space.tome]\nratio = []", ["ratio", "at least one"]),
        ("[space.tome]\nratio = [7]", ["ratio", "7"]),
        ('[space.tome]\nratio = ["a"]', ["ratio", "'a'"]),
        ("[space.deepcache]\ncache_interval = [2.5]", ["cache_interval", "2.5"]),
        ("space = 3", ["space"]),
    ],
)
def test_a_mistake_in_a_toml_file_is_one_line(tmp_path, text, names):
    config = tmp_path / "c.toml"
    config.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        parse("--config", str(config))
    message = str(refused.value)
    assert "\n" not in message and all(name in message for name in names), message


def test_a_whole_number_in_a_file_asks_for_what_the_flag_asks_for(tmp_path):
    config = tmp_path / "c.toml"
    reals = {"req_score_loss": 1, "req_speedup": 2, "min_psnr": 20, "min_ssim": 1}
    reals |= {"max_tail_loss": 1}
    reals |= {"guidance_scale": 7, "memory_limit": 8, "time_budget": 90, "trial_timeout": 0}
    config.write_text("".join(f"{name} = {value}\n" for name, value in reals.items()))
    from_file = parse("--config", str(config))
    from_flags = parse(*(f"--{name}={value}" for name, value in reals.items()))
    assert repr(from_file) == repr(from_flags)
    keys = {
        search_key(WORKLOAD, each.goal_key, each.req_score_loss, each.targets)
        for each in (from_file, from_flags)
    }
    assert len(keys) == 1 and "2.0, 1.0, " in keys.pop()


def test_an_absent_config_file_is_one_line(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none\.toml"):
        parse("--config", str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1h30m", 5400)]
)
def test_durations(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-3", "m", "3d", "1m1h"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="duration"):
        parse_seconds(text)


@pytest.mark.parametrize("option", fields(Settings), ids=lambda option: option.name)
def test_every_option_says_what_of_a_result_it_affects(option):
    if option.metadata:
        assert option.metadata["affects"] in ("timing", "score", "search", None)
