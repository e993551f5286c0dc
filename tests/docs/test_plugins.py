"""The accelerator and the strategy that the docs teach, installed and run as they stand there."""

from __future__ import annotations

import shutil

import pytest

from accel_search.search import strategies
from accel_search.traversal_search import main
from tests.support.docs_pages import ROOT


def test_the_strategy_searches_a_recorded_table(installed, tmp_path, monkeypatch, capsys):
    installed("docs/write_strategy.md")
    table = ROOT / "tests/data/tables/deepcache.json.gz"
    shutil.copy(table, tmp_path / table.name)
    monkeypatch.chdir(tmp_path)
    options = ["--replay", table.name, "--targets", "deepcache", "--strategy", "descent"]
    assert main(options) == 0
    out = capsys.readouterr().out
    assert "trial 1/16  deepcache(cache_interval=5, cache_branch_id=0)" in out
    assert "The harshest candidate within the bounds was found" in out
    # A bound that none keeps: all are tried, the harshest first.
    assert main([*options, "--req_score_loss", "0", "--force"]) in (0, 3)


def test_the_strategy_keeps_the_rules_of_all_strategies(installed):
    from tests.support.strategies import (
        RULES,
        every_look_is_at_something_worth_a_look,
        it_ends_and_says_why,
    )

    installed("docs/write_strategy.md")
    strategy = strategies.get("descent")
    for name in ("deepcache", "deepcache,tome"):
        every_look_is_at_something_worth_a_look(strategy, name)
    it_ends_and_says_why(strategy)
    for rule in RULES:
        rule(strategy)


@pytest.mark.slow
def test_the_accelerator_leaves_out_what_it_says_and_leaves_no_trace(installed):
    import torch

    from accel_search import accelerate
    from accel_search.accelerators.computation import describe_steps
    from tests.support.fakes import with_steps
    from tests.support.tiny import make_pipe, render, runs

    installed("docs/write_accelerator.md")
    pipe = make_pipe()
    before = render(pipe, steps=7)
    seen = runs(pipe.unet.mid_block)
    state = vars(pipe.unet.mid_block).copy()
    with accelerate(pipe, {"midcache": {"interval": 3}}):
        fast = render(pipe, steps=7)
        again = render(pipe, steps=7)
    assert len(seen) == 2 * 3  # Calls 0, 3 and 6, in each of two pictures.
    types = describe_steps({"midcache": {"interval": 3}}, with_steps(7))
    assert [not each for each in types] == [True, False, False, True, False, False, True]
    assert not torch.equal(fast, before) and torch.equal(fast, again)
    assert torch.equal(render(pipe, steps=7), before)
    assert vars(pipe.unet.mid_block) == state

    # Beside T-GATE the batch changes at the gate, where it starts anew.
    seen.clear()
    gate = {"gate_step": 5, "sp_interval": 2, "fi_interval": 2, "warmup": 1}
    with accelerate(pipe, {"midcache": {"interval": 3}, "tgate": gate}):
        assert torch.isfinite(render(pipe, steps=7)).all()
    assert torch.equal(render(pipe, steps=7), before)


@pytest.mark.slow
def test_the_accelerator_is_searched_by_name(installed, tmp_path, monkeypatch, capsys):
    from tests.support.options import SMALL

    installed("docs/write_accelerator.md")
    monkeypatch.chdir(tmp_path)
    options = ["--req_score_loss", "1", "--held_out_samples", "0", *SMALL]
    assert main(["--targets", "midcache", "--strategy", "grid", *options]) in (0, 3)
    out = capsys.readouterr().out
    for interval in (2, 3, 5):
        assert f"midcache(interval={interval})" in out
