"""Every accelerator through what happens to a pipeline in its life: nothing is lost or left.

Parametrised over `all_accelerators()` as the conformance suite is. In every situation the picture
is that of a reference, or the call is refused in one line; and afterwards the pipeline is, bit for
bit, what it was.
"""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback

from accel_search import accelerate, restore
from accel_search.errors import AcceleratorError
from tests.support.candidates import CANDIDATES, TOGETHER
from tests.support.situations import CHANGES, FREEU, Change
from tests.support.tiny import (
    KINDS,
    STEPS,
    assert_same,
    inputs,
    make_img2img,
    make_pipe,
    make_scheduler,
    render,
    runs,
    snapshot,
    tgate_params,
)

DEEPCACHE: dict[str, Any] = {"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}
TOME: dict[str, Any] = {"tome": {"ratio": 0.5, "max_downsample": 4}}
TGATE: dict[str, Any] = {"tgate": tgate_params(4, 2, 2, 1)}
TRIPLE = DEEPCACHE | TOME | TGATE
COUNTING = {"deepcache": DEEPCACHE, "tgate": TGATE}
"""Accelerators that count steps."""

every_candidate = pytest.mark.parametrize("name", CANDIDATES)
every_kind = pytest.mark.parametrize("kind", KINDS)


def sampled(names: Iterable[str], *quick: str) -> list[Any]:
    """All names as parameters; those that are not named as quick are among the slow tests."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


together_or_slow = pytest.mark.parametrize("name", sampled(CANDIDATES, "together"))
"""All accelerators at once, and, among the slow tests, each alone."""
QUICK_CHANGES = ("ip-adapter", "model offload", "freeu", "wrapped forward")
"""One of each kind: a processor's slot, hooks, values changed in place, another `forward`."""


def tried(pipe: Any, change: Change | None, **options: Any) -> torch.Tensor:
    return render(pipe, (0,), steps=STEPS, **(change.call if change else {}), **options).float()


@functools.cache
def expected(kind: str, change: str | None, candidate: str | None) -> torch.Tensor:
    """The picture of a fresh pipeline that was changed first, and accelerated right before."""
    pipe = make_pipe(kind)
    made = CHANGES[change] if change else None
    if made:
        made.make(pipe)
    if candidate is None:
        return tried(pipe, made)
    with accelerate(pipe, CANDIDATES[candidate]):
        return tried(pipe, made)


def cells() -> list[Any]:
    """Some changes under all accelerators at once, and, among the slow tests, all under each."""
    quick = {("SD", "together", change) for change in QUICK_CHANGES}
    return [
        pytest.param(
            kind, name, change, id=f"{kind}-{name}-{change}",
            marks=() if (kind, name, change) in quick else pytest.mark.slow,
        )
        for kind in KINDS for name in CANDIDATES for change in CHANGES
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "change"), cells())
def test_changes_in_any_order(kind: str, name: str, change: str) -> None:
    pipe, made = make_pipe(kind), CHANGES[change]
    tried(pipe, None)  # A first call sets attributes of the pipeline's own.

    # Changed while accelerated: both hold; then without the one, then without the other.
    accelerate(pipe, CANDIDATES[name])
    made.make(pipe)
    assert torch.equal(tried(pipe, made), expected(kind, change, name))
    restore(pipe)
    assert torch.equal(tried(pipe, made), expected(kind, change, None))
    changed = snapshot(pipe)

    # Accelerated while changed: the same, and what `restore` leaves is what was there.
    accelerate(pipe, CANDIDATES[name])
    assert torch.equal(tried(pipe, made), expected(kind, change, name))
    restore(pipe)
    if change != "another scheduler" and "offload" not in change:  # Put on anew in every call.
        assert_same(changed, snapshot(pipe))

    # The change taken back while accelerated.
    accelerate(pipe, CANDIDATES[name])
    made.unmake(pipe)
    assert torch.equal(tried(pipe, None), expected(kind, None, name))
    restore(pipe)
    assert torch.equal(tried(pipe, None), expected(kind, None, None))


@pytest.mark.parametrize("change", [name for name in CHANGES if not CHANGES[name].leaves_traces])
def test_nothing_is_left_of_a_change_that_came_and_went(change: str) -> None:
    pipe = make_pipe()
    tried(pipe, None)
    before = snapshot(pipe)
    accelerate(pipe, TOGETHER)
    CHANGES[change].make(pipe)
    tried(pipe, CHANGES[change])
    CHANGES[change].unmake(pipe)
    restore(pipe)
    assert_same(before, snapshot(pipe))


# Lifetime


