"""The lines of a running search."""

import logging

import pytest

from tests.support.fakes import FakeEvaluator
from tests.support.searches import run


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="test")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_winner_is_confirmed_on_held_out_prompts_if_there_are_any(lines):
    run(FakeEvaluator())
    (line,) = (line for line in lines() if line.startswith("held-out prompts"))
    assert line.endswith("  pass  confirmed")


def test_without_held_out_prompts_nothing_is_said_of_them(lines):
    evaluator = FakeEvaluator()
    evaluator.held_out_stages = ()
    assert run(evaluator).winner is not None
    assert lines() and "held-out" not in "\n".join(lines())
