"""The scheduler asked for, made from the configuration of any other."""

from __future__ import annotations

import json
import shutil
import warnings

import diffusers
import pytest

from accel_search.core.schedulers import SCHEDULERS
from accel_search.errors import LoadError
from accel_search.runtime.loading.pipelines import load_pipeline
from accel_search.runtime.loading.schedulers import build_scheduler, check_class, check_config
from tests.support.pipelines import LOG

SD, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
OF_BETAS = [
    *("DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"),
    *("HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"),
    *("LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "TCDScheduler"),
    *("UniPCMultistepScheduler", "SASolverScheduler"),
]
OF_OTHER_NOISE = [
    *("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"),
    *("FlowMatchHeunDiscreteScheduler", "SCMScheduler", "CMStochasticIterativeScheduler"),
]
NUMBERS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("asked", SCHEDULERS.values())
@pytest.mark.parametrize("own", OF_BETAS)
@pytest.mark.parametrize("pipeline", [SD, SDXL])
def test_a_configuration_that_is_silent_is_never_clipped(own, asked, pipeline):
    """Configurations of before a class had the parameter, and of classes without it."""
    check_class("--pipe x", own)
    check_config("--pipe x", own, NUMBERS)
    made = build_scheduler(asked, {"_class_name": own, **NUMBERS}, pipeline)
    assert type(made).__name__ == asked
    assert made.config.beta_end == 0.012 and made.config.beta_schedule == "scaled_linear"
    assert made.config.get("clip_sample", False) is False
    assert made.config.steps_offset == (pipeline == SD)
    made.set_timesteps(4)


@pytest.mark.parametrize("asked", SCHEDULERS.values())
@pytest.mark.parametrize("own", [name for name in OF_BETAS if not name.startswith("KDPM2")])
def test_a_file_and_the_scheduler_it_makes_say_the_same(own, asked):
    """A search reads the file; `accelerate` has the pipeline's own scheduler."""
    import diffusers

    config = {"_class_name": own, **NUMBERS, "prediction_type": "v_prediction"}
    from_file = build_scheduler(asked, config, SDXL)
    live = getattr(diffusers, own).from_config(config)
    from_live = build_scheduler(asked, live.config, SDXL)
    names = set(from_file.config) & set(build_scheduler(asked, {}, SDXL).config)
    names -= {"_use_default_values", "_class_name", "_diffusers_version"}
    assert {n: from_file.config[n] for n in names} == {n: from_live.config[n] for n in names}
    assert from_file.config.prediction_type == "v_prediction"


def test_what_a_configuration_says_is_kept_but_for_what_the_pipelines_forbid():
    says = {"_class_name": "DDIMScheduler", "clip_sample": True, "steps_offset": 3, **NUMBERS}
    xl = build_scheduler("DDIMScheduler", says, SDXL).config
    assert (xl.clip_sample, xl.steps_offset) == (True, 3)
    sd = build_scheduler("DDIMScheduler", says, SD).config
    assert (sd.clip_sample, sd.steps_offset) == (False, 1)


@pytest.mark.parametrize(
    "own, kind, expected",
    [
        ("DEISMultistepScheduler", "deis", "dpmsolver++"),
        ("DPMSolverMultistepScheduler", "dpmsolver", "dpmsolver++"),
        ("DPMSolverMultistepScheduler", "sde-dpmsolver++", "sde-dpmsolver++"),
    ],
)
def test_dpm_solver_plus_plus_is_one_whatever_the_own_solver_is(own, kind, expected):
    config = {"_class_name": own, "algorithm_type": kind, "final_sigmas_type": "zero", **NUMBERS}
    made = build_scheduler("DPMSolverMultistepScheduler", config, SD)
    assert made.config.algorithm_type == expected
    for other in ("DDIMScheduler", "UniPCMultistepScheduler"):
        build_scheduler(other, config, SD).set_timesteps(5)


@pytest.mark.parametrize("name", OF_OTHER_NOISE)
def test_noise_of_another_kind_is_refused_by_the_name_of_its_class(name):
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    with pytest.raises(LoadError, match=f"its scheduler is {name}, so the model was trained"):
        check_class("--pipe x", name)


def test_a_class_whose_package_is_missing_is_taken_for_its_numbers():
    """diffusers has but a name for DPMSolverSDEScheduler where torchsde is not installed."""
    check_class("--pipe x", "DPMSolverSDEScheduler")
    check_config("--pipe x", "DPMSolverSDEScheduler", NUMBERS)
    made = build_scheduler("DDIMScheduler", {**NUMBERS, "noise_sampler_seed": None}, SD)
    assert made.config.beta_end == 0.012
    with pytest.raises(LoadError, match="CosineDPMSolverMultistepScheduler, so the model"):
        check_class("--pipe x", "CosineDPMSolverMultistepScheduler")
        check_config("--pipe x", "CosineDPMSolverMultistepScheduler", {"sigma_min": 0.3})


def test_an_outdated_configuration_is_mended_without_a_word(made, tmp_path, settings_for):
    folder = shutil.copytree(made / "sd", tmp_path / "sd")
    old = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.2.2", **NUMBERS}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(old))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "PNDMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    unet = folder / "unet" / "config.json"
    unet.write_text(json.dumps({**json.loads(unet.read_text()), "_diffusers_version": "0.2.2"}))

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pipe, _ = load_pipeline(settings_for(pipe=str(folder)), LOG)

    assert [str(each.message) for each in told if "config" in str(each.message)] == []
    assert (pipe.scheduler.config.clip_sample, pipe.scheduler.config.steps_offset) == (False, 1)
