"""A compiled UNet: accelerators still patch it, calls that compile are not timed."""

from __future__ import annotations

import logging

import pytest
import torch
import torch._dynamo
from diffusers import UNet2DConditionModel

import accel_search
from accel_search.accelerators.compose import apply_candidate
from accel_search.core.candidate import Candidate
from accel_search.errors import AcceleratorError
from accel_search.runtime.attention import use_kernel
from accel_search.runtime.compiling import RECOMPILE_LIMIT, compile_unet, graphs_compiled
from accel_search.runtime.loading.pipelines import load_pipeline
from accel_search.runtime.measuring import calls
from accel_search.runtime.measuring.calls import Accounting, Caller
from tests.support.pipelines import LOG, prompt_set

CAN_COMPILE = hasattr(UNet2DConditionModel, "compile_repeated_blocks") and hasattr(
    torch._dynamo.config, "recompile_limit"
)
pytestmark = pytest.mark.skipif(not CAN_COMPILE, reason="diffusers or torch is too old for it")

ALL = Candidate(
    {
        "deepcache": {"cache_interval": 2, "cache_branch_id": 0},
        "tgate": {"gate_step": 3, "sp_interval": 2, "fi_interval": 2, "warmup": 1},
        "tome": {"ratio": 0.5, "max_downsample": 2},
    }
)


@pytest.fixture(scope="module")
def compiled(settings_for):
    """Return SDXL in small, its UNet compiled: seconds of a C++ compiler's work."""
    pipe, _ = load_pipeline(settings_for("sdxl"), LOG)
    accel_search.compile_unet(pipe)
    return pipe


@pytest.fixture
def workload(loaded):
    from dataclasses import replace

    return replace(loaded("sdxl")[1], steps=5, unet_calls=5)


@pytest.mark.slow
def test_it_makes_the_same_pictures_bare_and_accelerated_and_compiles_once(
    compiled, loaded, workload
):
    prompts = prompt_set(2).search
    plain = Caller(loaded("sdxl")[0], apply_candidate, Accounting())
    caller = Caller(compiled, apply_candidate, Accounting(), compiled=True)
    bare = caller.call(workload, prompts)[0]
    assert torch.allclose(bare, plain.call(workload, prompts)[0], atol=1e-4)
    before = graphs_compiled()
    accelerated = caller.call(workload, prompts, ALL)[0]
    assert torch.allclose(accelerated, plain.call(workload, prompts, ALL)[0], atol=1e-4)
    # What T-GATE and ToMe do is compiled too, and not anew for each call or block.
    made = graphs_compiled() - before
    assert 2 <= made <= 16 < RECOMPILE_LIMIT
    assert torch.equal(caller.call(workload, prompts, ALL)[0], accelerated)
    assert torch.equal(caller.call(workload, prompts)[0], bare)
    assert graphs_compiled() - before == made


def test_a_call_that_compiles_is_made_again_before_it_is_timed(compiled, workload, monkeypatch):
    graphs = iter([0, 2, 2, 2])  # Before and after each call: the first compiles two.
    monkeypatch.setattr(calls, "graphs_compiled", lambda: next(graphs))
    account = Accounting()
    caller = Caller(compiled, apply_candidate, account, compiled=True)
    _, seconds = caller.call(workload, prompt_set(2).search)
    assert next(graphs, None) is None
    assert 2 * seconds < account.pipeline_seconds  # Two calls were made, and the last one counts.


def test_what_compiles_at_every_call_cannot_be_timed(compiled, workload, monkeypatch):
    graphs = iter(range(100))
    monkeypatch.setattr(calls, "graphs_compiled", lambda: next(graphs))
    caller = Caller(compiled, apply_candidate, Accounting(), compiled=True)
    with pytest.raises(AcceleratorError, match="--compile: the baseline pipeline compiles at"):
        caller.call(workload, prompt_set(1).search)


