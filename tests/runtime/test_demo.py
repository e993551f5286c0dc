"""The embedded demo, through the very code that loads any other pipeline."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext

import pytest

from accel_search.core.candidate import Candidate
from accel_search.core.intervals import score_loss
from accel_search.runtime.workbench import open_evaluator
from accel_search.settings import Settings
from tests.support.pipelines import LOG


@pytest.fixture(scope="module")
def evaluator():
    return open_evaluator(
        Settings(num_samples=4, batch_size=2, timing_pairs=1, steps=8, device="cpu", threads=1), LOG
    )


def test_the_demo_needs_no_options(evaluator):
    workload = evaluator.workload

    assert workload.pipeline == evaluator.provenance.model_id == "demo"
    assert {1, 2, 4} <= set(workload.attention_downsamples)
    assert workload.guidance_scale != 7.5  # its own, from demo.json
    assert evaluator.prompts.source == "builtin"
    assert evaluator.provenance.clip_model.startswith("demo@")
    assert len(evaluator._caller._pipe.unet.down_blocks) == 4


def test_there_are_prompts_for_the_default_search_and_its_confirmation():
    from accel_search.runtime.loading.prompts import load_prompts

    chosen = load_prompts(Settings())

    assert len(chosen.search) == len(chosen.held_out) == 32


def test_its_pictures_follow_their_prompts(evaluator):
    baseline = evaluator.baseline()
    texts = [prompt.text for prompt in evaluator.prompts.search]
    assert min(baseline.scores) > 20

    images, _ = evaluator._caller.call(evaluator.workload, evaluator.prompts.search)
    own = evaluator._scorer.score(images, texts)
    shuffled = evaluator._scorer.score(images, texts[1:] + texts[:1])

    assert sum(own) / 4 > sum(shuffled) / 4 + 10
    assert own == pytest.approx(baseline.scores, abs=0.1)


def test_each_accelerator_leaves_it_bit_identical(evaluator):
    settings = {
        "deepcache": {"cache_interval": 3, "cache_branch_id": 0},
        "tgate": {"gate_step": 5, "sp_interval": 2, "fi_interval": 2, "warmup": 1},
        "tome": {"ratio": 0.5, "max_downsample": 1},
    }
    for candidate in (*({name: settings[name]} for name in settings), settings):
        measured = evaluator.measure(Candidate(candidate), "search", range(2), 1)
        assert len(measured.scores) == 2
        evaluator.check()


@pytest.mark.slow
def test_too_much_acceleration_costs_score():
    evaluator = open_evaluator(Settings(num_samples=8, device="cpu", threads=1), LOG)

    def scores(gate_step):
        settings = {"gate_step": gate_step, "sp_interval": 2, "fi_interval": 1, "warmup": 3}
        candidate = Candidate({"tgate": settings}) if gate_step else Candidate()
        found = []
        for first in (0, 4):
            prompts = evaluator.prompts.search[first : first + 4]
            images, _ = evaluator._caller.call(evaluator.workload, prompts, candidate)
            found += evaluator._scorer.score(images, [prompt.text for prompt in prompts])
        return found

    baseline = scores(None)
    mild, harsh = score_loss(baseline, scores(15)), score_loss(baseline, scores(5))
    assert harsh.low > 0 and harsh.value > 5 * max(mild.high, 0.02)


def test_the_unmerged_value_that_is_reused_is_nearer_than_naive_stacking_would_be(evaluator):
    """What self-attention hands on in steps that reuse it, against what it computes by itself."""
    from accel_search.accelerators.compose import apply_candidate
    from accel_search.accelerators.patching import Layer, layered, transformers
    from accel_search.accelerators.tgate import REUSE, schedule
    from tests.support.generation import generate
    from tests.support.stacks import stacked

    steps, interval = 8, 3
    tome = {"ratio": 0.7, "max_downsample": 2}
    tgate = {"gate_step": 7, "sp_interval": interval, "fi_interval": 1, "warmup": 1}
    pipe, prompts = evaluator._caller._pipe, evaluator.prompts.search[:2]
    blocks = [block for each in transformers(pipe.unet) for block in each.transformer_blocks]

    def handed_on(applied):
        found = []

        class Spy(Layer):
            def run(self, attn, /, *args, **kwargs):
                output = self.inner(attn, *args, **kwargs)
                found.append(output.clone())
                return output

        with applied, ExitStack() as stack:
            for block in blocks:
                stack.enter_context(layered(block.attn1, Spy()))
            generate(pipe, evaluator.workload, prompts)
        return found

    plain = handed_on(nullcontext())
    ours = handed_on(apply_candidate(pipe, {"tome": tome, "tgate": tgate}))
    theirs = handed_on(stacked(pipe, tome, tgate))
    modes = schedule(steps, 7, interval, 1, 1)[:6]
    reused = [i for i, mode in enumerate(modes) if mode.self_attention == REUSE]
    assert len(plain) == len(ours) == len(theirs) == steps * len(blocks) and reused

    def error(values):
        parts = [step * len(blocks) + block for step in reused for block in range(len(blocks))]
        gaps = [float((values[i] - plain[i]).norm() / plain[i].norm()) for i in parts]
        return sum(gaps) / len(gaps)

    print(f"relative error of the reused value: un-merged {error(ours):.3f}, "
          f"stacked {error(theirs):.3f}")  # fmt: skip
    assert error(ours) < 0.85 * error(theirs)
