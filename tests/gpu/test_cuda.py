"""What only a CUDA device can show: real timings, real memory, real shortage, half precision.

Run with `make test-gpu`. The pipelines are random: nothing here is about quality.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from accel_search.accelerators.compose import apply_candidate  # noqa: E402
from accel_search.core.candidate import Candidate  # noqa: E402
from accel_search.core.workload import Prompt, PromptSet  # noqa: E402
from accel_search.errors import ExitCode, OutOfMemoryError  # noqa: E402
from accel_search.runtime import memory  # noqa: E402
from accel_search.runtime.loading.pipelines import describe_workload, load_pipeline  # noqa: E402
from accel_search.runtime.measuring.evaluator import PipelineEvaluator  # noqa: E402
from accel_search.runtime.measuring.timing import timed  # noqa: E402
from accel_search.runtime.provenance import describe  # noqa: E402
from accel_search.runtime.scoring.clip import load_scorer  # noqa: E402
from accel_search.runtime.workbench import Workbench  # noqa: E402
from accel_search.settings import Settings  # noqa: E402
from tests.support import making  # noqa: E402
from tests.support.generation import generate  # noqa: E402

pytestmark = pytest.mark.gpu

LOG = logging.getLogger("tests.gpu")
SETTINGS = {
    "deepcache": {"cache_interval": 3, "cache_branch_id": 0},
    "tgate": {"gate_step": 5, "sp_interval": 3, "fi_interval": 2, "warmup": 1},
    "tome": {"ratio": 0.5, "max_downsample": 2},
    "steps": {"num_inference_steps": 6},
}
NAMES = ["deepcache", "tgate", "tome", "deepcache,tgate", "deepcache,tome", "tgate,tome"]
NAMES += ["deepcache,tgate,tome", "steps", "deepcache,steps"]


def candidate(names):
    return Candidate({name: SETTINGS[name] for name in names.split(",")})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    making.make_sd(folder / "sd")
    making.make_sdxl(folder / "sdxl")
    making.make_scorer(folder / "scorer")
    making.make_prompts(folder / "prompts.txt")
    return folder


def evaluator(made, kind="sd", **changes):
    """Return an evaluator as a search opens it, on the GPU."""
    settings = Settings(
        pipe=str(made / kind),
        clip_model=str(made / "scorer"),
        prompts=str(made / "prompts.txt"),
        device="cuda",
        num_samples=8,
        held_out_samples=0,
        **({"steps": 8} | changes),
    )
    scorer = load_scorer(settings, torch.device("cuda"))
    pipe, folder = load_pipeline(settings, LOG)
    workload = describe_workload(pipe, settings, folder)
    prompts = PromptSet(
        "test", tuple(Prompt(text, i) for i, text in enumerate(making.PROMPTS[:8])), ()
    )
    provenance = describe(pipe, workload, prompts, revision=None, clip_model="t", threads=None)
    return PipelineEvaluator(pipe, scorer, prompts, workload, provenance, log=LOG), pipe


def test_a_call_is_timed_until_the_device_has_done_its_work():
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def work():
        begin.record()
        for _ in range(60):
            matrix @ matrix
        end.record()

    timed(work, torch.device("cuda"))
    _, seconds = timed(work, torch.device("cuda"))
    assert seconds >= 0.98 * begin.elapsed_time(end) / 1000 > 0.01


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_candidates_are_measured_in_half_precision_with_their_peak_memory(made, kind):
    measures, pipe = evaluator(made, kind)
    assert pipe.unet.dtype == torch.float16
    assert measures.provenance.device_name == torch.cuda.get_device_name()
    assert measures.provenance.driver
    baseline = measures.baseline()
    assert baseline.peak_memory_bytes > 0
    for names in NAMES:
        measured = measures.measure(candidate(names))
        assert len(measured.scores) == len(measured.ssim) == 8
        assert measured.peak_memory_bytes > 0
    measures.check()


@pytest.mark.parametrize("names", ["deepcache", "tgate", "tome", "deepcache,tgate,tome"])
def test_single_unet_calls_are_timed_by_events_and_change_no_picture(made, names):
    measuring, *_ = evaluator(made)
    caller, prompts = measuring._caller, [Prompt("a red cube", 1), Prompt("a blue ball", 2)]
    workload = replace(measuring.workload, batch_size=2)
    images, _ = caller.call(workload, prompts, candidate(names))
    timer = caller.timer(range(8), memory.PeakMeter(torch.device("cuda", 0)))
    probed, seconds = caller.call(workload, prompts, candidate(names), timer=timer)
    assert torch.equal(images, probed)
    times = timer.times(seconds * 2, 2, [1] * 8, 8)
    assert len(times.seconds) == len(times.probes) == 8 and min(times.seconds) > 0
    assert 0 < sum(times.seconds) < times.call
    assert 0 < sum(probe for _, probe in times.probes) <= timer.probing_seconds()


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_baseline_after_every_combination_is_bit_identical(made, kind):
    measures, pipe = evaluator(made, kind)
    prompts = list(measures.prompts.search[:4])
    before = generate(pipe, measures.workload, prompts)
    for names in NAMES:
        with apply_candidate(pipe, candidate(names)):
            first = generate(pipe, measures.workload, prompts)
            assert torch.equal(first, generate(pipe, measures.workload, prompts)), names
        assert torch.equal(before, generate(pipe, measures.workload, prompts)), names


@pytest.fixture
def limit():
    """Return a function that limits this process's share of the device's memory."""

    def set_bytes(count):
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(count / total)

    yield set_bytes
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def peak_bytes(measures, pipe, batch):
    """Return the most bytes reserved by a call of so many images."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    generate(
        pipe, replace(measures.workload, batch_size=batch), list(measures.prompts.search[:batch])
    )
    return torch.cuda.max_memory_reserved()


