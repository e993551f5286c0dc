"""What a candidate stands for: the one that speaks for its twins, and what each call does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from accel_search.accelerators.base import Effect
from accel_search.accelerators.compose import apply_candidate
from accel_search.accelerators.computation import (
    candidate_signature,
    canonical,
    describe_steps,
    effective_workload,
    step_table,
)
from accel_search.core.candidate import Candidate
from accel_search.core.trial import Measurement
from tests.support.fakes import called
from tests.support.tiny import make_pipe, render, tgate_params, workload

STEPS = 8
POINTS: dict[str, list[dict[str, Any]]] = {
    "deepcache": [
        {"cache_interval": interval, "cache_branch_id": branch}
        for interval, branch in ((2, 0), (4, 0), (5, 0), (5, 1))
    ],
    "tgate": [tgate_params(*values) for values in ((5, 4, 1, 2), (5, 5, 1, 2), (6, 3, 2, 3))],
    "tome": [
        {"ratio": ratio, "max_downsample": level} for ratio, level in ((0.8, 2), (0.9, 3), (0.5, 1))
    ],
    "steps": [{"num_inference_steps": steps} for steps in (8, 9, 6)],
}


def candidates(*names: str) -> list[dict[str, Any]]:
    return [
        dict(zip(names, points, strict=True))
        for points in itertools.product(*(POINTS[name] for name in names))
    ]


@pytest.mark.parametrize(
    "names", [("deepcache",), ("tgate",), ("tome",), ("steps",), ("deepcache", "tgate")], ids=str
)
def test_what_is_mapped_together_looks_the_same_and_what_is_not_differs(
    names: tuple[str, ...], sd: Any
) -> None:
    load = workload(steps=STEPS)
    pictures: dict[Candidate, bytes] = {}
    for candidate in candidates(*names):
        with apply_candidate(sd, candidate):
            picture = render(sd, (0,), steps=STEPS).numpy().tobytes()
        one = canonical(candidate, load)
        assert pictures.setdefault(one, picture) == picture, candidate
        # The one stands for itself, and is the same computation.
        assert canonical(one, load) == one
        assert candidate_signature(one, load) == candidate_signature(candidate, load)
    assert len(set(pictures.values())) == len(pictures) >= 2
    if Candidate() in pictures:
        assert pictures[Candidate()] == render(sd, (0,), steps=STEPS).numpy().tobytes()


def test_what_does_nothing_is_left_out() -> None:
    load = workload("SDXL", steps=STEPS)
    idle = {"tome": {"ratio": 0.5, "max_downsample": 1}, "steps": {"num_inference_steps": 30}}
    cache = {"deepcache": {"cache_interval": 2, "cache_branch_id": 0}}
    assert canonical(idle, load) == Candidate()
    assert canonical(idle | cache, load) == cache


def test_a_point_of_no_space_stands_for_itself() -> None:
    point = {"deepcache": {"cache_interval": 7, "cache_branch_id": 5}}
    assert canonical(point, workload()) == point
    # 0.75 merges what 0.8 does, which the space has.
    assert canonical({"tome": {"ratio": 0.75, "max_downsample": 2}}, workload()) == {
        "tome": {"ratio": 0.8, "max_downsample": 2}
    }


def test_the_mildest_of_twins_stands_for_them() -> None:
    twins = [{"tgate": tgate_params(5, interval, 1, 3)} for interval in range(4, 10)]
    assert {canonical(twin, workload(steps=STEPS)) for twin in twins} == {
        # Kept at 3, and at 4 for the gate: the interval before it means nothing.
        Candidate({"tgate": tgate_params(5, 2, 1, 3)})
    }


# What is said of each call, against what the UNet then does


class Spy:
    """Notes, for each UNet call, the rows it gets and which modules compute."""

    def __init__(self, pipe: Any) -> None:
        self.calls: list[dict[str, Any]] = []
        self.pipe = pipe
        blocks = {
            "shallow": pipe.unet.up_blocks[-1].attentions[-1].transformer_blocks[0],
            "deep": pipe.unet.mid_block.attentions[0].transformer_blocks[0],
        }
        for place, block in blocks.items():
            for kind in ("attn1", "attn2"):
                attention = getattr(block, kind)
                attention.processor = self.counting(attention.processor, f"{place} {kind}")
        pipe.unet.conv_in.register_forward_pre_hook(self.begin)
        # Not on the block itself, whose hooks run though its forward is replaced.
        resnet = pipe.unet.mid_block.resnets[0]
        resnet.register_forward_pre_hook(lambda *_: self.note("deep", 1))

    def begin(self, _: Any, args: Any) -> None:
        self.calls.append({"rows": args[0].shape[0]})

    def note(self, name: str, value: Any) -> None:
        self.calls[-1][name] = value

    def counting(self, inner: Any, name: str) -> Any:
        spy = self

        class Counting:
            def __call__(
                self,
                attn: Any,
                hidden_states: Any,
                encoder_hidden_states: Any = None,
                attention_mask: Any = None,
                temb: Any = None,
            ) -> Any:
                spy.note(name, hidden_states.shape[1])
                return inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

        return Counting()


@pytest.fixture(scope="module")
def spied() -> Iterator[Spy]:
    yield Spy(make_pipe())


CACHE = {"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}
GATE = {"tgate": tgate_params(6, 4, 2, 1)}
TOME = {"tome": {"ratio": 0.5, "max_downsample": 1}}


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
@pytest.mark.parametrize(
    "candidate",
    [
        CACHE,
        GATE,
        TOME,
        CACHE | GATE,
        CACHE | TOME,
        GATE | TOME,
        CACHE | GATE | TOME,
        CACHE | GATE | {"steps": {"num_inference_steps": 9}},
        {
            "deepcache": {"cache_interval": 4, "cache_branch_id": 0},
            "tgate": tgate_params(9, 2, 1, 2),
        },
        {
            "deepcache": {"cache_interval": 5, "cache_branch_id": 0},
            "tgate": tgate_params(9, 4, 3, 3),
        },
    ],
    ids=str,
)
def test_each_call_does_what_is_said_of_it(
    candidate: dict[str, Any], guidance_scale: float, spied: Spy
) -> None:
    load = workload(steps=12, guidance_scale=guidance_scale)
    said = describe_steps(candidate, load)
    spied.calls.clear()
    with apply_candidate(spied.pipe, candidate):
        render(spied.pipe, (0, 1), steps=12, guidance_scale=guidance_scale)
    assert len(spied.calls) == len(said) == effective_workload(candidate, load).unet_calls
    full_rows = 4 if guidance_scale > 1 else 2
    for number, (call, effects) in enumerate(zip(spied.calls, said, strict=True)):
        names = {each.name for each in effects}
        partial = "deepcache partial at branch 0" in names
        gated = "tgate gated" in names
        reused = "tgate self-attention reused" in names
        in_part = "tgate self-attention reused in part" in names
        half = gated and guidance_scale > 1
        assert call["rows"] == (2 if half else full_rows), number
        assert ("deep" in call) is not partial, number
        assert ("shallow attn1" in call) is not (reused or in_part), number
        assert ("shallow attn2" in call) is not gated, number
        if not partial:
            assert ("deep attn1" in call) is not reused, number
            assert ("deep attn2" in call) is not gated, number
        if "tome" in candidate and not (reused or in_part):
            assert call["shallow attn1"] == 128  # Half of 256.
            assert Effect("tome merged at 1/1", 0.5) in effects


def test_the_baseline_makes_plain_calls() -> None:
    assert describe_steps({}, workload(steps=5)) == (frozenset(),) * 5


def test_a_deep_module_reuses_only_what_it_ever_kept() -> None:
    """T-GATE keeps at 2 and 8, DeepCache runs in full at 0, 4 and 8: at 4 deep modules compute."""
    candidate = {
        "deepcache": {"cache_interval": 4, "cache_branch_id": 0},
        "tgate": tgate_params(11, 8, 1, 2),
    }
    said = describe_steps(candidate, workload(steps=12))
    assert {each.name for each in said[4]} == {"tgate self-attention reused in part"}
    assert "tgate self-attention reused" in {each.name for each in said[9]}


def test_latents_are_finite_where_reuse_is_partial(sd: Any) -> None:
    candidate = {
        "deepcache": {"cache_interval": 4, "cache_branch_id": 0},
        "tgate": tgate_params(11, 8, 1, 2),
    }
    with apply_candidate(sd, candidate):
        assert torch.isfinite(render(sd, steps=12)).all()


# Where the time of a pipeline call goes


def timed(*seconds: float) -> Measurement:
    times = called(2 * sum(seconds), seconds, ())
    return Measurement((0.5,), (1.0,), (30.0,), 1, step_times=(times,))


@pytest.mark.parametrize(
    ("candidate", "seconds", "expected"),
    [
        ({}, (0.1, 0.1), [("plain", 2, 0.5)]),
        (
            CACHE,
            (0.4, 0.1, 0.1, 0.4),
            [("plain", 2, 0.4), ("deepcache partial at branch 0", 2, 0.1)],
        ),
        (
            {"steps": {"num_inference_steps": 2}} | CACHE,
            (0.3, 0.1),
            [("plain", 1, 0.375), ("deepcache partial at branch 0", 1, 0.125)],
        ),
        (TOME, (0.1, 0.1, 0.1, 0.1), [("tome merged at 1/1 (50 %)", 4, 0.5)]),
        # The third call keeps the mean that the fourth, behind the gate, reuses.
        (
            {"tgate": tgate_params(3, 2, 1, 3)} | TOME,
            (0.2, 0.2, 0.3, 0.1),
            [
                ("tome merged at 1/1 (50 %)", 2, 0.25),
                ("tgate mean kept + tome merged at 1/1 (50 %)", 1, 0.1875),
                ("tgate gated + tome merged at 1/1 (50 %)", 1, 0.0625),
            ],
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_time_of_a_call_is_told_by_what_is_done_in_it(
    candidate: dict[str, Any], seconds: tuple[float, ...], expected: list[tuple[str, int, float]]
) -> None:
    table = step_table(timed(*seconds), candidate, workload(steps=2 if not candidate else 4))
    assert table is not None
    *rows, rest = table.rows
    assert [(row.type, row.calls, row.share) for row in rows] == expected
    assert (rest.calls, rest.share) == (None, 0.5)


def test_there_is_no_table_of_what_cannot_be_described() -> None:
    load, measured = workload(steps=4), timed(0.4, 0.1, 0.1, 0.4)
    assert step_table(measured, CACHE, load) is not None
    assert step_table(replace(measured, step_times=()), CACHE, load) is None
    assert step_table(measured, CACHE, replace(load, unet_calls=8)) is None
    for missing in ({"steps": 0}, {"unet_calls": 0}, {"latent_width": 0},
                    {"attention_downsamples": ()}):  # fmt: skip
        assert step_table(measured, TOME, replace(load, **missing)) is None
    for candidate in ({"none": {"depth": 1}}, {"tgate": {"gate_step": 3}}):
        assert step_table(measured, candidate, load) is None
