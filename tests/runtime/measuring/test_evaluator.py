"""The rules of measuring, one by one, on tiny pipelines and stand-in accelerators."""

from __future__ import annotations

import gc
import logging
import time
from contextlib import contextmanager

import pytest
import torch

from accel_search.core.candidate import Candidate
from accel_search.errors import (
    AcceleratorError,
    ContaminationError,
    ExitCode,
    InvalidImage,
    OutOfMemoryError,
    TrialFailure,
)
from accel_search.runtime.measuring.batches import plan_batches, plan_steps
from accel_search.runtime.measuring.evaluator import NOISE_PAIRS
from accel_search.runtime.workbench import open_evaluator
from tests.support.pipelines import LOG

TOME = Candidate({"tome": {"ratio": 0.5, "max_downsample": 2}})
DEEPCACHE = Candidate({"deepcache": {"cache_interval": 3, "cache_branch_id": 0}})
BOTH = Candidate(
    {
        "tome": {"ratio": 0.5, "max_downsample": 2},
        "tgate": {"gate_step": 2, "sp_interval": 2, "fi_interval": 1, "warmup": 1},
    }
)
FEWER = Candidate({"steps": {"num_inference_steps": 2}})


class Scorer:
    """Stands in for a scorer that holds no device memory."""

    def park(self):
        return False

    def score_shuffled(self, captions, positions):
        return []


@contextmanager
def nothing(pipe, candidate):
    yield


@contextmanager
def scaled(pipe, candidate):
    """Change the UNet's output for the length of the block, and put it back."""
    bias = pipe.unet.conv_out.bias
    before = bias.data.clone()
    bias.data += 0.3
    try:
        yield
    finally:
        bias.data.copy_(before)


@pytest.fixture
def leak(loaded):
    """A stand-in that leaves a weight changed; the fixture puts it back."""
    bias = loaded("sd")[0].unet.conv_out.bias
    before = bias.data.clone()

    @contextmanager
    def apply(pipe, candidate):
        yield
        if "tome" in candidate:
            bias.data += 1e-3

    yield apply
    bias.data.copy_(before)


class Recorder:
    """Notes every pipeline call, and can fail in place of some."""

    def __init__(self, monkeypatch):
        from diffusers import StableDiffusionPipeline as cls

        self.events = []
        self.accelerated = False
        self.fail = lambda prompts: None
        original = cls.__call__

        def call(pipe, **arguments):
            kind = "C" if self.accelerated else "B"
            steps = arguments["num_inference_steps"]
            self.events.append((kind, len(arguments["prompt"]), steps, arguments["output_type"]))
            self.fail(arguments["prompt"])
            return original(pipe, **arguments)

        monkeypatch.setattr(cls, "__call__", call)

    @contextmanager
    def apply(self, pipe, candidate):
        self.accelerated = True
        try:
            yield
        finally:
            self.accelerated = False

    def timed_calls(self):
        """Return the kinds of the calls that made images with all steps, in order."""
        return "".join(
            kind for kind, _, steps, output in self.events if (steps, output) == (3, "pt")
        )


@pytest.fixture
def recorder(monkeypatch):
    return Recorder(monkeypatch)


# Plans


def test_what_is_left_over_is_scored_and_never_timed():
    batches = plan_batches(range(5), 2)

    assert [batch.prompts for batch in batches] == [(0, 1), (2, 3), (4,)]
    assert [batch.timed for batch in batches] == [True, True, False]
    assert [batch.scored for batch in batches] == [2, 2, 1]


def test_a_part_smaller_than_a_batch_fills_it_by_going_round():
    (batch,) = plan_batches(range(3), 4)

    assert batch.prompts == (0, 1, 2, 0)
    assert (batch.scored, batch.timed) == (3, True)
    assert plan_batches(range(0), 4) == []


