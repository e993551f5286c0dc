"""Where the libraries go wrong: repeated timesteps, no guidance, odd batches, each other."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch

from accel_search.accelerators import get
from accel_search.accelerators.clock import StepClock
from accel_search.accelerators.compose import apply_candidate
from accel_search.accelerators.tgate import REUSE
from accel_search.errors import AcceleratorError
from tests.accelerators.tiny import (
    KINDS,
    difference,
    inputs,
    make_pipe,
    make_scheduler,
    render,
    tgate_params,
    upstream,
)

DEEPCACHE: dict[str, Any] = {"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}
TOME: dict[str, Any] = {"tome": {"ratio": 0.5, "max_downsample": 4}}
TGATE: dict[str, Any] = {"tgate": tgate_params(5, 3, 2, 1)}
TRIPLE = DEEPCACHE | TOME | TGATE


def runs(module: Any) -> list[int]:
    """Append to the list returned, at each run of `module`, the rows it gets."""
    seen: list[int] = []
    forward = module.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append((args[0] if args else kwargs["hidden_states"]).shape[0])
        return forward(*args, **kwargs)

    module.forward = counted
    return seen


@pytest.mark.parametrize(
    ("scheduler", "options", "calls"),
    [
        ("HeunDiscreteScheduler", {}, 11),
        ("PNDMScheduler", {"skip_prk_steps": True}, 7),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 50),
    ],
)
def test_repeated_timesteps(scheduler: str, options: dict[str, Any], calls: int) -> None:
    pipe = make_pipe(scheduler=scheduler, **options)
    steps = 50 if calls == 50 else 6
    seen = runs(pipe.unet.mid_block)
    with apply_candidate(pipe, DEEPCACHE):
        first = render(pipe, (0,), steps=steps)
        timesteps = pipe.scheduler.timesteps.tolist()
        assert len(timesteps) == calls > len(set(timesteps))  # Else this shows nothing.
        assert len(seen) == len(range(0, calls, 3))
        assert torch.equal(render(pipe, (0,), steps=steps), first)
        assert len(seen) == 2 * len(range(0, calls, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [(0,), (0, 1, 2)], ids=len)
def test_tgate_without_guidance(kind: str, images: tuple[int, ...], pipes: dict[str, Any]) -> None:
    """Nothing to halve; attention is still reused, and the package raises."""
    pipe = pipes[kind]
    pipe.scheduler = make_scheduler("DDIMScheduler")
    baseline = render(pipe, images, steps=8, guidance_scale=1.0)
    seen = runs(pipe.unet.mid_block)
    with apply_candidate(pipe, TGATE):
        ours = render(pipe, images, steps=8, guidance_scale=1.0)
    del pipe.unet.mid_block.forward
    assert seen == [len(images)] * 8
    assert torch.isfinite(ours).all() and not torch.equal(ours, baseline)
    if len(images) == 1:
        with pytest.raises(ValueError):
            upstream(kind, "DDIMScheduler", TGATE, steps=8, images=images, guidance_scale=1.0)


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
    with apply_candidate(pipe, TGATE):
        forward = pipe.unet.forward

        def spied(*args: Any, **kwargs: Any) -> Any:
            result = forward(*args, **kwargs | {"return_dict": return_dict})
            outputs.append(result)
            return result if not return_dict else (result.sample,)

        pipe.unet.forward = spied
        image = render(pipe, steps=7)
        pipe.unet.forward = forward
        plain = render(pipe, steps=7)
    assert torch.equal(image, plain)
    last = outputs[-1].sample if return_dict else outputs[-1][0]
    assert last.shape[0] == 4
    assert torch.equal(last[:2], last[2:])


def test_deepcache_under_tgate_runs_in_full_at_the_gate(sd: Any) -> None:
    seen = runs(sd.unet.mid_block)
    with apply_candidate(sd, {"deepcache": {"cache_interval": 4, "cache_branch_id": 0}} | TGATE):
        render(sd, steps=12)
    del sd.unet.mid_block.forward
    # Full at 0; at 4, the last step before the gate; at 5, the gate; and at 9.
    assert seen == [4, 4, 2, 2]


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


def test_tome_draws_anew_in_every_call_where_tomesd_goes_on(sd: Any) -> None:
    import tomesd

    with apply_candidate(sd, TOME):
        assert torch.equal(render(sd, steps=3), render(sd, steps=3))
    theirs = make_pipe()
    tomesd.apply_patch(theirs, **TOME["tome"])
    assert not torch.equal(render(theirs, steps=3), render(theirs, steps=3))


def test_tome_at_odd_batches_keeps_random_destinations(sd: Any) -> None:
    """tomesd switches them off, and an image then depends on the batch that it was made in."""
    odd, even = (0, 1, 2), (0, 1)
    with apply_candidate(sd, TOME):
        ours = render(sd, odd, steps=5, guidance_scale=1.0)
        pair = render(sd, even, steps=5, guidance_scale=1.0)
    assert difference(ours[:2], pair) < 1e-4
    theirs = [
        upstream("SD", "DDIMScheduler", TOME, steps=5, images=images, guidance_scale=1.0)
        for images in (odd, even)
    ]
    assert difference(theirs[0][:2], theirs[1]) > 0.01
    assert difference(pair, theirs[1]) == 0


def test_tome_is_not_matched_where_tgate_reuses(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import tomesd.merge

    matched: list[int] = []
    original = tomesd.merge.bipartite_soft_matching_random2d

    def counted(metric: Any, *args: Any, **kwargs: Any) -> Any:
        matched.append(metric.shape[1])
        return original(metric, *args, **kwargs)

    monkeypatch.setattr(tomesd.merge, "bipartite_soft_matching_random2d", counted)
    with apply_candidate(sd, TOME):
        render(sd, steps=8)
    alone = len(matched)
    matched.clear()
    with apply_candidate(sd, TOME | TGATE):
        render(sd, steps=8)
    # Self-attention runs at 0, 1, 3, 4 and 6: it is reused at 2, 5 and 7.
    assert len(matched) == alone // 8 * 5


def _naive(pipe: Any, tome: dict[str, Any], tgate: dict[str, Any], steps: int) -> torch.Tensor:
    """T-GATE inside ToMe: what is reused is another step's merged tokens."""
    clock = StepClock()
    with ExitStack() as stack:
        stack.enter_context(get("tgate").apply(pipe, tgate, clock))
        stack.enter_context(get("tome").apply(pipe, tome, clock))
        stack.enter_context(clock.install(pipe))
        return render(pipe, steps=steps)


