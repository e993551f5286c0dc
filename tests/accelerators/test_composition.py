"""Accelerators together, and under pipelines, processors and callbacks of other kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from accel_search.accelerators.compose import apply_candidate
from accel_search.accelerators.patching import Layer, layered
from accel_search.errors import AcceleratorError
from tests.support.tiny import (
    KINDS,
    difference,
    inputs,
    make_pipe,
    make_scheduler,
    render,
    runs,
    tgate_params,
)

DEEPCACHE: dict[str, Any] = {"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}
TOME: dict[str, Any] = {"tome": {"ratio": 0.5, "max_downsample": 4}}
TGATE: dict[str, Any] = {"tgate": tgate_params(5, 3, 2, 1)}
TRIPLE = DEEPCACHE | TOME | TGATE


def test_tgate_halves_the_batch_from_the_gate_on() -> None:
    pipe = make_pipe()
    seen = runs(pipe.unet.mid_block)
    with apply_candidate(pipe, TGATE):
        render(pipe, (0, 1, 2), steps=8)
    assert seen == [6] * 5 + [3] * 3


def test_tgate_under_guidance_that_a_callback_ends() -> None:
    """diffusers' own cut-off halves the batch itself: there is nothing left to halve."""
    from diffusers.callbacks import SDCFGCutoffCallback

    pipe = make_pipe()
    seen = runs(pipe.unet.mid_block)
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=5)
    with apply_candidate(pipe, TGATE):
        render(pipe, steps=8, callback_on_step_end=cutoff)
    assert seen == [4] * 5 + [2] * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("return_dict", [True, False])
def test_the_unets_output_is_of_the_kind_asked_for(
    kind: str, return_dict: bool, pipes: dict[str, Any]
) -> None:
    pipe = pipes[kind]
    outputs = []

    class Spy(Layer):
        def run(self, unet: Any, *args: Any, **kwargs: Any) -> Any:
            result = self.inner(unet, *args, **kwargs | {"return_dict": return_dict})
            outputs.append(result)
            return result if not return_dict else (result.sample,)

    with apply_candidate(pipe, TGATE):
        with layered(pipe.unet, Spy()):
            image = render(pipe, steps=7)
        plain = render(pipe, steps=7)
    assert torch.equal(image, plain)
    last = outputs[-1].sample if return_dict else outputs[-1][0]
    assert last.shape[0] == 4
    assert torch.equal(last[:2], last[2:])


def test_the_order_in_the_candidate_does_not_matter(sd: Any) -> None:
    names = list(TRIPLE)
    images = []
    for order in (names, names[::-1], names[1:] + names[:1]):
        with apply_candidate(sd, {name: TRIPLE[name] for name in order}):
            images.append(render(sd, steps=8))
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


@pytest.mark.parametrize("candidate", [TOME, TRIPLE], ids=str)
def test_other_step_counts_one_after_the_other(candidate: dict[str, Any], sd: Any) -> None:
    alone = {}
    for steps in (9, 6):
        with apply_candidate(sd, candidate):
            alone[steps] = render(sd, steps=steps)
    with apply_candidate(sd, candidate):
        for steps in (9, 6, 9):
            assert torch.equal(render(sd, steps=steps), alone[steps])


def test_tome_is_not_matched_where_tgate_reuses(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel_search.accelerators.tome import Matching

    matched: list[int] = []
    original = Matching.__init__

    def counted(self: Any, metric: Any, *args: Any) -> None:
        matched.append(metric.shape[1])
        original(self, metric, *args)

    monkeypatch.setattr(Matching, "__init__", counted)
    with apply_candidate(sd, TOME):
        render(sd, steps=8)
    alone = len(matched)
    assert alone
    matched.clear()
    with apply_candidate(sd, TOME | TGATE):
        render(sd, steps=8)
    # Self-attention runs at 0, 1, 3, 4 and 6: it is reused at 2, 5 and 7.
    assert len(matched) == alone // 8 * 5


def test_deepcache_says_which_branches_there_are(sd: Any) -> None:
    params = {"cache_interval": 2, "cache_branch_id": 12}
    context = apply_candidate(sd, {"deepcache": params})
    with pytest.raises(AcceleratorError, match="4 down blocks: give at most 11"):
        context.__enter__()
    with apply_candidate(sd, {}):  # Nothing is left behind, not even the mark.
        pass


@pytest.mark.parametrize("change", ["residual_connection", "added_kv_proj_dim"])
def test_tgate_refuses_attention_that_it_cannot_cache(change: str) -> None:
    pipe = make_pipe()
    setattr(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1, change, 8)
    context = apply_candidate(pipe, TGATE)
    with pytest.raises(AcceleratorError, match=r"attention 'mid_block\..* has "):
        context.__enter__()


def test_a_processor_with_weights_stays_where_it_is() -> None:
    """IP-Adapter's and LoRA's processors are modules and lie in `_modules`, not in `vars()`."""

    class Processor(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    pipe = make_pipe()
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    plain = attention.processor
    with apply_candidate(pipe, TOME | TGATE):
        expected = render(pipe, steps=7)
    del attention.processor
    attention.processor = Processor(plain)
    modules = list(attention._modules)
    with apply_candidate(pipe, TOME | TGATE):
        assert torch.equal(render(pipe, steps=7), expected)
    assert list(attention._modules) == modules
    assert "processor" not in vars(attention)


def test_wrapped_processors_get_the_same_keyword_arguments(sd: Any) -> None:
    """`Attention.forward` passes on only what the processor's signature names."""
    got = []

    class Processor:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __call__(
            self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None,
            attention_mask: Any = None, strength: Any = None,
        ) -> Any:  # fmt: skip
            got.append(strength)
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)

    attention = sd.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    plain = attention.processor
    attention.processor = Processor(plain)
    with apply_candidate(sd, TOME | TGATE):
        render(sd, steps=1, cross_attention_kwargs={"strength": 3})
    attention.processor = plain
    assert got == [3]


def test_clock_is_told_of_a_call_even_with_another_scheduler(sd: Any) -> None:
    """Exchanging the scheduler inside the block hides `set_timesteps`: counting still works."""
    with apply_candidate(sd, TRIPLE):
        first = render(sd, steps=8)
        sd.scheduler = make_scheduler("DDIMScheduler")
        assert torch.equal(render(sd, steps=8), first)


def test_inputs_are_not_changed(sd: Any) -> None:
    expected = inputs("SD", (0, 1))["prompt_embeds"]
    given = inputs("SD", (0, 1))
    with apply_candidate(sd, TRIPLE):
        sd(**given, num_inference_steps=7, output_type="latent")
    assert torch.equal(given["prompt_embeds"], expected)


def test_tome_adds_the_same_tokens_whichever_way_it_adds() -> None:
    """The product is what CUDA takes; here it is held against the scatter that the CPU takes."""
    from accel_search.accelerators.tome import mean_by_product, mean_in_order

    generator = torch.Generator().manual_seed(0)
    own, moving = (torch.randn(2, count, 8, generator=generator) for count in (5, 40))
    target = torch.randint(4, (2, 40), generator=generator)  # The last is nobody's.
    scattered, multiplied = (mean(own, moving, target) for mean in (mean_in_order, mean_by_product))
    assert difference(scattered, multiplied) < 1e-6
    assert torch.equal(multiplied[:, 4], own[:, 4])
    half = mean_by_product(own.half(), moving.half(), target)
    assert half.dtype == torch.float16
    assert difference(half.float(), scattered) < 5e-3
