"""Single UNet calls of real pipelines are timed, and nothing else changes."""

from dataclasses import replace

import pytest
import torch

from accel_search.accelerators.compose import apply_candidate
from accel_search.accelerators.computation import describe_steps, numbered
from accel_search.accelerators.patching import layered
from accel_search.core.candidate import Candidate
from accel_search.core.step_times import StepTimes, steps_to_probe
from accel_search.core.step_timing import speed_within
from accel_search.runtime.measuring.calls import Accounting, Caller
from accel_search.runtime.measuring.evaluator import PipelineEvaluator
from accel_search.runtime.measuring.step_timer import StepTimer, has_hooks, plain_twin
from tests.support.pipelines import prompt_set

PROMPTS = prompt_set(2).search
DEEPCACHE = {"deepcache": {"cache_interval": 2, "cache_branch_id": 0}}
TGATE = {"tgate": {"gate_step": 2, "sp_interval": 2, "fi_interval": 1, "warmup": 1}}
TOME = {"tome": {"ratio": 0.5, "max_downsample": 2}}
CANDIDATES = [DEEPCACHE, TGATE, TOME, DEEPCACHE | TGATE | TOME]


def caller_of(loaded, kind="sd"):
    pipe, workload = loaded(kind)
    return Caller(pipe, apply_candidate, Accounting()), workload


def is_layered(module):
    return "_accel_search_layers" in vars(module)


def names(candidate):
    return "+".join(candidate)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("settings", CANDIDATES, ids=names)
def test_plain_calls_in_between_change_no_picture(loaded, kind, settings):
    caller, workload = caller_of(loaded, kind)
    candidate = Candidate(settings)
    before = dict(vars(loaded(kind)[0].unet))
    images, _ = caller.call(workload, PROMPTS, candidate)
    timer = caller.timer(range(workload.unet_calls))
    probed, seconds = caller.call(workload, PROMPTS, candidate, timer=timer)
    assert torch.equal(images, probed)
    kinds = numbered(describe_steps(candidate, workload))
    times = timer.times(seconds * 2, 2, kinds, workload.unet_calls)
    assert len(times.seconds) == workload.unet_calls
    assert [at for at, _ in times.probes] == list(range(workload.unet_calls))
    assert sum(times.seconds) < times.call == pytest.approx(seconds)
    assert speed_within(times) is not None
    assert dict(vars(loaded(kind)[0].unet)) == before


def test_a_call_is_as_long_as_without_its_plain_calls(loaded, monkeypatch):
    caller, workload = caller_of(loaded)
    clock = iter(range(10_000))
    timer = caller.timer([0, 2])
    # Each look at the clock is a second later than the one before.
    monkeypatch.setattr(timer, "_mark", lambda: float(next(clock)))
    _, seconds = caller.call(workload, PROMPTS, Candidate(TOME), timer=timer)
    times = timer.times(100.0, 2, [1, 1, 1], workload.unet_calls)
    assert times == StepTimes(50.0, (0.5,) * 3, (1, 1, 1), 3, ((0, 0.5), (2, 0.5)))
    assert timer.probing_seconds() == 4.0  # From the end of the UNet call to that of the plain one.
    assert seconds < 0


def test_a_twin_shares_the_weights_and_none_of_the_patches(loaded):
    pipe, _ = loaded("sd")
    twin = plain_twin(pipe.unet)
    theirs = dict(twin.named_parameters())
    for name, weight in pipe.unet.named_parameters():
        assert theirs[name] is weight
    with apply_candidate(pipe, TOME | TGATE):
        patched = [name for name, module in pipe.unet.named_modules() if is_layered(module)]
        assert patched and not any(map(is_layered, twin.modules()))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), KeyError("x")]
)
def test_a_plain_call_that_fails_is_given_up_and_the_picture_made_all_the_same(
    loaded, monkeypatch, caplog, error
):
    caller, workload = caller_of(loaded)
    images, _ = caller.call(workload, PROMPTS, Candidate(TOME))
    calls = []

    def fail(*_args, **_kwargs):
        calls.append(1)
        raise error

    monkeypatch.setattr(type(caller), "_twin", fail)
    timer = caller.timer([0, 1, 2])
    probed, seconds = caller.call(workload, PROMPTS, Candidate(TOME), timer=timer)
    assert torch.equal(images, probed)
    assert (len(calls), caller.times_steps, caller.timer()) == (1, False, None)
    assert timer.times(seconds, 2, [1, 1, 1], 3).probes == ()
    assert "timed in pairs alone" in caplog.text and type(error).__name__ in caplog.text


def test_a_plain_call_gets_the_lists_as_they_were_before_the_call(loaded):
    seen = []

    class Popping(torch.nn.Module):
        def forward(self, residuals):
            return residuals.pop()

    module = Popping()
    timer = StepTimer(torch.device("cpu"), [0], twin=lambda residuals: seen.append(list(residuals)))
    with layered(module, timer):
        module(residuals=[1, 2])
    assert seen == [[1, 2]]


@pytest.mark.parametrize("hook", ["_hf_hook", "_diffusers_hook"])
def test_a_unet_whose_parts_are_moved_by_hooks_has_no_twin(loaded, hook):
    assert caller_of(loaded)[0].times_steps
    unet = loaded("sd")[0].unet
    setattr(unet.mid_block, hook, object())
    try:
        assert has_hooks(unet)
    finally:
        delattr(unet.mid_block, hook)
    assert not has_hooks(unet)


def test_a_pipeline_that_makes_other_calls_than_described_is_not_compared(loaded):
    caller, workload = caller_of(loaded)
    timer = caller.timer()
    caller.call(workload, PROMPTS, timer=timer)
    assert timer.times(1.0, 2, [0] * 5, 5) is None


@pytest.mark.parametrize("settings", [TGATE, DEEPCACHE], ids=names)
def test_an_evaluator_compares_every_candidate_with_plain_calls(evaluator_for, settings):
    evaluator = evaluator_for(search=4)
    evaluator.baseline()
    assert evaluator.times_steps
    measured = evaluator.measure(Candidate(settings), pairs=0)
    assert measured.baseline_seconds_per_image == ()
    assert any(map(speed_within, measured.step_times))
    kinds = numbered(describe_steps(Candidate(settings), evaluator.workload))
    assert {times.kinds for times in measured.step_times} == {tuple(kinds)}
    assert bool(steps_to_probe(kinds)) == any(times.probes for times in measured.step_times)


def test_what_packages_do_is_not_compared_with_calls_that_they_slow_down(evaluator_for):
    own = evaluator_for(search=4)
    where = replace(own.provenance, implementation="package")
    evaluator = PipelineEvaluator(own._caller._pipe, own._scorer, own.prompts, own.workload, where)
    evaluator.baseline()
    measured = evaluator.measure(Candidate(TOME), pairs=2)
    assert not evaluator.times_steps
    assert measured.step_times == () and len(measured.seconds_per_image) == 2