def test_full_batches_after_the_pairs_are_probed():
    batches = plan_batches(range(9), 2)
    steps = list(plan_steps(batches, 1, probes=range(1, 2)))
    assert [(step.paired, step.probed) for step in steps] == [
        (True, False), (False, True), (False, True), (False, False), (False, False)
    ]  # fmt: skip
    # One is repeated where all are paired, unless further prompts only complete what was probed.
    two = plan_batches(range(4), 2)
    assert [step.probed for step in plan_steps(two, 2, probes=range(1, 2))] == [False, False, True]
    assert [step.probed for step in plan_steps(two, 2, probes=range(0, 2))] == [False, False]
    assert not any(step.probed for step in plan_steps(two, 0))


def test_batches_are_gone_round_until_there_are_enough_pairs():
    steps = list(plan_steps(plan_batches(range(5), 2), 3))

    assert [(s.batch.prompts, s.is_new, s.paired, s.baseline_first) for s in steps] == [
        ((0, 1), True, True, True),
        ((2, 3), True, True, False),
        ((0, 1), False, True, True),
        ((4,), True, False, False),
    ]


def test_part_of_the_prompts_is_cut_as_the_whole_is():
    whole = plan_batches(range(10), 4)
    assert plan_batches(range(4), 4) + plan_batches(range(4, 10), 4) == whole
    # What is left over after the first part is no part of its own that would be filled up.
    assert plan_batches(range(8, 10), 4) == whole[2:]


# Baseline


def test_the_baseline_is_timed_against_itself(evaluator_for):
    # Three batches, gone round again until there are enough pairs to know the noise by.
    evaluator = evaluator_for(search=6, timing_pairs=2)

    baseline = evaluator.baseline()

    assert len(baseline.scores) == 6
    assert len(baseline.seconds_per_image) == NOISE_PAIRS == 4
    assert len(baseline.baseline_seconds_per_image) == NOISE_PAIRS
    assert baseline.batch_size == 2
    assert baseline.peak_memory_bytes is None
    assert baseline.seconds > sum(baseline.seconds_per_image)
    assert evaluator.baselines == {"search": baseline}


def test_scores_are_in_prompt_order_and_independent_of_the_batch(evaluator_for, loaded, scorer):
    from tests.support.generation import generate

    pipe, workload = loaded("sd")
    by_three = evaluator_for(search=5, batch_size=3, timing_pairs=4)
    prompts = by_three.prompts.search
    expected = [scorer.score(generate(pipe, workload, [p]), [p.text])[0] for p in prompts]

    # Kernel tolerance: pixels of two batch sizes may differ by 1e-4, see test_generation.
    assert by_three.baseline().scores == pytest.approx(expected, abs=0.05)
    assert evaluator_for(search=5, batch_size=2).baseline().scores == pytest.approx(
        expected, abs=0.05
    )


def test_the_baselines_images_are_also_scored_against_other_captions(evaluator_for, scorer):
    whole = evaluator_for(search=4, batch_size=4).baseline()
    evaluator = evaluator_for(search=4, batch_size=4)
    images = evaluator.pictures(Candidate(), 4)
    texts = [prompt.text for prompt in evaluator.prompts.search]
    expected = scorer.score(images.float() / 255, [texts[-1], *texts[:-1]])
    assert whole.shuffled_scores == pytest.approx(expected, abs=0.02)
    assert whole.shuffled_scores != whole.scores
    # Whatever the batch, with one left over or of one image.
    for batch_size in (3, 1):
        evaluator = evaluator_for(search=4, batch_size=batch_size)
        assert evaluator.baseline().shuffled_scores == pytest.approx(expected, abs=0.02)
        assert evaluator.measure(TOME).shuffled_scores == ()
    # Two of four go round to fill a batch, and one alone has no other caption.
    assert len(evaluator_for(search=2, batch_size=2).baseline().shuffled_scores) == 2
    assert evaluator_for(search=1, batch_size=1).baseline().shuffled_scores == ()


def test_a_part_without_prompts_has_no_samples(evaluator_for):
    evaluator = evaluator_for(held_out=0)

    assert evaluator.baseline("held_out").scores == ()
    with pytest.raises(ValueError, match="no held_out prompts"):
        evaluator.measure(TOME, "held_out")


