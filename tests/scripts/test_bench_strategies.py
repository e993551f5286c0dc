"""The benchmark of strategies: every call is charged, and the truth is what no search sees."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.pipelines import LOG

import bench_strategies
import simulated_search
from accel_search.core.candidate import Candidate
from accel_search.runtime.measuring.evaluator import NOISE_PAIRS
from accel_search.runtime.workbench import open_evaluator
from accel_search.settings import Settings
from simulated_search import SimulatedEvaluator, World, draw_parts, load

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "tests" / "data" / "tables"
SDXL = ROOT / "tests" / "data" / "latency_sdxl_h200.json"

CELL = bench_strategies.Cell(TABLES / "deepcache.json.gz", SDXL, 0.02, "split", 16, 16)


def world(name="deepcache", seed=0, samples=16, table=None):
    table = table or load(TABLES / f"{name}.json.gz", SDXL)
    return World(table, draw_parts("split", 64, samples, samples, seed), seed)


def test_every_strategy_is_played_and_what_it_is_worth_and_costs_is_written(
    monkeypatch, tmp_path, capsys
):
    out = tmp_path / "strategies.json"
    others = ["random", "halving", "tpe", "grid"]
    options = ["--bounds", "0.05", "--searches", "2", "--budget", "2", "--strategies", *others]
    table = str(TABLES / "deepcache.json.gz")
    command = ["bench", "--table", table, "--seconds", str(SDXL), "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", command)
    bench_strategies.main()
    entries = {entry["strategy"]: entry for entry in json.loads(out.read_text())}
    assert list(entries) == ["guided", *others]
    guided, grid = entries["guided"], entries["grid"]
    # Nearly all of DeepCache is within 5 %: the fastest wins.
    assert guided["none"] == 0 and guided["over"] == 0 and guided["share"] > 0.95
    assert 1 < guided["times_oracle"] < grid["times_oracle"] and grid["trials"] == 16
    assert entries["random"]["budget"] == pytest.approx(2 * guided["searching"], rel=1e-3)
    assert all(entry["cost"] > entry["oracle"] > 0 for entry in entries.values())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(entries) and all(line.count("|") == 13 for line in lines)


def test_the_same_calls_are_charged_that_the_real_evaluator_makes(monkeypatch):
    from diffusers import StableDiffusionPipeline

    images, original = [], StableDiffusionPipeline.__call__

    def call(pipe, **arguments):
        images.append(len(arguments["prompt"]))
        return original(pipe, **arguments)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", call)
    # Two steps: a warm-up on the CPU is then a whole call, as it is on a GPU.
    size = {"steps": 2, "height": 64, "width": 64, "batch_size": 4}
    settings = Settings(device="cpu", num_samples=16, held_out_samples=16, **size)
    table = load(TABLES / "deepcache.json.gz", SDXL)
    simulated = World(table, draw_parts("drawn", 64, 16, 16, 0), 0)
    simulated.log_speedup[:] = 0.0
    real, charged = open_evaluator(settings, LOG), SimulatedEvaluator(simulated)
    candidate = Candidate({"deepcache": {"cache_interval": 2, "cache_branch_id": 0}})
    assert NOISE_PAIRS == simulated_search.NOISE_PAIRS and charged.pairs == real.pairs
    for steps in (
        lambda evaluator: evaluator.baseline(),
        lambda evaluator: evaluator.measure(candidate, prompts=range(4), pairs=1),
        lambda evaluator: evaluator.measure(candidate, prompts=range(4, 8), pairs=1),
        lambda evaluator: evaluator.measure(candidate, prompts=range(8, 16), pairs=2),
        lambda evaluator: evaluator.baseline("held_out", range(16)),
        lambda evaluator: evaluator.measure(candidate, "held_out", range(16)),
        lambda evaluator: evaluator.baseline("held_out", range(16, 32)),
        lambda evaluator: evaluator.measure(candidate, "held_out", range(16, 32), pairs=0),
        lambda evaluator: evaluator.check(),
    ):
        images.clear()
        before = sum(charged.charged.values())
        one, other = steps(real), steps(charged)
        assert sum(charged.charged.values()) - before == sum(images) > 0
        if one is not None:
            lengths = ("seconds_per_image", "baseline_seconds_per_image", "scores")
            assert all(len(getattr(one, name)) == len(getattr(other, name)) for name in lengths)


def test_a_search_is_charged_for_the_baseline_every_stage_its_pairs_and_held_out_prompts():
    """The charges of a whole search by what its measurements say, independent of the ledger."""
    calls = []

    class Noted(SimulatedEvaluator):
        def baseline(self, split="search", prompts=None):
            calls.append(("baseline", split, super().baseline(split, prompts), 1.0))
            return calls[-1][2]

        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            measured = super().measure(candidate, split, prompts, pairs, turn)
            position = self._world.table.space.position(candidate)
            time = 0.0 if position is None else math.exp(-self._world.log_speedup[position])
            calls.append(("candidate", split, measured, time))
            return measured

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_strategies, "SimulatedEvaluator", Noted)
        played = bench_strategies.play(CELL, "guided", None, 0)
    least = {}
    for kind, split, measured, time in calls:
        images = simulated_search.BATCH * len(measured.seconds_per_image)
        pairs = simulated_search.BATCH * len(measured.baseline_seconds_per_image)
        least[kind, split] = least.get((kind, split), 0.0) + images * time + pairs
    assert least["baseline", "search"] >= 32 and least["baseline", "held_out"] >= 32
    assert least["candidate", "held_out"] > 0
    assert sum(least.values()) <= played.cost < 1.3 * sum(least.values())
    searching = least["baseline", "search"] + least["candidate", "search"]
    assert played.searching == pytest.approx(searching, rel=0.3)
    # A first look is at four prompts beside one call of the baseline, not at all three pairs.
    first = next(measured for kind, _, measured, _ in calls if kind == "candidate")
    assert len(first.scores) == 4 and len(first.baseline_seconds_per_image) == 1


def test_the_oracle_pays_for_the_baseline_and_the_best_once():
    simulated = world()
    best = simulated.best_within(0.02)
    time = math.exp(-simulated.log_speedup[best])
    # 4 batches of 4, all of them twice, on both parts; a candidate beside 4; two warm-up calls and
    # the images that check.
    baseline = 2 * (16 + 16 + 1) + 4
    assert simulated_search.oracle_cost(simulated, best) == pytest.approx(
        baseline + 2 * (16 * time + 16) + 4 * time
    )
    assert simulated_search.oracle_cost(simulated, None) == baseline


@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_that_judges_is_one_that_was_searched_or_validated_on(seed):
    parts = draw_parts("split", 64, 16, 16, seed)
    all_of_them = np.concatenate([parts.search, parts.held_out, parts.judged])
    assert sorted(all_of_them) == list(range(64))
    assert len(parts.search) == parts.stages[0] == parts.stages[-1] == 16
    other = draw_parts("split", 64, 16, 16, seed + 1)
    assert list(other.judged) != list(parts.judged)
    drawn = draw_parts("drawn", 64, 32, 32, seed)
    assert drawn.stages == (32, 64, 128) and list(drawn.judged) == list(range(64))
    assert len(drawn.search) == 32 and len(drawn.held_out) == 128


def test_what_a_search_sees_decides_the_winner_and_what_it_does_not_see_judges_it(monkeypatch):
    table = load(CELL.table, SDXL)
    parts = world().parts
    before = bench_strategies.play(CELL, "guided", None, 0)
    assert before.loss < 0.02 and not before.is_surely_over
    scores = table.scores.copy()
    scores[:, parts.judged] *= 0.5  # Every candidate is ruined on the prompts that judge.
    monkeypatch.setattr(bench_strategies, "load", lambda *_: replace(table, scores=scores))
    after = bench_strategies.play(CELL, "guided", None, 0)
    assert (after.speedup, after.cost) == (before.speedup, before.cost)
    assert after.loss == pytest.approx(0.5, abs=0.02) and after.is_surely_over
    assert after.best == 1.0  # Nothing is truly within the bound.
    scores = table.scores.copy()
    scores[:, parts.search] *= 0.5
    monkeypatch.setattr(bench_strategies, "load", lambda *_: replace(table, scores=scores))
    nothing = bench_strategies.play(CELL, "guided", None, 0)
    assert nothing.speedup is None and nothing.best == before.best


def test_each_candidate_deviates_from_the_latency_model_by_its_own():
    one, again, other = world("tgate"), world("tgate"), world("tgate", seed=1)
    own = one.log_speedup - one.table.log_speedup
    assert own.std() == pytest.approx(0.03, rel=0.1) and abs(own.mean()) < 0.003
    assert (one.log_speedup == again.log_speedup).all()
    assert abs(np.corrcoef(own, other.log_speedup - other.table.log_speedup)[0, 1]) < 0.1
    # Readings are of the deviating time: by many of them, it is what a candidate takes.
    evaluator, candidate = SimulatedEvaluator(one), one.table.space.candidate_at(7)
    readings = [evaluator.measure(candidate, pairs=40).seconds_per_image for _ in range(20)]
    error = float(np.mean(one.table.errors))
    assert np.log(readings).mean() == pytest.approx(error - one.log_speedup[7], abs=0.005)


def test_the_times_of_another_pipeline_are_taken_where_they_are_given():
    own, other = (load(TABLES / "deepcache.json.gz", path) for path in (None, SDXL))
    assert (own.scores == other.scores).all() and (own.log_speedup != other.log_speedup).any()
    measured = {
        json.dumps(row["candidate"]): row["speedup"]
        for row in json.loads(SDXL.read_text())["measured"]
    }
    fastest = own.space.candidate_at(int(np.argmax(other.log_speedup)))
    assert fastest.as_dict() == {"deepcache": {"cache_interval": 5, "cache_branch_id": 0}}
    assert math.exp(other.log_speedup.max()) == pytest.approx(
        measured[json.dumps(fastest.as_dict())], rel=0.05
    )


def test_first_prompts_that_tell_nothing_make_no_endless_search():
    # The first four prompts of this seed lose nothing of any candidate.
    cell = bench_strategies.Cell(TABLES / "tgate.json.gz", SDXL, 0.01, "drawn", 32, 32)
    played = bench_strategies.play(cell, "guided", None, 154)
    assert played.trials < 120 and played.cost < 3000


def test_few_prompts_that_cannot_tell_near_equals_apart_make_no_endless_search():
    cell = bench_strategies.Cell(TABLES / "deepcache-tgate.json.gz", SDXL, 0.02, "drawn", 8, 8)
    played = bench_strategies.play(cell, "guided", None, 3)
    assert played.trials < 100
