"""What is said where an accelerator gains nothing, and how sure it sounds."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import pytest

from accel_search import accelerators
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate
from accel_search.report.console.summary import stored_summary
from accel_search.search import explain
from accel_search.search.loop import Budget
from accel_search.search.space import JointSpace
from accel_search.search.speed_bound import SpeedBoundSearch
from accel_search.settings import Settings
from accel_search.storage.search_results import entry_of
from accel_search.storage.trials_db import TrialStore
from tests.support.fakes import WORKLOAD, FakeEvaluator
from tests.support.joint import ALWAYS, BOTH, FLASH, jointly
from tests.support.searches import run
from tests.support.timer import Timer

TOME = JointSpace(("tome",), WORKLOAD)


def of_speed(speedup, provenance=FLASH, targets=("tome",), **options):
    evaluator = FakeEvaluator(lambda candidate: (speedup, 0.0), noise=options.pop("noise", 0.002))
    outcome = run(evaluator, targets=targets, **options)
    return explain.of_search(outcome, JointSpace(targets, WORKLOAD), provenance)


def test_what_is_slower_does_not_pay_and_the_kernel_in_use_is_why():
    said = of_speed(0.9)
    assert said.startswith("tome does not pay here: none of the settings measured (")
    assert "is faster than the baseline: matching tokens takes time of its own" in said
    assert "the attention kernel in use, flash, never stores attention's matrix" in said


def test_what_cannot_be_told_from_the_bare_pipeline_is_not_said_to_be_slower():
    said = of_speed(1.0, noise=0.05)
    assert said.startswith("tome is not shown to pay here: ")
    assert "too noisy to rule it out" in said and "more --timing_pairs" in said
    assert "does not pay" not in said


def test_a_search_that_ended_early_has_not_seen_all():
    said = of_speed(0.9, budget=Budget(max_trials=3))
    assert said.startswith("tome does not pay so far: none of the settings measured (3) is shown")
    assert "the search ended with others left" in said


def test_nothing_is_said_where_something_is_gained_or_nothing_was_measured():
    assert of_speed(1.2) is None
    failed = FakeEvaluator(fails=frozenset(TOME.candidate_at(i) for i in range(len(TOME))))
    assert explain.of_search(run(failed, targets=("tome",)), TOME, FLASH) is None


@pytest.mark.parametrize(
    "attention, expected, not_expected",
    [
        ("native (cudnn)", "kernel in use, cudnn, never stores", "large pictures above all"),
        ("native (efficient)", "kernel in use, efficient, never stores", "above all"),
        ("native (math)", "more than attention by math saves on fewer tokens", "never stores"),
        ("XFormersAttnProcessor", "attention by XFormersAttnProcessor saves", "never stores"),
        ("native", "more than attention saves on fewer tokens", " by "),
        (None, "more than attention saves on fewer tokens", " by "),
    ],
)
def test_the_reason_is_that_of_the_attention_in_use(attention, expected, not_expected):
    said = accelerators.get("tome").why_no_gain(attention)
    assert expected in said and not_expected not in said


def test_an_accelerator_gives_its_own_reason_or_none(monkeypatch):
    assert of_speed(0.9, targets=("deepcache",)).endswith("faster than the baseline.")
    asked = []
    monkeypatch.setattr(
        type(accelerators.get("deepcache")),
        "why_no_gain",
        lambda self, attention: asked.append(attention) or "it was raining",
    )
    assert of_speed(0.9, targets=("deepcache",)).endswith("than the baseline: it was raining.")
    assert of_speed(1.0, targets=("deepcache",), noise=0.05).endswith(": it was raining.")
    assert asked == ["native (flash)"] * 2
    assert of_speed(0.9, None, targets=("deepcache",)) and asked[-1] is None  # A replay's.


def test_in_a_joint_search_the_target_that_costs_time_is_named(monkeypatch):
    _, _, said = jointly(0.8, monkeypatch)
    assert said.startswith(
        "tome costs time here: deepcache(cache_interval=3, cache_branch_id=0) is"
    )
    assert "is 3.00 times as fast as the baseline, and with tome(ratio=0.5, " in said
    assert re.search(r"\) 2\.[34]\d times: matching tokens takes time of its own, and ", said)
    assert said.endswith("Search without it.") and "deepcache costs" not in said


def test_the_winner_is_timed_without_each_target_where_no_candidate_goes_without(monkeypatch):
    outcome, calls, said = jointly(0.8, monkeypatch, ALWAYS)
    assert [each.target for each in outcome.ablations] == ["deepcache", "tome"]
    alone = Candidate({"deepcache": outcome.winner.trial.candidate["deepcache"]})
    assert [prompts for candidate, _, prompts in calls if candidate == alone] == [range(4)]
    assert re.search(
        r"^tome costs time here: deepcache\(cache_interval=3, .*\) is (3\.0|2\.9)\d times as fast "
        r"as the baseline, and with tome\(ratio=0\.[35], .*\) 2\.[34]\d times: matching ",
        said,
    )
    assert "deepcache costs" not in said
    settings = Settings(targets=ALWAYS.targets)
    entry = entry_of(outcome, settings, ALWAYS.summary(), WORKLOAD, FLASH, "study", said)
    assert entry.no_gain == said
    assert said in " ".join(stored_summary(entry, settings).split())
    without = entry.evidence.without
    assert without["tome"].speedup == pytest.approx(3.0, rel=0.05)
    assert without["deepcache"].speedup_interval[1] < 0.9


@pytest.mark.parametrize("space", [BOTH, ALWAYS])
def test_in_a_joint_search_a_target_that_gains_is_not_spoken_of(monkeypatch, space):
    assert jointly(1.2, monkeypatch, space)[2] is None


def test_a_target_that_the_winner_is_as_fast_without_is_not_shown_to_pay(monkeypatch):
    outcome, _, said = jointly(1.0, monkeypatch, ALWAYS)
    with_it, without = outcome.winner.assessment.speedup, outcome.ablations[1].assessment.speedup
    assert with_it.low <= without.high
    figures = [f"{each.value:.2f} [{each.low:.2f}, {each.high:.2f}]" for each in (without, with_it)]
    assert said.startswith(
        f"tome is not shown to pay here: without it the winner is {figures[0]} times as fast as "
        f"the baseline, and with it {figures[1]}, which may be noise (use more --timing_pairs"
    )
    assert " It may gain nothing: matching tokens takes time" in said and "deepcache" not in said


def test_a_target_that_the_winner_makes_no_use_of_is_named(monkeypatch):
    # It costs no more than noise, so that no figure tells.
    outcome, _, said = jointly(0.999, monkeypatch, BOTH)
    assert outcome.winner.trial.candidate["tome"]["ratio"] == 0.0
    assert [each.target for each in outcome.ablations] == ["deepcache"]  # No need to time it.
    assert said == ("tome adds nothing to the winner: its settings there change no computation.")


def test_a_target_that_cannot_be_left_out_is_passed_over(monkeypatch):
    alone = Candidate({"deepcache": {"cache_interval": 3, "cache_branch_id": 0}})
    monkeypatch.setattr(
        "tests.support.joint.FakeEvaluator", partial(FakeEvaluator, fails=frozenset([alone]))
    )
    outcome, _, said = jointly(0.8, monkeypatch, ALWAYS)
    assert [each.target for each in outcome.ablations] == ["deepcache"] and said is None


def bound_of(timer):
    store = TrialStore(None, "study", TOME.values())

    class Deaf:
        def __getattr__(self, name):
            return lambda *_: None

    return SpeedBoundSearch(timer, TOME, store, Deaf(), 3).run()


def test_of_speed_alone_the_same_is_said_of_the_fastest():
    slow = bound_of(Timer(slower=5.0))
    said = explain.of_bound(slow, ("tome",), FLASH)
    assert said.startswith(f"tome does not pay here: none of the settings measured ({slow.timed})")
    noisy = replace(slow, speedup=Estimate(1.02, 1.01, 1.03), noise_floor=0.05)
    assert explain.of_bound(noisy, ("tome",), FLASH).startswith("tome is not shown to pay here: ")
    early = explain.of_bound(replace(slow, settled=False), ("tome",), FLASH)
    assert early.startswith("tome does not pay so far: ")
    gain = replace(slow, speedup=Estimate(1.5, 1.4, 1.6))
    assert explain.of_bound(gain, ("tome",), FLASH) is None
    assert explain.of_bound(slow, ("deepcache", "tome"), FLASH).startswith("deepcache + tome does")