def test_tgate_reuses_the_unmerged_value(sd: Any) -> None:
    params = TOME["tome"], TGATE["tgate"]
    sizes = []

    def spy(_: Any, args: Any, output: torch.Tensor) -> None:
        processor = attention.processor
        value = processor.value
        if processor.state.self_attention == REUSE:
            assert output is value
            sizes.append(value.shape[1])

    attention = sd.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    handle = attention.register_forward_hook(spy)
    with apply_candidate(sd, TOME | TGATE):
        render(sd, steps=8)
    handle.remove()
    assert sizes == [256] * 3  # All tokens, not the 128 that are left of them.
    assert difference(_naive(sd, *params, steps=8), render(sd, steps=8)) > 0


def test_reusing_the_unmerged_value_is_closer_to_the_baseline(sd: Any) -> None:
    baseline = render(sd)
    tgate = tgate_params(10, 5, 5, 1)
    with apply_candidate(sd, TOME | {"tgate": tgate}):
        ours = render(sd)
    naive = _naive(sd, TOME["tome"], tgate, 20)
    assert (ours - baseline).square().mean() < (naive - baseline).square().mean()


def test_the_package_itself_fails_where_ours_composes(sd: Any) -> None:
    """DeepCacheSDHelper keeps outputs of the whole guidance batch beyond T-GATE's gate."""
    import tgate
    from DeepCache import DeepCacheSDHelper

    theirs = make_pipe()
    tgate.TgateSDLoader(theirs)
    helper = DeepCacheSDHelper(pipe=theirs)
    helper.set_params(**DEEPCACHE["deepcache"])
    helper.enable()
    extra = {"gate_step": 5, "sp_interval": 3, "fi_interval": 2, "warm_up": 1}
    with pytest.raises(RuntimeError):
        render(theirs, steps=8, call="tgate", **extra)
    with apply_candidate(sd, DEEPCACHE | TGATE):
        assert torch.isfinite(render(sd, steps=8)).all()


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