@together_or_slow
@every_kind
def test_it_stays_when_the_handle_is_dropped(kind: str, name: str) -> None:
    pipe = make_pipe(kind)
    tried(pipe, None)
    before = snapshot(pipe)
    accelerate(pipe, CANDIDATES[name])
    gc.collect()
    assert torch.equal(tried(pipe, None), expected(kind, None, name))
    with pytest.raises(AcceleratorError, match=r"accelerated already.*restore\(pipe\)"):
        accelerate(pipe, CANDIDATES[name])
    assert torch.equal(tried(pipe, None), expected(kind, None, name))
    restore(pipe)
    restore(pipe)  # A second time does nothing, nor on a pipeline that never was accelerated.
    assert_same(before, snapshot(pipe))
    assert torch.equal(tried(pipe, None), expected(kind, None, None))


@every_candidate
def test_a_pipeline_that_is_dropped_is_freed(name: str) -> None:
    """As one that is not accelerated is: at once, without the garbage collector."""
    pipe = make_pipe()
    # Those with weights: diffusers 0.31 has one activation function for all UNets.
    own = [each for each in pipe.unet.modules() if any(True for _ in each.parameters())]
    unet, blocks = weakref.ref(pipe.unet), [weakref.ref(each) for each in own]
    del own
    applied = accelerate(pipe, CANDIDATES[name], scheduler="DDIM")
    tried(pipe, None)
    gc.collect()
    gc.disable()
    try:
        del pipe
        assert unet() is None and not any(block() for block in blocks)
    finally:
        gc.enable()
    applied.remove()


def test_restore_after_another_unet_took_its_place() -> None:
    pipe, other = make_pipe(), make_pipe()
    tried(pipe, None)
    own, before = pipe.unet, snapshot(pipe)
    accelerate(pipe, TRIPLE)
    pipe.unet = other.unet
    bare = tried(pipe, None)
    restore(pipe)
    assert torch.equal(tried(pipe, None), bare)
    pipe.unet = own
    assert_same(before, snapshot(pipe))


def test_an_empty_candidate_is_restored_too() -> None:
    pipe = make_pipe()
    before = snapshot(pipe)
    accelerate(pipe, {})
    restore(pipe)
    assert_same(before, snapshot(pipe))
    accelerate(pipe, DEEPCACHE).remove()  # Refused, were the empty one still applied.
    assert_same(before, snapshot(pipe))


def test_the_scheduler_that_a_user_sets_is_not_taken_away() -> None:
    pipe = make_pipe("SD", "PNDMScheduler")
    own = pipe.scheduler
    accelerate(pipe, TOGETHER, scheduler="DDIM")
    theirs = pipe.scheduler = make_scheduler("UniPCMultistepScheduler")
    expected_picture = tried(pipe, None)
    assert torch.equal(tried(pipe, None), expected_picture)
    restore(pipe)
    assert pipe.scheduler is theirs and type(theirs).__name__ == "UniPCMultistepScheduler"
    pipe.scheduler = own
    handle = accelerate(pipe, TOGETHER, scheduler="DDIM")
    handle.remove()
    assert pipe.scheduler is own


# Pipelines that share parts


def test_two_accelerated_pipelines_share_a_scheduler() -> None:
    for first in (0, 1):
        pipes = [make_pipe("SD"), make_pipe("SDXL")]
        pipes[1].scheduler = pipes[0].scheduler
        for pipe in pipes:
            tried(pipe, None)
        before = [snapshot(pipe) for pipe in pipes]
        handles = [accelerate(pipe, TOGETHER) for pipe in pipes]
        for _ in range(2):
            for kind, pipe in zip(KINDS, pipes, strict=True):
                assert torch.equal(tried(pipe, None), expected(kind, None, "together"))
        handles[first].remove()
        other = 1 - first
        picture = tried(pipes[other], None)
        assert torch.equal(picture, expected(KINDS[other], None, "together"))
        handles[other].remove()
        for old, pipe in zip(before, pipes, strict=True):
            assert_same(old, snapshot(pipe))
        for kind, pipe in zip(KINDS, pipes, strict=True):
            assert torch.equal(tried(pipe, None), expected(kind, None, None))