def test_a_batch_larger_than_the_search_part_is_cut_and_said_so(evaluator_for, caplog):
    with caplog.at_level(logging.WARNING, LOG.name):
        evaluator = evaluator_for(search=3, batch_size=8, apply=nothing)

    assert "--batch_size 8 is more than --num_samples 3" in caplog.text
    assert evaluator.batch_size == evaluator.provenance.batch_size == 3
    assert evaluator.baseline().batch_size == 3


def test_a_small_held_out_part_is_timed_at_the_full_batch_size(evaluator_for, recorder):
    evaluator = evaluator_for(search=4, held_out=1, apply=recorder.apply, timing_pairs=2)
    evaluator.baseline()
    recorder.events.clear()

    measured = evaluator.measure(TOME, "held_out")

    assert {size for _, size, _, _ in recorder.events} <= {1, 2}
    assert len(measured.scores) == 1
    assert len(measured.baseline_seconds_per_image) == 2
    assert recorder.timed_calls().endswith("BCCBC")  # One for its UNet calls alone.


# Interleaving


def test_baseline_and_candidate_are_interleaved_in_alternating_order(evaluator_for, recorder):
    evaluator = evaluator_for(search=8, apply=recorder.apply, timing_pairs=3)
    evaluator.baseline()
    assert recorder.timed_calls() == "B" + "BB" * 4  # sentinel, four pairs
    recorder.events.clear()

    measured = evaluator.measure(TOME)

    assert recorder.events[1] == ("C", 2, 2, "latent")  # the warm-up, before its first call
    assert recorder.timed_calls() == "BCCBBCC"
    assert len(measured.seconds_per_image) == 4
    assert len(measured.baseline_seconds_per_image) == 3
    assert {size for _, size, _, _ in recorder.events} == {2}


def test_the_alternation_goes_on_where_earlier_prompts_ended(evaluator_for, recorder):
    evaluator = evaluator_for(search=8, apply=recorder.apply, timing_pairs=4)
    evaluator.baseline()
    orders = ""
    for turn in range(4):  # One pair at a time, as early stopping asks for them.
        recorder.events.clear()
        evaluator.measure(TOME, prompts=range(2 * turn, 2 * turn + 2), pairs=1, turn=turn)
        orders += recorder.timed_calls()
    # The first prompts are timed once more, for single UNet calls.
    assert orders == "BCCCBBCCB"


def test_left_over_prompts_are_never_timed(evaluator_for, recorder):
    evaluator = evaluator_for(search=5, apply=recorder.apply, timing_pairs=1)

    baseline, measured = evaluator.baseline(), evaluator.measure(TOME)

    assert len(baseline.scores) == len(measured.scores) == 5
    assert len(baseline.seconds_per_image) == NOISE_PAIRS
    assert len(measured.seconds_per_image) == 2
    assert recorder.events[-1][:2] == ("C", 1)


def test_fewer_steps_are_measured_beside_the_full_baseline(evaluator_for, recorder):
    evaluator = evaluator_for(search=4, apply=recorder.apply, timing_pairs=2)
    evaluator.baseline()
    recorder.events.clear()

    assert len(evaluator.measure(FEWER).scores) == 4

    assert recorder.timed_calls() == "BCCB"


def test_neither_scoring_nor_applying_is_timed(evaluator_for, scorer, monkeypatch):
    real, ahead = time.perf_counter, 0.0
    # However busy the machine is, it is not a thousand seconds that a call takes.
    monkeypatch.setattr(time, "perf_counter", lambda: real() + ahead)

    def take(seconds):
        nonlocal ahead
        ahead += seconds

    class Slow(Scorer):
        def score(self, images, texts):
            take(1000)
            return scorer.score(images, texts)

    @contextmanager
    def slow(pipe, candidate):
        take(1000)
        yield
        take(1000)

    evaluator = evaluator_for(search=2, scorer=Slow(), apply=slow, timing_pairs=1)

    samples = evaluator.measure(TOME).seconds_per_image

    assert max(samples) * 2 < 1000
    assert evaluator.accounting.scoring_seconds >= 1000
    assert evaluator.accounting.pipeline_seconds < 1000
    # To put on and take off, for a warm-up and a call.
    account = evaluator.accounting
    assert account.total_seconds - account.pipeline_seconds - account.scoring_seconds >= 4000


