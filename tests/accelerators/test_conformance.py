"""What every accelerator has to pass, alone and together with every other.

Parametrised over `all_accelerators()`: a new file in `accelerators/` is picked up as it is.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
import torch

from accel_search.accelerators.base import Accelerator, Context
from accel_search.accelerators.compose import apply_candidate
from accel_search.accelerators.computation import candidate_signature
from accel_search.errors import AcceleratorError, ConfigurationError
from tests.support.candidates import ACCELERATORS, extreme
from tests.support.tiny import (
    KINDS,
    STEPS,
    assert_same,
    difference,
    make_img2img,
    make_pipe,
    render,
    snapshot,
    workload,
)

BATCH_TOLERANCE = 1e-4
"""The CPU's matrix kernels sum in another order at another batch size; latents are of size 10."""


def candidates() -> list[Any]:
    found = []
    for size in range(1, len(ACCELERATORS) + 1):
        for names in itertools.combinations(ACCELERATORS, size):
            for end, label in ((0, "first"), (-1, "last")):
                # Singles, and all together; the combinations between are in test_table.py.
                if (size > 1 and end == 0) or 1 < size < len(ACCELERATORS):
                    continue
                candidate = {name: extreme(ACCELERATORS[name], end) for name in names}
                found.append(pytest.param(candidate, id="+".join(names) + "-" + label))
    return found


every_accelerator = pytest.mark.parametrize("accelerator", ACCELERATORS.values(), ids=ACCELERATORS)
every_candidate = pytest.mark.parametrize(
    "candidate", [param for param in candidates() if param.id.endswith("last")]
)
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_accelerator
def test_parameters_are_well_formed(accelerator: Accelerator) -> None:
    assert accelerator.parameters
    names = [parameter.name for parameter in accelerator.parameters]
    assert len(set(names)) == len(names)
    for parameter in accelerator.parameters:
        assert len(set(parameter.values)) == len(parameter.values) >= 2
        assert list(parameter.values) in (
            sorted(parameter.values),
            sorted(parameter.values, reverse=True),
        )
        assert parameter.minimum <= min(parameter.values)
        assert parameter.maximum is None or parameter.maximum >= max(parameter.values)
        assert len({type(value) for value in (*parameter.values, parameter.minimum)}) == 1
        assert parameter.help and "\n" not in parameter.help


@every_accelerator
@every_kind
def test_signature_is_hashable_and_deterministic(accelerator: Accelerator, kind: str) -> None:
    seen: set[Hashable] = set()
    load = workload(kind)
    for end in (0, -1):
        params = extreme(accelerator, end, steps=20)
        assert accelerator.signature(params, load) == accelerator.signature(dict(params), load)
        seen.add(accelerator.signature(params, load))
        context = Context(frozenset({3}), skips_modules=True)
        both = accelerator.signature(params, load, context)
        assert hash(both) == hash(accelerator.signature(dict(params), load, context))
    assert len(seen) == 2