def shared(pipe: Any, cls: str = "StableDiffusionPipeline", **more: Any) -> Any:
    import diffusers

    parts = {**pipe.components, **more}
    other = getattr(diffusers, cls)(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.mark.parametrize(
    "name", sampled([n for n in CANDIDATES if n not in ("steps", "together")], "tgate")
)
def test_a_pipeline_that_shares_the_unet_is_accelerated_as_its_own_calls_ask(name: str) -> None:
    """Without guidance, right after a guided call of the accelerated one, at one image and two."""
    pipe = make_pipe()
    other = shared(pipe)
    for images in ((0,), (0, 1)):
        plain = render(other, images, steps=STEPS, guidance_scale=1.0)
        with accelerate(other, CANDIDATES[name]):
            reference = render(other, images, steps=STEPS, guidance_scale=1.0)
        with accelerate(pipe, CANDIDATES[name]):
            guided = render(pipe, images, steps=STEPS)
            assert torch.equal(render(other, images, steps=STEPS, guidance_scale=1.0), reference)
            assert torch.equal(render(pipe, images, steps=STEPS), guided)
            # It raised in mid-call, and says nothing more: its next call begins at its beginning.
            with pytest.raises(ZeroDivisionError):
                render(other, images, steps=STEPS, guidance_scale=1.0, callback_on_step_end=broken)
            assert torch.equal(render(other, images, steps=STEPS, guidance_scale=1.0), reference)
        restore(other)
        assert torch.equal(render(other, images, steps=STEPS, guidance_scale=1.0), plain)


def broken(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
    return {} if step < 3 else {"latents": 1 / 0}


@every_candidate
def test_a_call_that_raises_between_two_steps_leaves_the_next_one_alone(name: str) -> None:
    pipe = make_pipe()
    with accelerate(pipe, CANDIDATES[name]):
        with pytest.raises(ZeroDivisionError):
            render(pipe, (0,), steps=STEPS, callback_on_step_end=broken)
        assert torch.equal(tried(pipe, None), expected("SD", None, name))


# What T-GATE asks of a call before it halves the batch


@pytest.mark.parametrize("images", [pytest.param((0, 1), marks=pytest.mark.slow), (0, 1, 2)])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_pag_is_refused(images: tuple[int, ...], guidance: float) -> None:
    pipe = shared(make_pipe(), "StableDiffusionPAGPipeline", pag_applied_layers="mid")
    plain = render(pipe, images, steps=STEPS, guidance_scale=guidance, pag_scale=3.0)
    before = snapshot(pipe)
    with accelerate(pipe, TGATE):
        with pytest.raises(AcceleratorError, match="tgate: StableDiffusionPAGPipeline gives"):
            render(pipe, images, steps=STEPS, guidance_scale=guidance, pag_scale=3.0)
        # Without it the pipeline guides as any other does.
        fine = render(pipe, images, steps=STEPS, guidance_scale=guidance, pag_scale=0.0)
        assert torch.isfinite(fine).all()
    assert_same(before, snapshot(pipe))
    again = render(pipe, images, steps=STEPS, guidance_scale=guidance, pag_scale=3.0)
    assert torch.equal(again, plain)


@pytest.mark.parametrize("images", [1, 2, 3])
def test_instruct_pix2pix_is_refused(images: int) -> None:
    from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel

    base = make_pipe()
    config = {**base.unet.config, "in_channels": 8, "_use_default_values": []}
    parts = {**base.components, "unet": UNet2DConditionModel.from_config(config).eval()}
    parts.pop("image_encoder", None)
    pipe = StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    arguments = inputs("SD", tuple(range(images)))
    arguments |= {"image": torch.zeros(images, 3, 32, 32), "num_inference_steps": STEPS}
    with accelerate(pipe, TGATE), pytest.raises(AcceleratorError, match="InstructPix2Pix"):
        pipe(**arguments, output_type="latent")
    with accelerate(pipe, DEEPCACHE | TOME):
        arguments["generator"] = None
        assert torch.isfinite(pipe(**arguments, output_type="latent").images).all()


def control_net(pipe: Any) -> Any:
    from diffusers import ControlNetModel

    with torch.random.fork_rng():
        torch.manual_seed(2)
        # A fresh one's output convolutions are zero.
        net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8))
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    return net.eval()


@pytest.mark.parametrize("images", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sampled(("deepcache", "tome", "tgate", "steps"), "tgate"))
def test_controlnet_and_its_guess_mode(name: str, images: int) -> None:
    base = make_pipe()
    pipe = shared(base, "StableDiffusionControlNetPipeline", controlnet=control_net(base))

    def call(**options: Any) -> torch.Tensor:
        arguments = inputs("SD", tuple(range(images)))
        result: torch.Tensor = pipe(
            **arguments, image=torch.zeros(1, 3, 32, 32), num_inference_steps=STEPS,
            guidance_scale=5.0, output_type="latent", **options,
        ).images  # fmt: skip
        return result

    plain = {guess: call(guess_mode=guess) for guess in (False, True)}
    with accelerate(pipe, CANDIDATES[name]):
        picture = call()
        assert torch.isfinite(picture).all() and not torch.equal(picture, plain[False])
        if name == "tgate":
            with pytest.raises(AcceleratorError, match="guess_mode=False"):
                call(guess_mode=True)
        else:
            assert torch.isfinite(call(guess_mode=True)).all()
        assert torch.equal(call(), picture)
    for guess, before in plain.items():
        assert torch.equal(call(guess_mode=guess), before)