def test_a_real_shortage_halves_the_batch_and_measures_the_baseline_again(made, limit, caplog):
    for side in (256, 512, 1024):
        measures, pipe = evaluator(made, height=side, width=side, steps=2)
        whole, half = peak_bytes(measures, pipe, 4), peak_bytes(measures, pipe, 2)
        if whole > 1.2 * half:
            break
    assert whole > 1.2 * half  # Else no limit lies between the two.
    limit((whole + half) // 2)
    with caplog.at_level(logging.WARNING, LOG.name):
        baseline = measures.baseline()
    assert baseline.batch_size == 2 and len(baseline.scores) == 8
    measured = measures.measure(candidate("deepcache"))
    assert measured.batch_size == 2
    assert "out of memory at batch size 4" in caplog.text
    assert measures.provenance.batch_size == 2


def test_a_shortage_at_batch_size_1_ends_with_code_4_and_names_the_bytes(made, limit):
    measures, pipe = evaluator(made, height=128, width=128, steps=2)
    limit(int(peak_bytes(measures, pipe, 1) * 0.7))
    with pytest.raises(OutOfMemoryError, match=r"[\d,]+ bytes asked, [\d,]+ free") as ended:
        measures.baseline()
    assert ended.value.exit_code == ExitCode.OUT_OF_MEMORY


def test_memory_does_not_grow_over_trials(made):
    measures, _ = evaluator(made, steps=4)
    measures.baseline()
    levels = []
    for _ in range(12):
        measures.measure(candidate("deepcache,tgate,tome"))
        levels.append(torch.cuda.memory_allocated())
    assert max(levels[3:]) <= levels[2] + 2**20


@pytest.mark.parametrize("names", NAMES)
def test_full_size_sd15_is_deterministic_and_comes_back(names, sd15):
    pipe, embeds = sd15

    def images():
        noise = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
        return pipe(
            prompt_embeds=embeds,
            negative_prompt_embeds=-embeds,
            latents=noise.to("cuda", torch.float16),
            num_inference_steps=8,
            output_type="latent",
        ).images

    before = images()
    with apply_candidate(pipe, candidate(names)):
        accelerated = images()
        assert torch.equal(accelerated, images())
    assert torch.isfinite(accelerated).all()
    assert not torch.equal(accelerated, before)
    assert torch.equal(before, images())


@pytest.fixture(scope="module")
def sd15():
    """Return SD1.5 at its full size with random weights, in half precision, and embeddings."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    with torch.device("cuda"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).half().eval()
        vae = (
            AutoencoderKL(
                block_out_channels=(32, 32, 32, 32),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            )
            .half()
            .eval()
        )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    embeds = torch.randn(2, 77, 768, generator=torch.Generator().manual_seed(1))
    return pipe, embeds.to("cuda", torch.float16)


def test_tome_merges_on_cuda_as_tomesd_does_up_to_rounding():
    from tomesd.merge import bipartite_soft_matching_random2d

    from accel_search.accelerators.tome import Matching, draw_destinations

    metric, tokens = torch.randn(2, 4, 4096, 320, device="cuda")
    merge, unmerge = bipartite_soft_matching_random2d(
        metric, 64, 64, 2, 2, 2048, generator=torch.Generator("cuda").manual_seed(0)
    )
    chosen = draw_destinations(64, 64, torch.Generator("cuda").manual_seed(0))
    matching = Matching(metric, 64, 64, 2048, chosen)
    expected, found = merge(tokens), matching.merge(tokens)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(matching.unmerge(found), unmerge(expected), atol=1e-5)
    half = tokens.half()
    assert torch.equal(matching.merge(half), matching.merge(half))
    assert torch.allclose(matching.merge(half).float(), expected, atol=5e-3)


@pytest.mark.parametrize("offload", [False, True], ids=["resident", "offloaded"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_compiled_pipeline_is_measured_under_every_combination_and_comes_back(
    made, kind, offload
):
    from accel_search.runtime.workbench import open_evaluator

    settings = Settings(
        pipe=str(made / kind),
        clip_model=str(made / "scorer"),
        prompts=str(made / "prompts.txt"),
        device="cuda",
        compile=True,
        offload=offload,
        steps=8,
        num_samples=4,
        held_out_samples=0,
    )
    measures = open_evaluator(settings, LOG)
    measures.baseline()
    for names in NAMES:  # Baseline calls beside each have to be bit-identical, or it raises.
        assert len(measures.measure(candidate(names), pairs=1).scores) == 4
    measures.check()
    assert measures.provenance.compiled


def test_an_attention_kernel_that_does_not_take_the_heads_is_refused(made):
    from accel_search.errors import ConfigurationError
    from accel_search.runtime.attention import use_kernel

    _, pipe = evaluator(made)
    with pytest.raises(ConfigurationError, match=r"--attention efficient: .* heads of 4 channels"):
        use_kernel(pipe, "efficient")


@pytest.mark.parametrize("name", ["flash", "math"])
def test_an_attention_kernel_is_used_and_recorded(made, name):
    from torch.profiler import ProfilerActivity, profile

    from accel_search.runtime.attention import describe_attention, use_kernel

    measures, pipe = evaluator(made)
    assert describe_attention(pipe, "auto", 256).startswith("native (")
    use_kernel(pipe, name)
    assert describe_attention(pipe, name, 256) == f"native ({name})"
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        generate(pipe, measures.workload, list(measures.prompts.search[:2]))
    ran = {event.key for event in seen.key_averages()}
    operators = {
        "flash": "aten::_scaled_dot_product_flash_attention",
        "math": "aten::_scaled_dot_product_attention_math",
    }
    assert operators[name] in ran


@pytest.mark.parametrize("name", ["math", "flash"])
def test_a_compiled_unet_runs_the_kernel_that_was_asked_for(made, name):
    """Also where another kernel's graphs are in memory: these two are compiled in one process."""
    from torch.profiler import ProfilerActivity, profile

    from accel_search.runtime.attention import use_kernel
    from accel_search.runtime.compiling import compile_unet, graphs_compiled

    measures, pipe = evaluator(made)
    use_kernel(pipe, name)
    compile_unet(pipe, name)
    before = graphs_compiled()
    prompts = list(measures.prompts.search[:2])
    generate(pipe, measures.workload, prompts)
    assert graphs_compiled() > before
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        generate(pipe, measures.workload, prompts)
    ran = {event.key for event in seen.key_averages()}
    assert ("aten::_scaled_dot_product_flash_attention" in ran) == (name == "flash")


def workbench(made, caplog, **changes):
    """Return what a search loads, and the evaluator that it makes of it."""
    settings = Settings(
        pipe=str(made / changes.pop("kind", "sd")),
        clip_model=str(made / "scorer"),
        prompts=str(made / "prompts.txt"),
        device="cuda",
        num_samples=4,
        held_out_samples=0,
        timing_pairs=1,
        **({"steps": 8} | changes),
    )
    with caplog.at_level(logging.INFO, LOG.name):
        bench = Workbench(settings, LOG)
    return bench, bench.evaluator(settings)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_an_offloaded_pipeline_is_measured_on_the_gpu_and_comes_back(made, caplog, kind):
    _, plain = workbench(made, caplog, kind=kind)
    scores = plain.baseline().scores
    caplog.clear()

    bench, measures = workbench(made, caplog, kind=kind, offload=True)

    pipe = bench._pipe
    assert "moving them to the GPU is part of every timed call" in caplog.text
    assert "waits in main memory between scorings" in caplog.text
    assert pipe.device.type == "cpu" and measures.workload.device == "cuda:0"
    assert measures.provenance.offload == "model" and plain.provenance.offload is None
    assert measures.provenance.device_name == torch.cuda.get_device_name()
    baseline = measures.baseline()
    assert baseline.scores == scores
    assert baseline.peak_memory_bytes > 0
    for names in NAMES:
        offloaded = measures.measure(candidate(names)).scores
        assert offloaded == plain.measure(candidate(names)).scores, names
    measures.check()
    assert next(pipe.unet.parameters()).device.type == "cpu"
    assert next(bench._scorer._model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_loras_come_to_the_gpu_with_offloaded_parts(made, caplog, kind, tmp_path):
    from scripts.make_random_pipeline import write_lora

    like = {"sd": "SD1.5", "sdxl": "SDXL"}[kind]
    file = write_lora(tmp_path / "lora.safetensors", made / kind, like, names="peft")
    lora = (f"{file}:0.8",)
    _, bare = workbench(made, caplog, kind=kind)
    _, plain = workbench(made, caplog, kind=kind, lora=lora)
    _, offloaded = workbench(made, caplog, kind=kind, lora=lora, offload=True)
    scores = plain.baseline().scores
    assert offloaded.baseline().scores == scores != bare.baseline().scores
    for names in NAMES:
        assert offloaded.measure(candidate(names)).scores == (
            plain.measure(candidate(names)).scores
        ), names
    plain.check()
    offloaded.check()


def test_an_accelerator_stays_on_over_several_offloaded_calls(made, caplog):
    bench, measures = workbench(made, caplog, offload=True)
    pipe, prompts = bench._pipe, list(measures.prompts.search[:2])
    for names in NAMES:
        with apply_candidate(pipe, candidate(names)):
            first = generate(pipe, measures.workload, prompts)
            assert torch.equal(first, generate(pipe, measures.workload, prompts)), names
        assert not torch.equal(first, generate(pipe, measures.workload, prompts)), names


def test_a_parked_scorer_gives_its_memory_back_and_the_same_scores(made):
    cuda = torch.device("cuda", 0)
    scorer = load_scorer(Settings(clip_model=str(made / "scorer"), pipe=str(made / "sd")), cuda)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).cuda()
    resident = scorer.score(images, making.PROMPTS[:3])
    before = torch.cuda.memory_allocated()

    assert scorer.park() and not scorer.park()

    assert before - torch.cuda.memory_allocated() >= scorer.weight_bytes
    assert scorer.score(images, making.PROMPTS[:3]) == resident
    assert before - torch.cuda.memory_allocated() >= scorer.weight_bytes


def test_scores_are_the_same_whatever_a_program_allows_itself(made):
    """A wide model: TF32 would change its scores, as its features by themselves show."""
    from scripts.make_random_scorer import main as make_random_scorer

    folder = made / "wide"
    assert make_random_scorer(["--like", "ViT-S-32-alt", "--out", str(folder)]) == 0
    settings = Settings(clip_model=str(folder), pipe=str(made / "sd"))
    scorer = load_scorer(settings, torch.device("cuda", 0))
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)).cuda()

    def look():
        with torch.no_grad():
            return scorer._model.encode_image(scorer.preprocess(images))

    def measure():
        scorer._text_features.clear()
        return scorer.score(images, making.PROMPTS[:4])

    features, scores = look(), measure()
    switch = torch.backends.cuda.matmul
    try:
        for allow in (
            lambda: setattr(switch, "allow_tf32", True),
            lambda: torch.set_float32_matmul_precision("high"),
            lambda: setattr(switch, "fp32_precision", "tf32"),
            lambda: setattr(torch.backends, "fp32_precision", "tf32"),
        ):
            allow()
            assert not torch.equal(look(), features)
            assert measure() == scores
            assert not torch.equal(look(), features)  # And it is allowed again.
            torch.backends.fp32_precision = "none"
            torch.set_float32_matmul_precision("highest")
            switch.fp32_precision = "none"
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        switch.fp32_precision = "none"


def test_the_scorer_waits_in_main_memory_where_the_gpu_is_small(made, caplog):
    torch.cuda.empty_cache()
    bench, _ = workbench(made, caplog)
    assert next(bench._scorer._model.parameters()).device.type == "cuda"
    del bench
    try:
        needs = torch.cuda.memory_allocated() / 2**30 + 0.1
        bench, measures = workbench(made, caplog, memory_limit=round(needs, 3))
        free = memory.free_bytes(torch.device("cuda", 0), round(needs, 3))
        assert 0 < free <= 0.11 * 2**30
        assert len(measures.baseline().scores) == 4
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
