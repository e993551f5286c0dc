"""Traps of the packages, each shown in the package itself and remedied here.

A test fails when its remedy is taken out, and also when a later version of the package mends the
trap: then the remedy may go.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from accel_search.accelerators import get
from accel_search.accelerators.compose import apply_candidate
from accel_search.accelerators.patching import Layer, layered
from accel_search.accelerators.tgate import REUSE
from accel_search.errors import AcceleratorError
from tests.support.stacks import stacked
from tests.support.tiny import (
    KINDS,
    assert_same,
    difference,
    make_pipe,
    make_scheduler,
    quiet,
    render,
    runs,
    snapshot,
    tgate_params,
    upstream,
    workload,
)

DEEPCACHE: dict[str, Any] = {"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}
TOME: dict[str, Any] = {"tome": {"ratio": 0.5, "max_downsample": 4}}
TGATE: dict[str, Any] = {"tgate": tgate_params(5, 3, 2, 1)}
TGATE_CALL = {"gate_step": 5, "sp_interval": 3, "fi_interval": 2, "warm_up": 1}


# T-GATE


@pytest.mark.parametrize("images", [(0,), (0, 1)], ids=len)
def test_tgate_never_restores_what_it_overwrites(images: tuple[int, ...], sd: Any) -> None:
    """A later plain call of the package's raises at batch 2, and is silently wrong at batch 1."""
    import tgate

    theirs = make_pipe()
    before = render(theirs, images, steps=7)
    with quiet():
        tgate.TgateSDLoader(theirs)
    render(theirs, images, steps=7, call="tgate", **TGATE_CALL)
    attention = theirs.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    assert "forward" in vars(attention)
    if len(images) == 1:
        assert not torch.equal(render(theirs, images, steps=7), before)
    else:
        with pytest.raises(RuntimeError):
            render(theirs, images, steps=7)

    render(sd, (0,), steps=1)  # A first call sets attributes of the pipeline's own.
    own = snapshot(sd)
    with apply_candidate(sd, TGATE):
        render(sd, images, steps=7)
    assert_same(own, snapshot(sd))
    assert torch.equal(render(sd, images, steps=7), before)


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


def test_tgate_with_its_gate_at_the_end_is_not_the_baseline(sd: Any) -> None:
    """It reuses self-attention up to the gate all the same; the space has no such point."""
    params = tgate_params(8, 5, 1, 2)
    theirs = upstream("SD", "DDIMScheduler", {"tgate": params}, steps=8)
    assert difference(theirs, render(sd, steps=8)) > 0
    tgate = get("tgate")
    gate_step = tgate.parameters[0]
    assert not tgate.allowed(gate_step, 8, workload(steps=8))
    assert tgate.allowed(gate_step, 7, workload(steps=8))
    assert tgate.signature(params, workload(steps=8)) is not None


# DeepCache


def test_deepcache_cannot_be_enabled_twice_and_leaves_attributes_behind(sd: Any) -> None:
    from DeepCache import DeepCacheSDHelper

    theirs = make_pipe()
    helper = DeepCacheSDHelper(pipe=theirs)
    helper.set_params(**DEEPCACHE["deepcache"])
    helper.enable()
    helper.disable()
    assert "forward" in vars(theirs.unet)
    helper.enable()
    helper.enable()
    with pytest.raises((RecursionError, AttributeError, KeyError)):
        render(theirs, (0,), steps=4)

    render(sd, (0,), steps=1)  # A first call sets attributes of the pipeline's own.
    own = snapshot(sd)
    with apply_candidate(sd, DEEPCACHE):
        context = apply_candidate(sd, DEEPCACHE)
        with pytest.raises(AcceleratorError, match="accelerated already"):
            context.__enter__()
    assert_same(own, snapshot(sd))


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


# ToMe


def test_tome_draws_anew_in_every_call_where_tomesd_goes_on(sd: Any) -> None:
    import tomesd

    with apply_candidate(sd, TOME):
        assert torch.equal(render(sd, steps=3), render(sd, steps=3))
    theirs = make_pipe()
    tomesd.apply_patch(theirs, **TOME["tome"])
    assert not torch.equal(render(theirs, steps=3), render(theirs, steps=3))


def test_tomesd_leaves_its_settings_behind(sd: Any) -> None:
    import tomesd

    theirs = make_pipe()
    tomesd.apply_patch(theirs, **TOME["tome"])
    tomesd.remove_patch(theirs)
    assert hasattr(theirs.unet, "_tome_info")

    render(sd, (0,), steps=1)  # A first call sets attributes of the pipeline's own.
    own = snapshot(sd)
    with apply_candidate(sd, TOME):
        render(sd, (0,), steps=2)
    assert_same(own, snapshot(sd))


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


# Together


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


def test_deepcache_under_tgate_runs_in_full_at_the_gate(sd: Any) -> None:
    seen = runs(sd.unet.mid_block)
    with apply_candidate(sd, {"deepcache": {"cache_interval": 4, "cache_branch_id": 0}} | TGATE):
        render(sd, steps=12)
    del sd.unet.mid_block.forward
    # Full at 0; at 4, the last step before the gate; at 5, the gate; and at 9.
    assert seen == [4, 4, 2, 2]


def test_tgate_reuses_the_unmerged_value(sd: Any) -> None:
    params = TOME["tome"], TGATE["tgate"]
    baseline = render(sd, steps=8)
    sizes = []

    class Spy(Layer):
        def run(self, attn: Any, /, *args: Any, **kwargs: Any) -> Any:
            output = self.inner(attn, *args, **kwargs)
            if self.below.state.self_attention == REUSE:
                assert output is self.below.value
                sizes.append(output.shape[1])
            return output

    attention = sd.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    with apply_candidate(sd, TOME | TGATE), layered(attention, Spy()):
        render(sd, steps=8)
    assert sizes == [256] * 3  # All tokens, not the 128 that are left of them.
    with stacked(sd, *params):
        assert difference(render(sd, steps=8), baseline) > 0


def test_reusing_the_unmerged_value_is_closer_to_the_baseline(sd: Any) -> None:
    baseline = render(sd)
    tgate = tgate_params(10, 5, 5, 1)
    with apply_candidate(sd, TOME | {"tgate": tgate}):
        ours = render(sd)
    with stacked(sd, TOME["tome"], tgate):
        theirs = render(sd)
    assert (ours - baseline).square().mean() < (theirs - baseline).square().mean()
