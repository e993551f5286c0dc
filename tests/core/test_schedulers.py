"""Names of samplers: what is accepted, what it stands for, and what is said of others."""

import pytest

from accel_search.core.schedulers import (
    PLAIN,
    SCHEDULERS,
    VARIANTS,
    parse_sampler,
    sampler_name,
    scheduler_class,
    scheduler_name,
)
from accel_search.errors import ConfigurationError
from accel_search.settings import Settings
from accel_search.traversal_search import main


def test_every_name_and_class_is_its_own_text():
    assert list(SCHEDULERS) == ["DDIM", "DPM-Solver++", "UniPC"]
    for name in (*PLAIN, *VARIANTS):
        sampler = parse_sampler(name.upper())
        assert str(sampler) == name and parse_sampler(str(sampler)) == sampler
    for name, class_name in PLAIN.items():
        assert str(parse_sampler(class_name)) == name == scheduler_name(class_name)
        assert scheduler_class(name) == class_name
    assert scheduler_class("OtherScheduler") == scheduler_name("OtherScheduler") == "OtherScheduler"


@pytest.mark.parametrize(
    ("given", "text", "class_name", "options"),
    [
        ("euler a", "Euler a", "EulerAncestralDiscreteScheduler", {}),
        ("Euler_a", "Euler a", "EulerAncestralDiscreteScheduler", {}),
        ("dpm++ 2m", "DPM-Solver++", "DPMSolverMultistepScheduler", {}),
        ("DPM++ 2M Karras", "DPM++ 2M Karras", "DPMSolverMultistepScheduler",
            {"use_karras_sigmas": True}),
        ("DPM++ 2M SDE Karras", "DPM++ 2M SDE Karras", "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
        ("Euler(spacing=trailing, karras=TRUE)",
            "Euler(timestep_spacing=trailing, use_karras_sigmas=true)", "EulerDiscreteScheduler",
            {"timestep_spacing": "trailing", "use_karras_sigmas": True}),
        ("DPM2 Karras(karras=true)", "DPM2 Karras", "KDPM2DiscreteScheduler",
            {"use_karras_sigmas": True}),
        ("DDIM(order=2, sigma_min=0.03)", "DDIM(sigma_min=0.03, solver_order=2)", "DDIMScheduler",
            {"sigma_min": 0.03, "solver_order": 2}),
    ],
)  # fmt: skip
def test_options_belong_to_a_samplers_text(given, text, class_name, options):
    sampler = parse_sampler(given)
    assert (str(sampler), sampler.class_name, sampler.options) == (text, class_name, options)
    assert parse_sampler(text) == sampler
    # The same by an option of the program, and said again by a setting that is made of it.
    name, _, inside = given.partition("(")
    given_options = tuple(part.strip(" )") for part in inside.split(",") if part.strip(" )"))
    from accel_search.settings import parse_options

    settings = Settings(sched=name, sched_option=parse_options(given_options))
    assert settings.sched == text and Settings(sched=settings.sched).sched == text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sched", "Eulr"], "did you mean 'Euler'?"),
        (["--sched", "FlowMatchEulerDiscreteScheduler"], "one of DDIM, DPM-Solver++, UniPC, DDPM"),
        (["--sched", "Euler(karras)"], "an option with its value, e.g. karras=true"),
        (["--sched_option", "karass=true"], "did you mean 'karras'?"),
        (["--sched", "UniPC", "--sched_option", "order=99"], "order=1, order=2 or order=3"),
        (["--sched_option", "karras=__import__('os')"], "an option with its value"),
        (["--sched", "Euler\n a("], "one of DDIM"),
    ],
)
def test_what_is_no_sampler_is_one_line(options, said, capsys):
    assert main([*options, "--replay", "none.json"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_stored_scheduler_is_named_by_its_options():
    for name in (*PLAIN, *VARIANTS):
        sampler = parse_sampler(name)
        stored = {"timestep_spacing": "leading", **sampler.options}
        assert sampler_name(sampler.class_name, stored) == name
    assert sampler_name("DDIMScheduler", None) == "DDIM"


def test_a_file_of_anything_names_no_other_sampler():
    for asked in (None, "", "DDIM", "Euler\n a", '"); evil("', "x" * 10_000):
        assert scheduler_name("EulerDiscreteScheduler", asked) == "Euler"
    asked = "Euler Karras(spacing=trailing)"
    assert scheduler_name("EulerDiscreteScheduler", asked) == (
        "Euler Karras(timestep_spacing=trailing)"
    )
    with pytest.raises(ConfigurationError, match="--sched 'x'"):
        Settings(sched="x")