def test_an_accelerator_that_cannot_be_compiled_is_refused(settings_for, workload):
    from contextlib import contextmanager

    from accel_search.accelerators.patching import Layer, layered, transformers

    pipe, _ = load_pipeline(settings_for("sdxl"), LOG)
    compile_unet(pipe)

    @contextmanager
    def untraceable(pipe, candidate):
        class Untraceable(Layer):
            def run(self, module, /, states, *args, **kwargs):
                print(torch.Generator().seed())
                return states

        with layered(transformers(pipe.unet)[0].transformer_blocks[0].ff, Untraceable()):
            yield

    caller = Caller(pipe, untraceable, Accounting(), compiled=True)
    with pytest.raises(AcceleratorError, match=r"--compile: tome.* cannot be compiled .*target"):
        caller.call(workload, prompt_set(1).search, Candidate({"tome": {"ratio": 0.5}}))


@pytest.mark.slow
def test_each_attention_kernel_has_graphs_of_its_own(settings_for, tmp_path, monkeypatch):
    """Neither in memory nor on disk are graphs of another kernel taken for its own."""
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def made(kernel):
        """Return how many graphs are new to the process, and how many of those were on disk."""
        pipe, _ = load_pipeline(settings_for("sd"), LOG)
        use_kernel(pipe, kernel)
        compile_unet(pipe, kernel)
        graphs, found = graphs_compiled(), counters["inductor"]["fxgraph_cache_hit"]
        with torch.no_grad():
            states = torch.ones(1, 24, 16)
            pipe.unet(torch.ones(1, 4, 16, 16), 1, encoder_hidden_states=states)
        return graphs_compiled() - graphs, counters["inductor"]["fxgraph_cache_hit"] - found

    torch._dynamo.reset()
    graphs, found = made("math")
    assert graphs >= 2 and found == 0
    assert made("flash") == made("auto") == (graphs, 0)
    assert made("math") == made("flash") == (0, 0)
    torch._dynamo.reset()  # As a new process has it.
    assert made("flash") == made("math") == (graphs, graphs)


def test_it_is_part_of_what_a_result_hangs_on(settings_for, monkeypatch):
    from accel_search.runtime import workbench

    asked = []
    monkeypatch.setattr(workbench, "compile_unet", lambda _, kernel: asked.append(kernel))
    settings = settings_for("sdxl", compile=True, num_samples=2, held_out_samples=0)
    measures = workbench.open_evaluator(settings, logging.getLogger("tests"))
    assert asked == ["auto"] and measures.provenance.compiled
    plain = workbench.open_evaluator(
        settings_for("sdxl", num_samples=2, held_out_samples=0), logging.getLogger("tests")
    )
    stored = plain.provenance.as_dict()
    assert measures.provenance.differences(stored) == ["compiled"]
    del stored["compiled"]  # As a file of before has it.
    assert measures.provenance.differences(stored) == ["compiled"]
    assert plain.provenance.differences(stored) == []
    assert "compiled" not in plain.provenance.identity()


@pytest.mark.slow
def test_loras_are_compiled_with_the_blocks(made, settings_for, workload, tmp_path):
    from scripts.make_random_pipeline import write_lora

    from accel_search.runtime.loading.lora.files import find_loras

    file = write_lora(tmp_path / "lora.safetensors", made / "sdxl", "SDXL")
    settings = settings_for("sdxl", lora=(f"{file}:0.8",))
    pipe, _ = load_pipeline(settings, LOG, loras=find_loras(settings, LOG))
    prompts = prompt_set(2).search
    plain = Caller(pipe, apply_candidate, Accounting())
    bare, fast = (plain.call(workload, prompts, one)[0] for one in (None, ALL))
    compile_unet(pipe)
    caller = Caller(pipe, apply_candidate, Accounting(), compiled=True)
    assert torch.allclose(caller.call(workload, prompts)[0], bare, atol=1e-4)
    assert torch.allclose(caller.call(workload, prompts, ALL)[0], fast, atol=1e-4)
