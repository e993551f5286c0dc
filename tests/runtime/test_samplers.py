"""Every sampler: the pictures are those of a diffusers script, and pairs stay pairs."""

from __future__ import annotations

import re
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from accel_search.accelerators.compose import apply_candidate
from accel_search.api import accelerate
from accel_search.core.candidate import Candidate
from accel_search.core.schedulers import PLAIN, VARIANTS, parse_sampler
from accel_search.errors import ConfigurationError
from accel_search.runtime.quiet import quiet_libraries
from accel_search.runtime.workbench import Workbench
from tests.support.generation import generate
from tests.support.making import make_text_encoder
from tests.support.pipelines import LOG, prompt_set

DEEPCACHE = Candidate({"deepcache": {"cache_interval": 2, "cache_branch_id": 0}})
SIZES = {"num_samples": 2, "held_out_samples": 0, "batch_size": 2, "timing_pairs": 1}
STEPS = 6


def by_hand(folder, sampler, prompts, guidance, candidate=None):
    """Return the pictures of a script, each prompt alone."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    cls = getattr(diffusers, sampler.class_name)
    # What Stable Diffusion's own configurations say of the two that would clip latents.
    plain = {"clip_sample": False} if sampler.name in ("DDIM", "DDPM") else {}
    pipe.scheduler = cls.from_config(pipe.scheduler.config, **plain, **sampler.options)
    if candidate is not None:
        accelerate(pipe, candidate)
    return torch.cat(
        [
            pipe(
                prompt.text,
                num_inference_steps=STEPS,
                guidance_scale=guidance,
                generator=torch.Generator("cpu").manual_seed(prompt.seed),
                output_type="pt",
            ).images
            for prompt in prompts
        ]
    )


@pytest.mark.parametrize("name", [*PLAIN, *VARIANTS])
def test_a_samplers_pictures_are_those_of_a_script(settings_for, made, name):
    settings = settings_for(sched=name, steps=STEPS, **SIZES)
    with quiet_libraries():
        bench = Workbench(settings, LOG)
        evaluator = bench.evaluator(settings)
        load, prompts = evaluator.workload, prompt_set(2).search
        sampler = parse_sampler(name)
        assert load.scheduler_class == sampler.class_name
        for option, value in sampler.options.items():
            assert evaluator.provenance.scheduler[option] == value
        # In one batch, each drawing its noise from its own generator.
        picture = generate(bench._pipe, load, prompts)
        expected = by_hand(made / "sd", sampler, prompts, load.guidance_scale)
        assert torch.allclose(picture, expected, atol=1e-4)
        with apply_candidate(bench._pipe, DEEPCACHE):
            faster = generate(bench._pipe, load, prompts)
        expected = by_hand(made / "sd", sampler, prompts, load.guidance_scale, DEEPCACHE)
        assert torch.allclose(faster, expected, atol=1e-4)
        assert not torch.equal(faster, picture)


@pytest.mark.parametrize("name", ["Euler a", "DPM++ 2M SDE Karras", "PNDM", "Heun", "LCM"])
def test_a_candidate_is_measured_beside_the_same_baseline(settings_for, name):
    settings = settings_for(sched=name, steps=STEPS, **SIZES)
    with quiet_libraries():
        evaluator = Workbench(settings, LOG).evaluator(settings)
        assert len(evaluator.baseline().scores) == 2
        measured = evaluator.measure(DEEPCACHE, pairs=1)
        assert len(measured.scores) == 2
        evaluator.check()  # The pipeline's pictures are still the baseline's, bit for bit.


@pytest.mark.parametrize(
    ("sched", "said"),
    [
        ("Euler a(karras=true)", "EulerAncestralDiscreteScheduler has no option use_karras_sigmas"),
        ("Euler(spacing=foo)", "no EulerDiscreteScheduler: ValueError: foo is not supported"),
        ("Euler(karras=maybe)", "use_karras_sigmas is 'maybe'; give true or false"),
        ("Euler(karras=true, exponential=true)", "no EulerDiscreteScheduler: ValueError: Only one"),
    ],
)
def test_options_that_make_no_sampler_are_one_line_before_anything_loads(
    settings_for, monkeypatch, sched, said
):
    from accel_search.runtime import workbench

    monkeypatch.setattr(workbench, "load_pipeline", None)
    settings = settings_for(sched=sched, **SIZES)
    with pytest.raises(ConfigurationError, match=re.escape(f"--sched {settings.sched}: {said}")):
        Workbench(settings, LOG)


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("sd", {"negative_prompt": "a blurry circle"}),
        ("sdxl", {"negative_prompt": "a blurry circle", "clip_skip": 1}),
    ],
)
def test_a_negative_prompt_and_skipped_layers_are_those_of_a_script(settings_for, made, kind, call):
    settings = settings_for(kind, steps=3, **call, **SIZES)
    with quiet_libraries():
        bench = Workbench(settings, LOG)
        evaluator = bench.evaluator(settings)
        load, prompts = evaluator.workload, prompt_set(2).search
        assert evaluator.provenance.call == call
        picture = generate(bench._pipe, load, prompts)
        pipe = DiffusionPipeline.from_pretrained(made / kind)
        config = pipe.scheduler.config
        pipe.scheduler = diffusers.DDIMScheduler.from_config(config, clip_sample=False)
        pipe.set_progress_bar_config(disable=True)
        expected = [
            pipe(
                prompt.text,
                num_inference_steps=3,
                height=load.height,
                width=load.width,
                guidance_scale=load.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(prompt.seed),
                output_type="pt",
                **call,
            ).images
            for prompt in prompts
        ]
        assert torch.allclose(picture, torch.cat(expected), atol=1e-4)
    there = bench.evaluator(settings_for(kind, steps=3, **SIZES))
    assert there.provenance.differences(evaluator.provenance.as_dict()) == ["call"]
    assert not torch.allclose(generate(bench._pipe, there.workload, prompts), picture, atol=1e-3)


def test_call_arguments_that_change_nothing_or_fail_are_one_line(settings_for):
    plain = settings_for(**SIZES)
    bench = Workbench(plain, LOG)
    for options, said in (
        ({"clip_skip": 2}, "--clip_skip 2: the text encoder has 2 layers; give 1 or less"),
        ({"negative_prompt": "a", "guidance_scale": 1.0}, "--negative_prompt: without guidance"),
        ({"clip_skip": 1}, "fails with it beside transformers"),
    ):
        if options == {"clip_skip": 1} and hasattr(make_text_encoder(), "text_model"):
            continue  # With transformers 4 it works.
        with pytest.raises(ConfigurationError, match=re.escape(said)):
            bench.evaluator(replace(plain, **options))
