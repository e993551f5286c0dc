"""Which attention kernel runs, is what was asked for, or is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend

from accel_search.errors import ConfigurationError
from accel_search.runtime import attention
from accel_search.runtime.attention import describe_attention, use_kernel
from accel_search.runtime.loading.pipelines import load_pipeline
from tests.support.pipelines import LOG


@pytest.fixture
def pipe(settings_for):
    return load_pipeline(settings_for("sd"), LOG)[0]


def kernels_in_use(pipe):
    """Return the kernels that torch may choose from in each attention of one UNet call."""
    flags = {
        SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled,
        SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled,
        SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled,
    }
    seen = []
    attn = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    hook = attn.register_forward_hook(
        lambda *_: seen.append({kernel for kernel, enabled in flags.items() if enabled()})
    )
    states = torch.zeros(1, 24, 16)
    pipe.unet(torch.zeros(1, 4, 16, 16), 1, encoder_hidden_states=states)
    hook.remove()
    return seen


@pytest.mark.parametrize("name", ["math", "flash"])
def test_the_unet_uses_the_kernel_that_was_asked_for(pipe, name):
    before = kernels_in_use(pipe)
    use_kernel(pipe, name)
    assert kernels_in_use(pipe) == [{attention.KERNELS[name]}]
    assert describe_attention(pipe, name, 256) == f"native ({name})"
    assert len(before[0]) == 3  # The choice of everyone else is as it was.


def test_auto_leaves_the_unet_as_it_is(pipe):
    before = dict(vars(pipe.unet))
    use_kernel(pipe, "auto")
    assert vars(pipe.unet) == before
    assert describe_attention(pipe, "auto", 256) == "native"


@pytest.mark.parametrize("name", ["cudnn", "efficient"])
def test_a_kernel_that_is_not_there_is_refused_and_those_that_are_there_are_named(pipe, name):
    with pytest.raises(ConfigurationError) as caught:
        use_kernel(pipe, name)
    text = str(caught.value)
    assert text.startswith(f"--attention {name}: torch {torch.__version__} has no such kernel for ")
    assert " in float32 on cpu (" in text and "\n" not in text
    assert text.endswith(": use auto or flash or math")


def test_where_no_other_kernel_is_there_auto_alone_is_named(pipe, monkeypatch):
    def refuse(*args):
        raise RuntimeError("No available kernel.\nAborting")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    with pytest.raises(ConfigurationError, match=r"No available kernel\.\): use auto$"):
        use_kernel(pipe, "flash")


def test_other_processors_go_by_their_names(pipe):
    from diffusers.models.attention_processor import AttnProcessor

    pipe.unet.set_attn_processor(AttnProcessor())
    assert describe_attention(pipe, "auto", 256) == "AttnProcessor"


def test_it_stays_on_where_parts_wait_in_main_memory(pipe):
    """diffusers takes its offloading hooks off and on again after each call."""
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    add_hook_to_module(pipe.unet, ModelHook())
    use_kernel(pipe, "math")
    for _ in range(2):
        assert kernels_in_use(pipe) == [{attention.KERNELS["math"]}]
        remove_hook_from_module(pipe.unet)
        add_hook_to_module(pipe.unet, ModelHook())
