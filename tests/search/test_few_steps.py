"""What is said of few UNet calls before anything is measured, on plans and on tiny pipelines."""

from __future__ import annotations

import pytest

from accel_search.accelerators.compose import apply_candidate
from accel_search.errors import ConfigurationError, NothingMeasured
from accel_search.runtime.loading.expected import expected_workload
from accel_search.search.few_steps import check_gain
from accel_search.search.space import JointSpace
from accel_search.settings import Settings
from tests.support.tiny import make_pipe, render, runs, workload


def said(calls, *targets, **options):
    load = workload(steps=calls, guidance_scale=options.pop("guidance", 1.0))
    return check_gain(Settings(targets=targets or ("deepcache",), **options), load)


def test_one_call_leaves_nothing_to_reuse():
    with pytest.raises(NothingMeasured, match="at 1 UNet call deepcache can gain nothing"):
        said(1)
    # ToMe works within a call.
    assert said(1, "deepcache", "tome")[0].startswith("deepcache can gain nothing at 1 UNet call")
    assert said(1, "tome") == []


@pytest.mark.parametrize(
    ("calls", "distinct", "reused", "most", "reach"),
    [(2, 4, "1 of them", "2.0", 50), (3, 8, "1 to 2", "3.0", 33), (4, 12, "2 to 3", "4.0", 25)],
)
def test_the_bound_is_of_the_plan(calls, distinct, reused, most, reach):
    (line,) = said(calls)
    assert f"deepcache has little to gain at {calls} UNet calls" in line
    assert f"reuse features in {reused}" in line and f"at most {most} times as fast" in line
    assert f"over {reach} % of the denoising or more" in line and "more than 20 %" in line
    space = JointSpace(("deepcache",), workload(steps=calls))
    assert (space.point_count, len(space)) == (16, distinct)
    # Of the values that are searched, and of no others.
    values = {"deepcache": {"cache_interval": (2,), "cache_branch_id": (0,)}}
    (line,) = said(calls, space=values)
    assert f"in {calls // 2} of them (at most {calls / (calls - calls // 2):.1f} times" in line


@pytest.mark.parametrize("calls", [5, 8, 20, 50])
def test_nothing_is_said_where_no_more_is_reused_than_usual(calls):
    assert said(calls) == said(calls, "tome") == []
    assert calls < 6 or said(calls, "steps", guidance=5.0) == []


def test_tgate_needs_steps_after_the_gate_and_guidance_to_halve():
    with pytest.raises(ConfigurationError, match="tgate: no value of gate_step"):
        said(4, "tgate")
    (line,) = said(8, "tgate")
    assert line.startswith("tgate halves no UNet call without guidance (guidance scale 1)")
    assert said(8, "tgate", guidance=5.0) == []


def test_an_empty_space_at_any_number_of_steps_is_left_to_the_search():
    values = {"tome": {"ratio": (0.0,)}}
    assert said(1, "tome", space=values) == []


@pytest.mark.parametrize(
    ("sched", "steps", "calls"),
    [("LCM", 4, 4), ("Euler(spacing=trailing)", 1, 1), ("TCD", 8, 8), ("Heun", 2, 3)],
)
def test_the_calls_of_a_sampler_are_known_before_the_pipeline_is(sched, steps, calls):
    expected = expected_workload(Settings(sched=sched, steps=steps, guidance_scale=0.0))
    assert expected.unet_calls == calls and not expected.has_guidance
    assert expected_workload(Settings(steps=5000)) is None  # Its line comes with the model.


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_the_plans_are_what_the_pipeline_does(steps):
    pipe = make_pipe("SD", "LCMScheduler")
    full = runs(pipe.unet.mid_block)
    space = JointSpace(("deepcache",), workload(steps=steps, guidance_scale=1.0))
    counts = set()
    for position in range(len(space)):
        full.clear()
        with apply_candidate(pipe, space.candidate_at(position)):
            render(pipe, steps=steps, guidance_scale=1.0)
        counts.add(steps - len(full))
    expected = {2: {1}, 4: {2, 3}, 8: {4, 5, 6}}[steps]
    assert counts == expected
