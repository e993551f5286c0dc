"""The embedded demo, through the very code that loads any other pipeline."""

from __future__ import annotations

import pytest

from accel_search.records import Candidate
from accel_search.runtime.evaluator import open_evaluator
from accel_search.settings import Settings
from accel_search.statistics import score_loss
from tests.runtime.conftest import LOG


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
    from accel_search.runtime.prompts import load_prompts

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
    for settings in (
        {"deepcache": {"cache_interval": 3, "cache_branch_id": 0}},
        {"tome": {"ratio": 0.5, "max_downsample": 1}},
        {"tgate": {"gate_step": 5, "sp_interval": 2, "fi_interval": 2, "warmup": 1}},
        {
            "deepcache": {"cache_interval": 3, "cache_branch_id": 0},
            "tome": {"ratio": 0.5, "max_downsample": 1},
            "tgate": {"gate_step": 5, "sp_interval": 2, "fi_interval": 2, "warmup": 1},
        },
    ):
        measured = evaluator.measure(Candidate(settings), "held_out")
        assert len(measured.scores) == 4
        evaluator.check()


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
    assert harsh.low > max(mild.high, 0.02)