@every_accelerator
@every_kind
def test_equal_signatures_make_equal_images(
    accelerator: Accelerator, kind: str, pipes: dict[str, Any]
) -> None:
    """Of all points that coincide, the two farthest apart are rendered; so are two that do not."""
    load = workload(kind, steps=STEPS)
    groups: dict[Hashable, list[dict[str, Any]]] = {}
    spaces = [
        [value for value in p.values if accelerator.allowed(p, value, load)]
        for p in accelerator.parameters
    ]
    for values in itertools.product(*spaces):
        names = [parameter.name for parameter in accelerator.parameters]
        params = dict(zip(names, values, strict=True))
        groups.setdefault(accelerator.signature(params, load), []).append(params)

    def image(params: dict[str, Any]) -> torch.Tensor:
        with apply_candidate(pipes[kind], {accelerator.name: params}):
            return render(pipes[kind], (0,), steps=STEPS)

    many = sorted(groups.values(), key=len, reverse=True)
    first = image(many[0][0])
    if len(many[0]) > 1:
        assert torch.equal(first, image(many[0][-1]))
    if None in groups:
        assert torch.equal(image(groups[None][0]), render(pipes[kind], (0,), steps=STEPS))
    others = [group[0] for group in many[1:]][:: max(1, len(many) // 4)]
    assert others
    for params in others:
        assert not torch.equal(first, image(params)), params


@pytest.mark.parametrize(
    ("candidate", "kind"),
    [(*param.values, "SD") for param in candidates()] + [(*candidates()[-1].values, "SDXL")],
    ids=[*(param.id for param in candidates()), "all-SDXL"],
)
def test_reversible_and_repeatable(
    candidate: dict[str, Any],
    kind: str,
    pipes: dict[str, Any],
    baselines: dict[str, torch.Tensor],
) -> None:
    pipe, baseline = pipes[kind], baselines[kind]
    before = snapshot(pipe)
    with apply_candidate(pipe, candidate):
        pass
    assert_same(before, snapshot(pipe), called=False)
    with apply_candidate(pipe, candidate):
        first = render(pipe, (0,), steps=STEPS)
        second = render(pipe, (0,), steps=STEPS)
    assert_same(before, snapshot(pipe))
    assert torch.equal(first, second)
    works = candidate_signature(candidate, workload(kind, steps=STEPS)) is not None
    assert torch.equal(first, baseline) is not works
    assert torch.equal(render(pipe, (0,), steps=STEPS), baseline)


ELSEWHERE = """
import hashlib, json, sys
from accel_search.accelerators.compose import apply_candidate
from tests.support.tiny import STEPS, make_pipe, render
for candidate in json.loads(sys.argv[1]):
    pipe = make_pipe()
    with apply_candidate(pipe, candidate):
        latents = render(pipe, steps=STEPS)
    print(hashlib.sha256(latents.numpy().tobytes()).hexdigest())
"""


@pytest.mark.full
def test_another_process_makes_the_same_images() -> None:
    chosen = [param.values[0] for param in candidates()]
    found = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, json.dumps(chosen)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    ).stdout.split()
    for candidate, digest in zip(chosen, found, strict=True):
        pipe = make_pipe()
        with apply_candidate(pipe, candidate):
            latents = render(pipe, steps=STEPS)
        assert hashlib.sha256(latents.numpy().tobytes()).hexdigest() == digest, candidate
    assert len(set(found)) == len(chosen)


class Broken(BaseException):
    """Not an Exception, as an interruption is not."""


@every_candidate
@pytest.mark.parametrize("place", ["callback", "module"])
def test_reversible_when_the_body_raises(
    candidate: dict[str, Any], place: str, baselines: dict[str, torch.Tensor]
) -> None:
    pipe = make_pipe()
    calls = itertools.count()
    render(pipe, steps=1)

    def callback(*args: Any) -> dict[str, Any]:
        if place == "callback" and args[1] == 2:
            raise Broken
        return {}

    def hook(*_: Any) -> None:
        if place == "module" and next(calls) == 3:
            raise Broken

    # The middle of a UNet call, in the part that every step runs.
    pipe.unet.up_blocks[-1].register_forward_pre_hook(hook)
    before = snapshot(pipe)
    with pytest.raises(Broken), apply_candidate(pipe, candidate):
        render(pipe, (0,), steps=STEPS, callback_on_step_end=callback)
    assert_same(before, snapshot(pipe))
    assert torch.equal(render(pipe, (0,), steps=STEPS), baselines["SD"])


@every_candidate
def test_a_call_after_a_broken_one_is_as_if_first(candidate: dict[str, Any], sd: Any) -> None:
    def callback(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 3:
            raise Broken
        return {}

    with apply_candidate(sd, candidate):
        expected = render(sd, (0,), steps=STEPS)
        with pytest.raises(Broken):
            render(sd, (0,), steps=STEPS, callback_on_step_end=callback)
        assert torch.equal(render(sd, (0,), steps=STEPS), expected)


def _tensors() -> dict[int, torch.Tensor]:
    gc.collect()
    return {id(item): item for item in gc.get_objects() if type(item) is torch.Tensor}


@every_candidate
def test_no_tensor_is_held_after_a_call(candidate: dict[str, Any], sd: Any) -> None:
    """However it ends: done, broken off inside the UNet, or by a callback between two calls."""
    place = ""

    def hook(*_: Any) -> None:
        if place == "module":
            raise Broken

    def callback(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if place == "callback" and step == 2:
            raise Broken
        return {}

    handle = sd.unet.conv_out.register_forward_pre_hook(hook)
    with apply_candidate(sd, candidate):
        before = _tensors()
        for place in ("", "module", "callback"):
            with contextlib.suppress(Broken):
                render(sd, (0,), steps=STEPS, callback_on_step_end=callback)
            # What the scheduler keeps, it keeps after a plain call too.
            allowed = {id(value) for value in vars(sd.scheduler).values()}
            # DPM-Solver++ and UniPC keep theirs in lists; the scheduler here is DDIM.
            held = [
                tuple(tensor.shape)
                for key, tensor in _tensors().items()
                if key not in before and key not in allowed
            ]
            assert held == [], place
    handle.remove()


@every_candidate
def test_an_image_does_not_depend_on_its_batch(candidate: dict[str, Any], sd: Any) -> None:
    with apply_candidate(sd, candidate):
        five = render(sd, (0, 1, 2, 3, 4), steps=STEPS)
        two = render(sd, (3, 1), steps=STEPS)
        one = render(sd, (2,), steps=STEPS)
    assert difference(two, five[[3, 1]]) < BATCH_TOLERANCE
    assert difference(one, five[[2]]) < BATCH_TOLERANCE


@every_accelerator
def test_entering_twice_is_an_error(accelerator: Accelerator, sd: Any) -> None:
    candidate = {accelerator.name: extreme(accelerator, -1)}
    before = snapshot(sd)
    with apply_candidate(sd, candidate):
        inside = snapshot(sd)
        with pytest.raises(AcceleratorError, match="accelerated already") as caught:
            apply_candidate(sd, {}).__enter__()
        assert "\n" not in str(caught.value)
        assert_same(inside, snapshot(sd), called=False)
    assert_same(before, snapshot(sd), called=False)
    with apply_candidate(sd, candidate):
        pass


@every_accelerator
def test_image_to_image(accelerator: Accelerator) -> None:
    """Fewer UNet calls than timesteps: caches are dropped and counted by calls made."""
    from tests.support.tiny import inputs

    pipe = make_img2img()
    candidate = {accelerator.name: extreme(accelerator, -1)}
    arguments = inputs("SD", (0, 1))
    image = arguments.pop("latents").new_zeros(2, 3, 32, 32)

    def call(strength: float) -> torch.Tensor:
        arguments["generator"] = [torch.Generator().manual_seed(image) for image in (0, 1)]
        result: torch.Tensor = pipe(
            image=image, strength=strength, num_inference_steps=12, output_type="latent",
            return_dict=False, **arguments,
        )[0]  # fmt: skip
        return result

    baseline = call(0.6)
    with apply_candidate(pipe, candidate):
        first = call(0.6)
        call(1.0)
        assert torch.equal(call(0.6), first)
    assert not torch.equal(first, baseline)
    assert torch.equal(call(0.6), baseline)


def test_an_empty_candidate_changes_nothing(sd: Any) -> None:
    before = snapshot(sd)
    with apply_candidate(sd, {}):
        assert_same(before, snapshot(sd), called=False)


@pytest.mark.parametrize("unet", [None, "vae"])
def test_other_pipelines_are_refused(unet: str | None) -> None:
    pipe = make_pipe()
    pipe.unet = unet and pipe.vae
    with pytest.raises(AcceleratorError, match="cannot be accelerated"), apply_candidate(pipe, {}):
        pass


@every_accelerator
def test_wrong_params_are_refused(accelerator: Accelerator, sd: Any) -> None:
    params = extreme(accelerator, 0)
    first = accelerator.parameters[0]
    for wrong, match in (
        ({}, "give exactly"),
        (params | {"other": 1}, "give exactly"),
        (params | {first.name: first.minimum - 1}, "is -?[0-9.]+; give"),
        (params | {first.name: float("nan")}, "is nan"),
        (params | {first.name: "2"}, "is '2'"),
    ):
        context = apply_candidate(sd, {accelerator.name: wrong})
        with pytest.raises(ConfigurationError, match=match):
            context.__enter__()
