"""Images: the prompt's own noise, whatever the batch; valid or refused."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from accel_search.core.workload import Prompt
from accel_search.errors import InvalidImage
from accel_search.runtime.measuring.generation import (
    check_images,
    initial_noise,
    prepare,
    prompt_generators,
)
from tests.support.generation import generate
from tests.support.pipelines import prompt_set

KERNEL_TOLERANCE = 1e-4
"""Largest difference of a pixel (0..1) in float32 between two batch sizes: other kernels sum in
another order. Another initial noise makes a difference of more than 0.05."""


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_an_image_does_not_depend_on_its_batch(loaded, kind):
    pipe, workload = loaded(kind)
    prompts = prompt_set(4).search

    together = generate(pipe, workload, prompts)
    alone = torch.cat([generate(pipe, workload, [prompt]) for prompt in prompts])
    reversed_ = generate(pipe, workload, prompts[::-1]).flip(0)

    assert together.shape == (4, 3, 32, 32)
    assert together.dtype == torch.float32
    assert 0 <= together.min() < together.max() <= 1
    assert (together - alone).abs().max() < KERNEL_TOLERANCE
    assert (together - reversed_).abs().max() < KERNEL_TOLERANCE
    assert (together[0] - together[1]).abs().max() > 0.05


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_same_call_makes_the_same_bits(loaded, kind):
    pipe, workload = loaded(kind)
    prompts = prompt_set(2).search

    assert torch.equal(generate(pipe, workload, prompts), generate(pipe, workload, prompts))


def test_noise_comes_from_each_prompts_own_seed():
    shape = (4, 8, 8)

    both = initial_noise(prompt_generators([1, 2]), shape)

    assert both.dtype == torch.float32
    assert both.device.type == "cpu"
    assert torch.equal(both[1:], initial_noise(prompt_generators([2]), shape))
    assert not torch.equal(both[0], both[1])


def test_noise_that_a_scheduler_draws_later_is_not_the_initial_noise_again(loaded):
    pipe, workload = loaded("sd")
    call = prepare(pipe, workload, prompt_set(1).search)

    later = torch.randn((4, 16, 16), generator=call.arguments["generator"][0])

    assert not torch.equal(later, call.arguments["latents"][0])


def test_blank_and_over_long_prompts_make_images(loaded):
    pipe, workload = loaded("sd")

    images = generate(pipe, workload, [Prompt(" ", 1), Prompt("many words " * 100, 2)])

    check_images(images, [Prompt(" ", 1), Prompt("", 2)], [0, 1])


def test_fewer_steps_can_be_asked_for(loaded):
    pipe, workload = loaded("sd")
    prompts = prompt_set(1).search

    fewer = generate(pipe, workload, prompts, steps=1)

    assert len(pipe.scheduler.timesteps) == 1
    assert not torch.equal(fewer, generate(pipe, workload, prompts))


@pytest.mark.parametrize(
    "value, what",
    [(float("nan"), "NaN or infinity"), (float("inf"), "NaN or infinity"), (None, "one colour")],
)
def test_an_image_that_is_no_picture_is_refused_by_name(value, what):
    images = torch.rand(3, 3, 8, 8)
    if value is None:
        images[1] = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    else:
        images[1, 0, 0, 0] = value
    prompts = prompt_set(3).search

    with pytest.raises(InvalidImage, match=rf"image of prompt 8 \('.*'\) is {what}"):
        check_images(images, prompts, [7, 8, 9])
    check_images(images[::2], prompts[::2], [7, 9])


def test_an_interrupted_decode_leaves_the_vae_in_its_dtype(loaded, monkeypatch):
    # SDXL in half precision casts its VAE to float32 for the decode, and back after it.
    pipe, workload = loaded("sdxl")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    before = copy.deepcopy(pipe.vae.state_dict())
    try:
        pipe.vae.to(dtype=torch.float16)
        monkeypatch.setattr(pipe.vae, "decode", interrupted)
        call = prepare(pipe, workload, prompt_set(1).search)
        with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
            warnings.filterwarnings("ignore", "`upcast_vae` is deprecated", FutureWarning)
            call()
        assert pipe.vae.dtype == torch.float16
    finally:
        pipe.vae.to(dtype=torch.float32)
        pipe.vae.load_state_dict(before)