# A cache belongs to one call


@together_or_slow
@pytest.mark.parametrize("cut", range(1, STEPS))
def test_guidance_that_a_callback_ends_at_any_step(name: str, cut: int) -> None:
    """Up to there the latents are those of a guided call; then the batch halves."""
    pipe = make_pipe()
    callback = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=cut)
    plain = render(pipe, (0,), steps=STEPS, callback_on_step_end=callback)
    seen: dict[bool, list[torch.Tensor]] = {False: [], True: []}

    def watching(is_cut: bool) -> Callable[..., Any]:
        def look(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            seen[is_cut].append(values["latents"].clone())
            return callback(pipe, step, timestep, values) if is_cut else values  # type: ignore[no-any-return]

        return look

    names = ["latents", *callback.tensor_inputs]
    with accelerate(pipe, CANDIDATES[name]):
        whole = render(pipe, (0,), steps=STEPS, callback_on_step_end=watching(False),
                       callback_on_step_end_tensor_inputs=names)  # fmt: skip
        for _ in range(2):
            seen[True].clear()
            ended = render(pipe, (0,), steps=STEPS, callback_on_step_end=watching(True),
                           callback_on_step_end_tensor_inputs=names)  # fmt: skip
    for before, after in zip(seen[False][:cut], seen[True][:cut], strict=True):
        assert torch.equal(before, after)
    assert torch.isfinite(ended).all()
    assert ended.shape == whole.shape == plain.shape
    assert torch.equal(render(pipe, (0,), steps=STEPS, callback_on_step_end=callback), plain)


def test_deepcache_runs_in_full_where_guidance_ends() -> None:
    pipe = make_pipe()
    seen = runs(pipe.unet.mid_block)
    # The callback's step is the last one that is guided.
    for cut, expected_rows in ((1, [2, 1, 1]), (2, [2, 1, 1]), (4, [2, 2, 1]), (6, [2, 2, 2])):
        seen.clear()
        callback = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=cut)
        with accelerate(pipe, DEEPCACHE):
            render(pipe, (0,), steps=STEPS, callback_on_step_end=callback)
        assert seen == expected_rows, cut


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("branch", [0, 3, 4, 5])
def test_freeu_scales_what_deepcache_keeps_once(kind: str, branch: int) -> None:
    """Held against the partial step written out: modules replaced by copies of what they gave."""
    from accel_search.accelerators.deepcache import skipped_modules

    pipe = make_pipe(kind)
    pipe.enable_freeu(**FREEU)
    interval = 3
    with accelerate(pipe, {"deepcache": {"cache_interval": interval, "cache_branch_id": branch}}):
        ours = render(pipe, (0,), steps=STEPS)

    def clone(value: Any) -> Any:
        return tuple(map(clone, value)) if isinstance(value, tuple) else value.clone()

    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    for module in skipped_modules(pipe.unet, branch):
        kept: list[Any] = []

        def theirs(*args: Any, _kept: Any = kept, _own: Any = module.forward, **kw: Any) -> Any:
            if (steps - 1) % interval == 0:
                _kept[:] = [clone(output := _own(*args, **kw))]
                return output
            return clone(_kept[0])

        module.forward = theirs
    pipe.unet.register_forward_pre_hook(count)
    assert torch.equal(render(pipe, (0,), steps=STEPS), ours)


def test_what_is_kept_is_copied_only_where_it_is_changed() -> None:
    from accel_search.accelerators.kept import Kept

    kept, first, second = Kept(), torch.ones(2), torch.ones(2)
    kept.store(first)
    assert kept.get() is not first and torch.equal(kept.get(), first)
    kept.store(second)
    assert kept.get() is second
    second += 1
    with pytest.raises(AcceleratorError, match="in place in the middle"):
        kept.get()
    kept.drop()
    kept.store((first, (first, second)))
    first += 1
    for _ in range(2):
        given = kept.get()
        assert given[0] is given[1][0] and given[0][0] == 1
        given[0].zero_()
    with torch.inference_mode():
        kept.drop()
        kept.store(torch.ones(2))
        assert torch.equal(kept.get(), torch.ones(2))
        kept.get().zero_()
        assert torch.equal(kept.get(), torch.ones(2))