def test_the_candidate_is_what_is_scored(evaluator_for):
    evaluator = evaluator_for(apply=scaled)

    baseline, measured = evaluator.baseline(), evaluator.measure(TOME)

    differences = [abs(a - b) for a, b in zip(baseline.scores, measured.scores, strict=True)]
    assert min(differences) > 1e-3
    assert evaluator.measure(Candidate()).scores == baseline.scores


# Part of the prompts


def test_a_candidate_is_measured_in_parts(evaluator_for, recorder):
    evaluator = evaluator_for(search=7, timing_pairs=3)
    whole = evaluator.measure(DEEPCACHE)

    first = evaluator.measure(DEEPCACHE, prompts=range(2), pairs=1)
    rest = evaluator.measure(DEEPCACHE, prompts=range(2, 7), pairs=2)
    joined = first.joined(rest)

    assert (len(first.scores), len(rest.scores)) == (2, 5)
    assert len(first.baseline_seconds_per_image) == 1
    assert joined.scores == whole.scores
    assert (joined.psnr, joined.ssim) == (whole.psnr, whole.ssim)
    assert len(joined.baseline_seconds_per_image) == 3
    assert len(joined.seconds_per_image) == 3  # The last prompt is left over and not timed.
    assert joined.seconds == pytest.approx(first.seconds + rest.seconds)


def test_samples_of_two_parts_stay_beside_their_own_baseline_calls(evaluator_for):
    evaluator = evaluator_for(search=8)
    one = evaluator.measure(DEEPCACHE, prompts=range(4), pairs=1)
    two = evaluator.measure(DEEPCACHE, prompts=range(4, 8), pairs=1)

    joined = one.joined(two)

    assert joined.seconds_per_image == (
        one.seconds_per_image[0],
        two.seconds_per_image[0],
        one.seconds_per_image[1],
        two.seconds_per_image[1],
    )
    assert joined.baseline_seconds_per_image == (
        one.baseline_seconds_per_image + two.baseline_seconds_per_image
    )


def test_a_candidate_is_warmed_up_for_the_step_types_that_are_new(evaluator_for, recorder):
    evaluator = evaluator_for(search=2, apply=recorder.apply, timing_pairs=1)
    warm_ups = []
    for interval, branch in ((3, 0), (2, 0), (2, 1)):
        recorder.events.clear()
        settings = {"cache_interval": interval, "cache_branch_id": branch}
        evaluator.measure(Candidate({"deepcache": settings}))
        warm_ups.append(sum(event[3] == "latent" for event in recorder.events))
    assert warm_ups == [1, 0, 1]


# Likeness to the baseline


def test_pictures_are_compared_with_the_baselines_of_the_same_prompts(evaluator_for, loaded):
    from accel_search.runtime.scoring.similarity import similarity, to_bytes
    from tests.support.generation import generate

    pipe, workload = loaded("sd")
    evaluator = evaluator_for(search=5, apply=scaled, timing_pairs=1)
    measured = evaluator.measure(TOME)

    assert len(measured.psnr) == len(measured.ssim) == 5
    prompts = evaluator.prompts.search[2:4]
    plain = generate(pipe, workload, prompts)
    with scaled(pipe, TOME):
        expected = similarity(generate(pipe, workload, prompts), to_bytes(plain))
    assert measured.psnr[2:4] == pytest.approx(expected.psnr, abs=1e-3)
    assert measured.ssim[2:4] == pytest.approx(expected.ssim, abs=1e-5)
    assert max(measured.psnr) < 60 and max(measured.ssim) < 1
    assert evaluator.accounting.comparing_seconds > 0


def test_equal_pictures_count_as_a_hundred_decibels(evaluator_for):
    measured = evaluator_for(search=2, apply=nothing, timing_pairs=1).measure(TOME)
    assert measured.psnr == pytest.approx([100.0] * 2)
    assert measured.ssim == pytest.approx([1.0] * 2)


# Contamination


def test_an_accelerator_that_leaves_something_behind_is_named(evaluator_for, leak):
    evaluator = evaluator_for(apply=leak, timing_pairs=2)
    evaluator.baseline()
    evaluator.measure(DEEPCACHE)

    with pytest.raises(
        ContaminationError,
        match=r"no longer bit-identical after tome\(ratio=0.5, max_downsample=2\)",
    ):
        evaluator.measure(TOME)


@pytest.mark.parametrize("earlier", [None, DEEPCACHE])
def test_it_is_named_at_once_where_no_baseline_call_is_beside_it(evaluator_for, leak, earlier):
    evaluator = evaluator_for(apply=leak, timing_pairs=2)
    evaluator.baseline()
    if earlier is not None:
        evaluator.measure(earlier, pairs=1)
    with pytest.raises(ContaminationError, match="no longer bit-identical after tome"):
        evaluator.measure(TOME, pairs=0)


def test_a_candidate_timed_by_itself_costs_a_glance_at_the_pipeline_before_and_after(
    evaluator_for, recorder
):
    evaluator = evaluator_for(search=4, apply=recorder.apply)
    evaluator.baseline()
    evaluator.measure(TOME, pairs=0)
    recorder.events.clear()
    evaluator.measure(DEEPCACHE, prompts=range(2), pairs=0)
    baseline = [event for event in recorder.events if event[0] == "B"]
    assert baseline == [("B", 1, 2, "latent")] * 2


def test_a_pipeline_in_bfloat16_is_glanced_at_too(settings_for):
    evaluator = open_evaluator(settings_for(num_samples=2, dtype="bfloat16"), LOG)
    evaluator.baseline()
    assert evaluator.measure(TOME, pairs=0).step_times


def test_it_is_named_though_another_candidate_is_in_hand(evaluator_for, leak):
    # It leaks in the last call of its trial, when no baseline call follows any more.
    calls = []

    @contextmanager
    def late(pipe, candidate):
        calls.append(candidate)
        with leak(pipe, TOME if len(calls) == 2 else {}):
            yield

    evaluator = evaluator_for(search=2, apply=late, timing_pairs=1)
    evaluator.measure(BOTH)

    with pytest.raises(ContaminationError, match="tgate or tome leaves"):
        evaluator.measure(DEEPCACHE)


def test_every_accelerator_of_a_combination_is_named(evaluator_for, leak):
    evaluator = evaluator_for(apply=leak, timing_pairs=2)

    with pytest.raises(ContaminationError, match="tgate or tome leaves the pipeline changed"):
        evaluator.measure(BOTH)


def test_references_are_not_taken_from_a_changed_pipeline(evaluator_for, leak, loaded):
    evaluator = evaluator_for(search=2, held_out=2, apply=nothing, timing_pairs=1)
    evaluator.measure(TOME)
    with leak(loaded("sd")[0], TOME):
        pass

    with pytest.raises(ContaminationError):
        evaluator.baseline("held_out")
    with pytest.raises(ContaminationError):
        evaluator.measure(DEEPCACHE, "held_out")


def test_a_pipeline_that_never_repeats_itself_is_said_to_be_so_once(
    evaluator_for, monkeypatch, caplog, loaded
):
    unet = loaded("sd")[0].unet
    original = unet.forward

    def unsteady(*args, **kwargs):
        output = original(*args, **kwargs)
        return tuple(each + 1e-4 * torch.randn_like(each) for each in output)

    monkeypatch.setitem(vars(unet), "forward", unsteady)
    evaluator = evaluator_for(apply=nothing, timing_pairs=2)
    with caplog.at_level(logging.WARNING, LOG.name):
        evaluator.baseline()
        evaluator.measure(TOME)

    assert len(caplog.records) == 1
    assert "does not make the same image twice" in caplog.text


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_real_accelerators_leave_the_pipeline_as_it_was(evaluator_for, kind):
    evaluator = evaluator_for(kind=kind, timing_pairs=2)
    evaluator.baseline()

    for settings in (
        {"deepcache": {"cache_interval": 2, "cache_branch_id": 0}},
        {"tome": {"ratio": 0.5, "max_downsample": 2}},
        {"tgate": {"gate_step": 2, "sp_interval": 2, "fi_interval": 1, "warmup": 1}},
    ):
        assert len(evaluator.measure(Candidate(settings)).scores) == 4
    evaluator.check()