def own_loop(pipe: Any, steps: int, scheduler: Any = None) -> torch.Tensor:
    """A denoising loop as users write it."""
    scheduler = scheduler or pipe.scheduler
    arguments = inputs("SD", (0,))
    latents = arguments["latents"]
    text = torch.cat([arguments["negative_prompt_embeds"], arguments["prompt_embeds"]])
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            noise = pipe.unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=text)[0]
            uncond, cond = noise.chunk(2)
            noise = uncond + 5.0 * (cond - uncond)
            latents = scheduler.step(noise, timestep, latents).prev_sample
    return latents  # type: ignore[no-any-return]


@pytest.mark.parametrize("candidate", [DEEPCACHE, DEEPCACHE | TOME], ids=str)
def test_a_loop_of_ones_own_counts_its_own_steps(candidate: dict[str, Any]) -> None:
    pipe = make_pipe()
    with accelerate(pipe, candidate):
        reference = render(pipe, (0,), steps=8)
        for before in (None, 3, 12):
            if before:
                render(pipe, (0,), steps=before)
            assert torch.allclose(own_loop(pipe, 8), reference, atol=1e-5)
        with pytest.raises(ZeroDivisionError):
            render(pipe, (0,), steps=STEPS, callback_on_step_end=broken)
        assert torch.allclose(own_loop(pipe, 8), reference, atol=1e-5)


def test_tgate_is_refused_in_a_loop_of_ones_own() -> None:
    pipe = make_pipe()
    bare = own_loop(pipe, 8)
    with accelerate(pipe, TGATE):
        render(pipe, (0,), steps=8)
        with pytest.raises(AcceleratorError, match="outside of a pipeline call"):
            own_loop(pipe, 8)
    assert torch.equal(own_loop(pipe, 8), bare)


@pytest.mark.parametrize("candidate", COUNTING.values(), ids=COUNTING)
def test_a_unet_that_is_called_twice_at_a_timestep_is_refused(candidate: dict[str, Any]) -> None:
    pipe = make_pipe()
    latents = inputs("SD", (0,))["latents"]
    text = inputs("SD", (0,))["prompt_embeds"]
    pipe.scheduler.set_timesteps(4)
    refused = pytest.raises(AcceleratorError, match=r"twice|outside")
    with accelerate(pipe, candidate), torch.no_grad(), refused:
        for timestep in pipe.scheduler.timesteps:
            for _ in range(2):
                pipe.unet(latents, timestep, encoder_hidden_states=text)


@pytest.mark.parametrize("candidate", [DEEPCACHE, TOME], ids=str)
def test_unet_calls_that_belong_to_no_loop_are_each_the_first(candidate: dict[str, Any]) -> None:
    pipe = make_pipe()
    text = inputs("SD", (0, 1))["prompt_embeds"]

    def once(image: int, timestep: Any) -> torch.Tensor:
        latents = inputs("SD", (image,))["latents"]
        result: torch.Tensor = pipe.unet(
            latents, timestep, encoder_hidden_states=text[image : image + 1]
        )[0]
        return result

    with accelerate(pipe, candidate), torch.no_grad():
        alone = {}
        for image, timestep in ((0, 5), (1, torch.tensor(700)), (1, 5.0)):
            pipe.scheduler.set_timesteps(4)
            alone[image, float(timestep)] = once(image, timestep)
        for image, timestep in ((0, 5), (1, torch.tensor(700)), (1, 700), (1, torch.tensor(700))):
            assert torch.equal(once(image, timestep), alone[image, float(timestep)])