# Faults of one trial


@contextmanager
def blinded(pipe, candidate, value=float("nan")):
    bias = pipe.vae.decoder.conv_out.bias
    weight = pipe.vae.decoder.conv_out.weight
    before = bias.data.clone(), weight.data.clone()
    bias.data.fill_(value)
    weight.data.fill_(value)
    try:
        yield
    finally:
        bias.data.copy_(before[0])
        weight.data.copy_(before[1])


@pytest.mark.parametrize("value, what", [(float("nan"), "NaN or infinity"), (0.0, "one colour")])
def test_an_invalid_image_is_a_failure_and_never_a_score(evaluator_for, value, what):
    evaluator = evaluator_for(apply=lambda pipe, candidate: blinded(pipe, candidate, value))
    evaluator.baseline()

    with pytest.raises(InvalidImage, match=rf"image of prompt 0 .* is {what}") as caught:
        evaluator.measure(TOME)

    assert caught.value.seconds > 0
    assert caught.value.kind == "invalid_image"
    evaluator.check()


def test_an_invalid_baseline_says_that_it_is_the_baseline(evaluator_for, loaded):
    evaluator = evaluator_for()

    with (
        blinded(loaded("sd")[0], {}),
        pytest.raises(InvalidImage, match="by the baseline pipeline"),
    ):
        evaluator.baseline()


def test_a_candidate_that_raises_is_a_failed_trial(evaluator_for):
    @contextmanager
    def broken(pipe, candidate):
        yield
        raise RuntimeError("sizes differ\nat dimension 3")

    evaluator = evaluator_for(apply=broken)

    with pytest.raises(TrialFailure) as caught:
        evaluator.measure(TOME)

    assert str(caught.value) == f"{TOME} raised RuntimeError: sizes differ"
    assert caught.value.kind == "unknown_error"
    assert caught.value.seconds > 0


def test_an_accelerator_that_does_not_suit_the_pipeline_ends_the_search(evaluator_for):
    @contextmanager
    def unsuitable(pipe, candidate):
        raise AcceleratorError("no such UNet")
        yield

    with pytest.raises(AcceleratorError, match="no such UNet"):
        evaluator_for(apply=unsuitable).measure(TOME)


def test_an_interrupt_passes_through_and_the_pipeline_is_bare(evaluator_for, recorder):
    evaluator = evaluator_for(apply=recorder.apply)
    evaluator.baseline()

    def interrupt(prompts):
        if recorder.accelerated:
            raise KeyboardInterrupt

    recorder.fail = interrupt
    with pytest.raises(KeyboardInterrupt):
        evaluator.measure(TOME)

    assert not recorder.accelerated
    assert gc.isenabled()
    recorder.fail = lambda prompts: None
    evaluator.check()


# Out of memory


SHORTAGE = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 1.50 GiB is free."
)


def fits(recorder, size, candidate_only=False):
    def fail(prompts):
        if len(prompts) > size and (recorder.accelerated or not candidate_only):
            raise torch.OutOfMemoryError(SHORTAGE)

    return fail


def test_a_batch_that_does_not_fit_is_halved(evaluator_for, recorder, caplog):
    recorder.fail = fits(recorder, 1)
    evaluator = evaluator_for(search=4, batch_size=4, apply=recorder.apply)

    with caplog.at_level(logging.WARNING, LOG.name):
        baseline = evaluator.baseline()

    assert baseline.batch_size == evaluator.batch_size == evaluator.workload.batch_size == 1
    assert evaluator.provenance.batch_size == 1
    assert len(baseline.scores) == len(baseline.seconds_per_image) == 4
    assert [r.message.partition(" (")[0] for r in caplog.records] == [
        "out of memory at batch size 4",
        "out of memory at batch size 2",
    ]
    assert "2,147,483,648 bytes asked, 1,610,612,736 free" in caplog.text