def test_a_method_of_a_pipeline_beside_its_call_counts_its_own_steps() -> None:
    """As DiffEdit's `invert`: another scheduler, whose timesteps rise, and no number of steps."""
    base = make_pipe()
    scheduler = make_scheduler("DDIMInverseScheduler")

    class Inverting(type(base)):  # type: ignore[misc]
        @torch.no_grad()
        def invert(self, steps: int) -> torch.Tensor:
            given = inputs("SD", (0,))
            latents, text = given["latents"], given["prompt_embeds"]
            scheduler.set_timesteps(steps)
            for timestep in scheduler.timesteps:
                noise = self.unet(latents, timestep, encoder_hidden_states=text)[0]
                latents = scheduler.step(noise, timestep, latents).prev_sample
            return latents

    pipe = Inverting(**base.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    for candidate in (DEEPCACHE, TOME):
        with accelerate(pipe, candidate):
            first = pipe.invert(5)
            pipe.invert(4)
            assert torch.equal(pipe.invert(5), first)
            render(pipe, (0,), steps=3)
            assert torch.equal(pipe.invert(5), first)


@pytest.mark.parametrize("candidate", [DEEPCACHE, TOME], ids=str)
def test_a_loop_with_a_scheduler_that_is_not_the_pipelines(candidate: dict[str, Any]) -> None:
    pipe = make_pipe()
    scheduler = make_scheduler("DDIMScheduler")
    with accelerate(pipe, candidate):
        reference = render(pipe, (0,), steps=8)
        for _ in range(3):
            assert torch.allclose(own_loop(pipe, 8, scheduler), reference, atol=1e-5)


@pytest.mark.parametrize("candidate", [DEEPCACHE, TGATE, TOME], ids=str)
def test_a_sharing_pipeline_whose_scheduler_is_exchanged(candidate: dict[str, Any]) -> None:
    pipe = make_pipe()
    other = shared(pipe)
    with accelerate(pipe, candidate):
        first = render(other, (0,), steps=STEPS)
        for _ in range(2):
            other.scheduler = make_scheduler("DDIMScheduler")
            assert torch.equal(render(other, (0,), steps=STEPS), first)
            with pytest.raises(ZeroDivisionError):
                render(other, (0,), steps=STEPS, callback_on_step_end=broken)


@pytest.mark.parametrize("kind", KINDS)
def test_other_pipelines_are_made_from_an_accelerated_one(kind: str) -> None:
    import diffusers

    pipe = make_pipe(kind)
    accelerate(pipe, TOGETHER)
    for task in ("Img2Img", "Inpaint"):
        name = type(pipe).__name__.replace("Pipeline", f"{task}Pipeline")
        other = getattr(diffusers, name).from_pipe(pipe)
        assert other.unet is pipe.unet
    assert type(pipe).from_pipe(pipe).unet is pipe.unet
    restore(pipe)
    assert torch.equal(tried(pipe, None), expected(kind, None, None))


def test_halves_that_differ_in_more_than_the_text_are_refused() -> None:
    from accel_search.accelerators.tgate import check_halves

    same = torch.tensor([3, 3])
    check_halves(2, {"class_labels": same, "timestep_cond": None, "cross_attention_kwargs": None})
    for arguments in (
        {"class_labels": torch.tensor([3, 4])},
        {"timestep_cond": torch.eye(2)},
        {"cross_attention_kwargs": {"gligen": {}}},
    ):
        with pytest.raises(AcceleratorError, match="more than the text"):
            check_halves(2, arguments)


def test_a_unet_that_is_called_by_its_forward_keeps_nothing() -> None:
    pipe = make_pipe()
    given = inputs("SD", (0,))
    with accelerate(pipe, TRIPLE), torch.no_grad():
        tried(pipe, None)
        before = sum(torch.is_tensor(each) for each in gc.get_objects())
        pipe.unet.forward(given["latents"], 5, encoder_hidden_states=given["prompt_embeds"])
        gc.collect()
        assert sum(torch.is_tensor(each) for each in gc.get_objects()) <= before


def test_fewer_steps_of_a_subclass_and_of_a_share_of_them() -> None:
    base = make_pipe()

    class Own(type(base)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    pipe = Own(**base.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    expected_picture = render(pipe, (0,), steps=4)
    with accelerate(pipe, {"steps": {"num_inference_steps": 4}}):
        assert torch.equal(render(pipe, (0,), steps=12), expected_picture)
    pipe = make_img2img()
    arguments = inputs("SD", (0,)) | {"image": torch.zeros(1, 3, 32, 32), "strength": 0.15}
    arguments.pop("latents")
    with accelerate(pipe, {"steps": {"num_inference_steps": 4}}):
        latents = pipe(**arguments, num_inference_steps=20, output_type="latent").images
    assert latents.shape == (1, 4, 16, 16)  # One step of seven, where four would leave none.


def test_tokens_that_tomesd_merges_are_not_merged_again() -> None:
    import tomesd

    pipe = make_pipe()
    accelerate(pipe, TOME)
    tomesd.apply_patch(pipe, ratio=0.5, max_downsample=4)
    with pytest.raises(AcceleratorError, match="tomesd"):
        tried(pipe, None)
    restore(pipe)
    assert torch.isfinite(tried(pipe, None)).all()
    tomesd.remove_patch(pipe)
    assert torch.equal(tried(pipe, None), expected("SD", None, None))


def test_training_is_refused_where_values_are_kept() -> None:
    pipe = make_pipe()
    arguments = inputs("SD", (0,))
    with accelerate(pipe, DEEPCACHE), pytest.raises(AcceleratorError, match=r"torch\.no_grad"):
        pipe.unet(arguments["latents"], 5, encoder_hidden_states=arguments["prompt_embeds"])


@pytest.mark.parametrize(
    ("cls", "candidate", "refused"),
    [
        ("StableDiffusionSAGPipeline", DEEPCACHE, True),
        ("StableDiffusionSAGPipeline", TGATE, True),
        ("StableDiffusionSAGPipeline", TOME, False),
        # Of one view here; it copies its scheduler's attributes, and puts the copies back.
        ("StableDiffusionPanoramaPipeline", DEEPCACHE | TOME, False),
    ],
)
def test_pipelines_that_call_the_unet_more_than_once_a_step(
    cls: str, candidate: dict[str, Any], refused: bool
) -> None:
    pipe = shared(make_pipe(), cls)
    size = {"height": 128, "width": 128} if "Panorama" in cls else {}

    def call() -> torch.Tensor:
        arguments = inputs("SD", (0,))
        result: torch.Tensor = pipe(
            **arguments, **size, num_inference_steps=4, output_type="latent"
        ).images
        return result

    plain, before = call(), snapshot(pipe)
    with accelerate(pipe, candidate):
        if refused:
            with pytest.raises(AcceleratorError, match="twice at one timestep"):
                call()
        else:
            picture = call()
            assert torch.equal(call(), picture) and not torch.equal(picture, plain)
    assert_same(before, snapshot(pipe))
    assert torch.equal(call(), plain)


@pytest.mark.parametrize("candidate", COUNTING.values(), ids=COUNTING)
def test_a_pipeline_with_more_unet_calls_than_steps_is_refused(candidate: dict[str, Any]) -> None:
    """As one that goes on after its last step."""
    pipe = make_pipe()
    unet = pipe.unet

    class Twice(type(pipe)):  # type: ignore[misc]
        def __call__(self, **arguments: Any) -> Any:
            super().__call__(**arguments)
            latents = arguments["latents"].repeat(2, 1, 1, 1)
            text = arguments["prompt_embeds"].repeat(2, 1, 1)
            return unet(latents, self.scheduler.timesteps[-1], encoder_hidden_states=text)

    other = Twice(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    arguments = inputs("SD", (0,))
    with accelerate(other, candidate), pytest.raises(AcceleratorError, match="more UNet calls"):
        other(**arguments, num_inference_steps=STEPS, output_type="latent")


@together_or_slow
def test_other_sizes_and_numbers_of_pictures_one_after_the_other(name: str) -> None:
    pipe = make_pipe()
    alone = {}
    for images in ((0,), (0, 1, 2)):
        with accelerate(pipe, CANDIDATES[name]):
            alone[images] = render(pipe, images, steps=STEPS)
    arguments = inputs("SD", (0,)) | {"latents": torch.ones(1, 4, 8, 24)}
    with accelerate(pipe, CANDIDATES[name]):
        for images in ((0,), (0, 1, 2), (0,)):
            assert torch.equal(render(pipe, images, steps=STEPS), alone[images])
            wide = pipe(**arguments, num_inference_steps=STEPS, output_type="latent").images
            assert wide.shape == (1, 4, 8, 24)


# Threads


@pytest.mark.parametrize("name", sampled(CANDIDATES, "deepcache"))
def test_two_threads_get_right_pictures_or_one_line(name: str) -> None:
    pipe = make_pipe()
    with accelerate(pipe, CANDIDATES[name]):
        alone = [render(pipe, (image,), steps=STEPS) for image in (0, 1)]
        outcomes: dict[int, Any] = {}

        def work(image: int) -> None:
            try:
                outcomes[image] = render(pipe, (image,), steps=STEPS)
            except Exception as error:
                outcomes[image] = error

        for _ in range(2):
            threads = [threading.Thread(target=work, args=(image,)) for image in (0, 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for image, outcome in outcomes.items():
                if isinstance(outcome, Exception):
                    assert isinstance(outcome, AcceleratorError), repr(outcome)
                    assert "two threads" in str(outcome) and "\n" not in str(outcome)
                else:
                    assert torch.equal(outcome, alone[image])
            assert any(isinstance(outcome, torch.Tensor) for outcome in outcomes.values())
        # One after the other, threads may share it.
        for image in (0, 1):
            thread = threading.Thread(target=work, args=(image,))
            thread.start()
            thread.join()
            assert torch.equal(outcomes[image], alone[image])


def test_what_is_in_use_in_another_thread_is_not_taken_off() -> None:
    pipe = make_pipe()
    inside, leave = threading.Event(), threading.Event()

    def wait(*_: Any) -> dict[str, Any]:
        inside.set()
        leave.wait(60)
        return {}

    pictures: list[torch.Tensor] = []
    handle = accelerate(pipe, TOGETHER)
    thread = threading.Thread(
        target=lambda: pictures.append(tried(pipe, None, callback_on_step_end=wait))
    )
    thread.start()
    inside.wait(60)
    for take_off in (handle.remove, lambda: restore(pipe)):
        with pytest.raises(AcceleratorError, match="another thread"):
            take_off()
    leave.set()
    thread.join()
    assert torch.equal(pictures[0], expected("SD", None, "together"))
    handle.remove()
    assert torch.equal(tried(pipe, None), expected("SD", None, None))


def test_it_may_be_taken_off_in_a_callback() -> None:
    pipe = make_pipe()

    def remove(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 4:
            restore(pipe)
        return {}

    tried(pipe, None)
    before = snapshot(pipe)
    accelerate(pipe, TRIPLE)
    assert torch.isfinite(render(pipe, steps=STEPS, callback_on_step_end=remove)).all()
    assert_same(before, snapshot(pipe))
    assert torch.equal(tried(pipe, None), expected("SD", None, None))


@pytest.mark.parametrize("who", ["itself", "another", "another with its own scheduler"])
def test_a_call_within_a_call_is_refused(who: str) -> None:
    pipe = make_pipe()
    other = pipe if who == "itself" else shared(pipe)
    if "own" in who:
        other.scheduler = make_scheduler("DDIMScheduler")

    def again(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 2:
            render(other, steps=2)
        return {}

    with accelerate(pipe, TRIPLE):
        expected_picture = tried(pipe, None)
        with pytest.raises(AcceleratorError, match="within a call of its pipeline"):
            render(pipe, (0,), steps=STEPS, callback_on_step_end=again)
        assert torch.equal(tried(pipe, None), expected_picture)


# Copies


@together_or_slow
@every_kind
def test_a_deep_copy_is_plain_and_independent(kind: str, name: str) -> None:
    pipe = make_pipe(kind)
    accelerate(pipe, CANDIDATES[name])
    tried(pipe, None)
    twin = copy.deepcopy(pipe)
    parts = [twin, twin.unet, twin.scheduler, *twin.unet.modules()]
    assert not any("accel_search" in key for part in parts for key in vars(part))
    assert torch.equal(tried(twin, None), expected(kind, None, None))
    for part in ("unet", "scheduler"):
        alone = copy.deepcopy(getattr(pipe, part))
        assert type(alone) is type(getattr(make_pipe(kind), part))
    with torch.no_grad():
        for weight in twin.unet.parameters():
            weight.zero_()
    assert torch.equal(tried(pipe, None), expected(kind, None, name))
    assert not torch.equal(tried(twin, None), expected(kind, None, None))
    # A copy can be accelerated by itself.
    third = copy.deepcopy(pipe)
    restore(pipe)
    with accelerate(third, CANDIDATES[name]):
        assert torch.equal(tried(third, None), expected(kind, None, name))
    assert torch.equal(tried(pipe, None), expected(kind, None, None))


def test_pickling_says_to_restore_first() -> None:
    pipe = make_pipe()
    accelerate(pipe, TOGETHER)
    for owner in (pipe.unet, pipe.scheduler, pipe.unet.mid_block):
        with pytest.raises(AcceleratorError, match=r"restore\(pipe\) first"):
            pickle.dumps(owner)
    with pytest.raises(AcceleratorError, match="copy.deepcopy"):
        copy.copy(pipe.unet)
    assert type(copy.copy(pipe.scheduler)) is type(make_scheduler("DDIMScheduler"))
    # The usual way to another scheduler of the same class makes a plain one.
    made = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    assert type(made) is type(make_scheduler("DDIMScheduler"))
    assert made.config.timestep_spacing == "trailing"
    restore(pipe)
    assert pickle.loads(pickle.dumps(pipe.scheduler)).config == pipe.scheduler.config  # noqa: S301


# Compiled as a whole


@pytest.mark.slow
@pytest.mark.parametrize("how", ["around", "in place"])
def test_a_unet_that_is_compiled_as_a_whole_is_refused(how: str) -> None:
    pipe = make_pipe()
    if how == "around":
        pipe.unet = torch.compile(pipe.unet)
    else:
        pipe.unet.compile()
    with pytest.raises(AcceleratorError, match=r"compile_unet\(pipe\)"):
        accelerate(pipe, DEEPCACHE)


@pytest.mark.slow
def test_a_unet_that_is_compiled_as_a_whole_afterwards_is_refused() -> None:
    pipe = make_pipe()
    accelerate(pipe, DEEPCACHE)
    own, pipe.unet = pipe.unet, torch.compile(pipe.unet)
    with pytest.raises(AcceleratorError, match=r"compile_unet\(pipe\)"):
        render(pipe, (0,), steps=STEPS)
    restore(pipe)
    pipe.unet = own
    assert torch.equal(tried(pipe, None), expected("SD", None, None))