def test_after_halving_the_baseline_is_measured_again_at_the_same_size(evaluator_for, recorder):
    recorder.fail = fits(recorder, 2, candidate_only=True)
    evaluator = evaluator_for(search=4, batch_size=4, apply=recorder.apply, timing_pairs=2)
    before = evaluator.baseline()
    recorder.events.clear()

    measured = evaluator.measure(TOME)

    again = evaluator.baselines["search"]
    assert (before.batch_size, again.batch_size, measured.batch_size) == (4, 2, 2)
    assert again is not before
    assert measured.scores == pytest.approx(before.scores, abs=0.05)
    assert len(measured.baseline_seconds_per_image) == 2
    sizes = [size for _, size, _, _ in recorder.events]
    assert 4 not in sizes[sizes.index(2) :]
    assert recorder.timed_calls().endswith("BCCBC")  # One for its UNet calls alone.


def test_at_batch_size_1_it_ends_with_the_bytes(evaluator_for, recorder):
    recorder.fail = fits(recorder, 0)
    evaluator = evaluator_for(search=4, batch_size=2, apply=recorder.apply)

    with pytest.raises(OutOfMemoryError) as caught:
        evaluator.baseline()

    assert caught.value.exit_code == ExitCode.OUT_OF_MEMORY
    assert "even at batch size 1 (2,147,483,648 bytes asked, 1,610,612,736 free)" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_out_of_memory_while_scoring_halves_too(evaluator_for, scorer):
    class Greedy(Scorer):
        def score(self, images, texts):
            if len(images) > 1:
                raise torch.OutOfMemoryError(SHORTAGE)
            return scorer.score(images, texts)

    evaluator = evaluator_for(search=2, scorer=Greedy())

    assert evaluator.baseline().batch_size == 1


def test_the_scorer_gives_way_before_the_batch_does(evaluator_for, recorder, scorer, caplog):
    class OnDevice(Scorer):
        parked = False

        def park(self):
            gave_way, self.parked = not self.parked, True
            return gave_way

        def score(self, images, texts):
            return scorer.score(images, texts)

    resident = OnDevice()

    def fail(prompts):
        fits(recorder, 4 if resident.parked else 2)(prompts)

    recorder.fail = fail
    evaluator = evaluator_for(search=4, batch_size=4, scorer=resident, apply=recorder.apply)

    with caplog.at_level(logging.WARNING, LOG.name):
        assert evaluator.baseline().batch_size == 4
    assert [r.message.partition(":")[0] for r in caplog.records] == [
        "out of memory at batch size 4 (2,147,483,648 bytes asked, 1,610,612,736 free)"
    ]
    assert "the scorer waits in main memory between scorings" in caplog.text

    recorder.fail = fits(recorder, 2)
    assert evaluator.measure(TOME).batch_size == 2


# Wiring


def test_memory_is_watched_across_trials(evaluator_for, monkeypatch):
    seen = []
    evaluator = evaluator_for(search=2, apply=nothing, timing_pairs=1)
    monkeypatch.setattr(evaluator._growth, "after_trial", seen.append)

    evaluator.measure(TOME)
    evaluator.measure(FEWER)

    assert seen == [str(TOME), str(FEWER)]


def test_a_resumed_search_measures_without_a_baseline_of_its_own(evaluator_for, recorder):
    evaluator = evaluator_for(search=8, apply=recorder.apply, timing_pairs=2)

    measured = evaluator.measure(TOME)

    assert evaluator.baselines == {}
    # The sentinel, the four pictures that it compares with, the trial.
    assert recorder.timed_calls() == "B" + "BBBB" + "BCCB" + "CC"
    assert len(measured.baseline_seconds_per_image) == 2


def test_everything_is_wired_from_settings(settings_for):
    settings = settings_for(num_samples=4, held_out_samples=2, batch_size=2, timing_pairs=1, seed=3)

    evaluator = open_evaluator(settings, LOG)
    baseline = evaluator.baseline()

    assert len(baseline.scores) == 4
    assert len(evaluator.prompts.held_out) == 2
    provenance = evaluator.provenance
    assert provenance.prompt_set_hash == evaluator.prompts.digest
    assert provenance.clip_model.startswith("scorer@")
    assert provenance.versions["torch"] == torch.__version__.partition("+")[0]
    assert provenance.threads == 1
    assert provenance.attention_backend == "native"
    assert provenance.driver is None
    assert provenance.batch_size == 2
