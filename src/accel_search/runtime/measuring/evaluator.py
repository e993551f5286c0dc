"""Measure candidates on a real pipeline beside the baseline, and check that they undo it all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch

from accel_search.accelerators.base import PLAIN, StepType
from accel_search.accelerators.compose import apply_candidate
from accel_search.accelerators.computation import describe_steps, numbered
from accel_search.core.candidate import Candidate
from accel_search.core.step_times import steps_to_probe
from accel_search.core.trial import Measurement
from accel_search.core.validation import stages
from accel_search.core.workload import Prompt, PromptSet, Provenance, Workload
from accel_search.errors import (
    BaselineError,
    OutOfMemoryError,
    TrialFailure,
)
from accel_search.runtime import memory
from accel_search.runtime.devices import execution_device
from accel_search.runtime.measuring.batches import PROBED_CALLS, Batch, plan_batches, plan_steps
from accel_search.runtime.measuring.calls import BASELINE, Accounting, Apply, Caller, Samples
from accel_search.runtime.measuring.contamination import References, Sentinel
from accel_search.runtime.measuring.generation import Prepare, check_images, prepare
from accel_search.runtime.measuring.scores import try_to_score
from accel_search.runtime.measuring.timing_lock import TimingLock
from accel_search.runtime.quiet import quiet_libraries
from accel_search.runtime.scoring.clip import ClipScorer
from accel_search.runtime.scoring.similarity import similarity, to_bytes

T = TypeVar("T")
Split = Literal["search", "held_out"]

NOISE_PAIRS = 4
"""Least number of times the baseline is timed against itself: every trial's interval depends on the
spread found there, which one disturbed call must not dominate."""


class PipelineEvaluator:
    """Measures candidates by making and scoring images.

    Every timed call has the full batch size. Accelerators are applied and removed around each
    candidate call, outside its time. The baseline calls beside it must return images that are
    bit-identical to those before the first candidate: this detects what an accelerator leaves
    behind.

    Where memory is short, the scorer moves off the device between scorings, outside all times. A
    batch that still does not fit is halved from then on: the baseline is measured again at the new
    size (see `baselines`), then the candidate.

    Args:
        pipe: A baseline pipeline on its device, in eval mode.
        scorer: Scores images against texts; None leaves scores empty.
        prompts: Prompts to score on.
        workload: What is measured.
        provenance: Hardware, versions and inputs.
        timing_pairs: Baseline calls timed beside each candidate's own.
        compiled: Whether the UNet is compiled, so that calls may be repeated.
        apply: Applies a candidate.
        prepare: Prepares every pipeline call.
        timing_lock: Keeps timed calls apart from other processes' loading.
        log: Gets warnings.
    """

    def __init__(
        self,
        pipe: Any,
        scorer: ClipScorer | None,
        prompts: PromptSet,
        workload: Workload,
        provenance: Provenance,
        *,
        timing_pairs: int = 4,
        compiled: bool = False,
        apply: Apply = apply_candidate,
        prepare: Prepare = prepare,
        timing_lock: TimingLock | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        self.workload = workload
        self.provenance = provenance
        self.prompts = prompts
        self.accounting = Accounting()
        self.baselines: dict[Split, Measurement] = {}
        """The latest baseline of each part."""
        self._log = log or logging.getLogger(__name__)
        self._caller = Caller(
            pipe, apply, self.accounting, compiled=compiled, prepare=prepare,
            timing_lock=timing_lock, log=self._log,
            times_steps=provenance.implementation == "own",  # T-GATE's slows plain calls down.
        )  # fmt: skip
        self._scorer = scorer
        self._pairs = timing_pairs
        self._device = execution_device(pipe)
        self._growth = memory.GrowthWatch(self._device, self._log)
        self._references = References(self._log)
        self._sentinel = Sentinel(self._caller, self._references, prompts.search[:1])
        self._baseline_images: dict[Hashable, torch.Tensor] = {}
        self._met: set[tuple[int, StepType]] = set()
        self._tried: list[int] = []
        """Batch sizes that did not fit."""
        if len(prompts.search) < workload.batch_size:
            self._log.warning(
                "--batch_size %d is more than --num_samples %d: measuring at batch size %d",
                workload.batch_size,
                len(prompts.search),
                len(prompts.search),
            )
            self._set_batch_size(len(prompts.search))

    @property
    def batch_size(self) -> int:
        """Return the current number of images per call."""
        return self.workload.batch_size

    @property
    def chunk(self) -> int:
        """Return how many prompts one call covers."""
        return self.batch_size

    @property
    def prompt_count(self) -> int:
        """Return how many prompts a candidate is fully scored on."""
        return len(self.prompts.search)

    @property
    def pairs(self) -> int:
        """Return the default number of baseline calls beside a candidate's."""
        return self._pairs

    @property
    def times_steps(self) -> bool:
        """Return whether single UNet calls of every candidate can be compared with plain ones."""
        return self._caller.times_steps

    @property
    def held_out_stages(self) -> tuple[int, ...]:
        """Return the numbers of held-out prompts at which a candidate is judged, ascending."""
        return stages(len(self.prompts.held_out), len(self._part("held_out")))

    def baseline(self, split: Split = "search", prompts: range | None = None) -> Measurement:
        """Measure the baseline pipeline on prompts of a part (None is all), and against itself.

        Returns:
            A score per prompt and a timing per full batch. Of prompts from the first on, the first
            `timing_pairs` batches, at least `NOISE_PAIRS`, are repeated at once for
            `baseline_seconds_per_image`. Empty for a part without prompts.

        Raises:
            InvalidImage: The baseline pipeline makes no valid image.
            OutOfMemoryError: It does not fit the device even at batch size 1.
            ContaminationError: The pipeline changed since the first candidate.
        """
        if not self._part(split):
            return Measurement((), (), (), self.batch_size)
        wanted = range(len(self._part(split))) if prompts is None else prompts
        with self._session():
            return self._until_it_fits(lambda: self._measure_baseline(split, wanted))

    def measure(
        self,
        candidate: Candidate,
        split: Split = "search",
        prompts: range | None = None,
        pairs: int | None = None,
        turn: int = 0,
    ) -> Measurement:
        """Measure a candidate beside the baseline; the arguments are those of `Evaluator.measure`.

        Raises:
            TrialFailure: The candidate cannot be measured; others can.
            OutOfMemoryError: It does not fit the device even at batch size 1.
            ContaminationError: The pipeline changed since the first candidate.
        """
        if not self._part(split):
            raise ValueError(f"there are no {split} prompts to measure on")
        wanted = range(len(self._part(split))) if prompts is None else prompts
        paired = self._pairs if pairs is None else pairs
        with self._session():
            try:
                result = self._until_it_fits(
                    lambda: self._measure_candidate(candidate, split, wanted, paired, turn)
                )
            except TrialFailure:
                self._growth.after_trial(str(candidate))
                raise
            self._growth.after_trial(str(candidate))
            return result

    def pictures(self, candidate: Candidate, count: int) -> torch.Tensor:
        """Make images of the first search prompts, untimed; the baseline's may be cached.

        Args:
            candidate: Settings to apply; the empty one is the baseline.
            count: Number of prompts.

        Returns:
            `[count, 3, H, W]`, uint8, on the CPU.

        Raises:
            TrialFailure: The accelerated pipeline raised.
            OutOfMemoryError: It does not fit the device even at batch size 1.
        """
        with self._session():
            return self._until_it_fits(lambda: self._make_images(candidate, count))

    def _make_images(self, candidate: Candidate, count: int) -> torch.Tensor:
        parts = []
        for batch in plan_batches(range(count), self.batch_size):
            images = None if candidate else self._baseline_images.get(("search", batch.prompts))
            if images is None:
                texts = self._prompts("search", batch)
                images = to_bytes(self._caller.call(self.workload, texts, candidate)[0])
            parts.append(images[: batch.scored])
        return torch.cat(parts)

    def check(self) -> None:
        """Check that the pipeline still makes the image it made before the first candidate.

        Raises:
            ContaminationError: It does not.
            BaselineError: It makes none.
        """
        with self._session():
            self._until_it_fits(lambda: self._sentinel.check(self.workload))

    @contextmanager
    def _session(self) -> Iterator[None]:
        self.accounting.start()
        try:
            with quiet_libraries():
                yield
        except TrialFailure as error:
            error.seconds = self.accounting.elapsed()
            raise
        finally:
            self.accounting.stop()

    def _until_it_fits(self, run: Callable[[], T]) -> T:
        while True:
            try:
                return run()
            except RuntimeError as error:
                if not memory.is_out_of_memory(error):
                    raise
                message = str(error)
            # Outside the handler: the error's traceback would keep the failed call's tensors.
            if not self._park_scorer(message):
                self._halve(message)

    def _park_scorer(self, message: str) -> bool:
        """Move the scorer off the device, before resorting to a smaller batch."""
        if self._scorer is None or not self._scorer.park():
            return False
        memory.release(self._device)
        self._log.warning(
            "out of memory at batch size %d (%s): from now on the scorer waits in main memory "
            "between scorings",
            self.batch_size,
            memory.parse_shortage(message),
        )
        return True

    def _halve(self, message: str) -> None:
        memory.release(self._device)
        shortage, load = memory.parse_shortage(message), self.workload
        self._tried.append(size := load.batch_size)
        if size == 1:
            raise OutOfMemoryError(
                f"--pipe {load.pipeline} at {load.height} × {load.width} pixels does not fit "
                f"{load.device} even at batch size 1 ({shortage}): lower --height and --width, "
                "or free memory on the device",
                bytes_asked=shortage.bytes_asked,
                bytes_free=shortage.bytes_free,
                batch_sizes=tuple(self._tried),
            )
        self._set_batch_size(size // 2)
        self._log.warning(
            "out of memory at batch size %d (%s): going on at batch size %d, where the baseline "
            "is measured again",
            size,
            shortage,
            self.batch_size,
        )

    def _set_batch_size(self, size: int) -> None:
        self.workload = replace(self.workload, batch_size=size)
        self.provenance = replace(self.provenance, batch_size=size)
        self._baseline_images.clear()

    def _measure_baseline(self, split: Split, prompts: range) -> Measurement:
        self._make_ready()
        if self._caller.last_applied is not None:
            self._sentinel.check(self.workload)  # The calls below may become references.
        samples = Samples(memory.PeakMeter(self._device), health=self._caller.health.begin())
        # The first prompts' pairs show how far calls differ by chance.
        pairs = 0 if prompts.start else max(self._pairs, NOISE_PAIRS)
        for step in plan_steps(plan_batches(prompts, self.batch_size), pairs):
            images, seconds = self._call_baseline(split, step.batch, samples.peak)
            if step.batch.timed:
                samples.seconds_per_image.append(seconds)
            if step.paired:
                _, seconds = self._call_baseline(split, step.batch, samples.peak)
                samples.baseline_seconds_per_image.append(seconds)
            if step.is_new and self._scorer is not None:
                texts = self._prompts(split, step.batch)
                check_images(images, texts, step.batch.prompts, are_baselines=True)
                samples.scores += self._score(split, step.batch, images, BASELINE)
                captions = [prompt.text for prompt in self._part(split)]
                scored = step.batch.prompts[: step.batch.scored]
                samples.shuffled_scores += self._scorer.score_shuffled(captions, scored)
        result = samples.measurement(self.batch_size, self.accounting.elapsed())
        known = self.baselines.get(split)
        if not prompts.start:
            self.baselines[split] = result
        elif known and (known.batch_size, len(known.scores)) == (self.batch_size, prompts.start):
            self.baselines[split] = known.joined(result)
        return result

    def _measure_candidate(
        self, candidate: Candidate, split: Split, prompts: range, pairs: int, turn: int
    ) -> Measurement:
        self._make_ready()
        known = self.baselines.get(split)
        if known is not None and known.batch_size != self.batch_size:
            self._measure_baseline(split, range(max(len(known.scores), prompts.stop)))
        kinds = numbered(describe_steps(candidate, self.workload))
        probed = steps_to_probe(kinds) if self._caller.times_steps else []
        probes = range(not prompts.start, PROBED_CALLS) if probed else range(0)
        plan = list(plan_steps(plan_batches(prompts, self.batch_size), pairs, turn, probes))
        self._make_references(split, [step.batch for step in plan])
        is_alone = not pairs and not prompts.start
        if is_alone:  # No baseline call will check what it leaves behind.
            self._sentinel.glance(self.workload)
        samples = Samples(memory.PeakMeter(self._device), health=self._caller.health.begin())
        for step in plan:
            texts = self._prompts(split, step.batch)
            if step.paired and step.baseline_first:
                samples.baseline_seconds_per_image.append(self._call_baseline(split, step.batch)[1])
            # After the first baseline call, which checks the candidate before this one.
            self._warm_up(texts, candidate)
            timer = self._caller.timer(probed if step.probed else (), samples.peak)
            load, peak = self.workload, samples.peak
            images, seconds = self._caller.call(load, texts, candidate, peak, timer)
            if step.paired and not step.baseline_first:
                samples.baseline_seconds_per_image.append(self._call_baseline(split, step.batch)[1])
            if step.batch.timed:
                samples.seconds_per_image.append(seconds)
                samples.add_step_times(timer, seconds, kinds, self.workload)
            if step.is_new and self._scorer is not None:
                check_images(images, texts, step.batch.prompts)
                samples.scores += self._score(split, step.batch, images, candidate)
                self._compare(split, step.batch, images, samples)
        if is_alone:
            self._sentinel.glance(self.workload)
        return samples.measurement(self.batch_size, self.accounting.elapsed())

    def _warm_up(self, prompts: Sequence[Prompt], candidate: Candidate = BASELINE) -> None:
        """Make an untimed call before a step type is timed at a batch size for the first time.

        A first call chooses kernels and allocates memory for new shapes, which depend only on the
        step types.
        """
        types = {(len(prompts), step) for step in describe_steps(candidate, self.workload)}
        if not types <= self._met:
            self._caller.warm_up(self.workload, prompts, candidate)
            self._met |= types

    def _call_baseline(
        self, split: Split, batch: Batch, peak: memory.PeakMeter | None = None
    ) -> tuple[torch.Tensor, float]:
        """Return the baseline's images, compared to their reference, and seconds per image."""
        images, seconds = self._caller.call(self.workload, self._prompts(split, batch), peak=peak)
        key = (split, batch.prompts)
        self._references.compare(key, images, self._caller.last_applied)
        if key not in self._baseline_images:
            self._baseline_images[key] = to_bytes(images)
        return images, seconds

    def _compare(self, split: Split, batch: Batch, images: torch.Tensor, samples: Samples) -> None:
        """Add the similarity of the scored images to the baseline's."""
        with self.accounting.comparing():
            reference = self._baseline_images[split, batch.prompts][: batch.scored]
            similarities = similarity(images[: batch.scored], reference)
        samples.psnr += similarities.psnr
        samples.ssim += similarities.ssim

    def _make_ready(self) -> None:
        """Warm up and check the pipeline before the first call of a batch size."""
        if (self.batch_size, PLAIN) not in self._met:
            first = plan_batches(range(len(self.prompts.search)), self.batch_size)[0]
            self._warm_up(self._prompts("search", first))
            self._sentinel.check(self.workload)

    def _make_references(self, split: Split, batches: list[Batch]) -> None:
        """Make the baseline's images that a resumed search lacks."""
        missing = {
            batch.prompts: batch
            for batch in batches
            if (split, batch.prompts) not in self._baseline_images
        }
        if missing and self._caller.last_applied is not None:
            self._sentinel.check(self.workload)
        for batch in missing.values():
            self._call_baseline(split, batch)

    def _part(self, split: Split) -> tuple[Prompt, ...]:
        prompts = self.prompts
        return prompts.search if split == "search" else prompts.held_out + prompts.further

    def _prompts(self, split: Split, batch: Batch) -> list[Prompt]:
        part = self._part(split)
        return [part[index] for index in batch.prompts]

    def _score(
        self, split: Split, batch: Batch, images: torch.Tensor, candidate: Candidate
    ) -> list[float]:
        """Score the images that count.

        Raises:
            TrialFailure: The candidate's images cannot be scored, but the baseline's can.
            BaselineError: Neither can.
        """
        texts = [prompt.text for prompt in self._prompts(split, batch)[: batch.scored]]
        assert self._scorer is not None
        score = partial(try_to_score, self._scorer, self._device, self.accounting, texts=texts)
        scores, wrong = score(images[: batch.scored])
        if wrong is None:
            return scores
        if candidate:
            kept = self._baseline_images[split, batch.prompts][: batch.scored]
            baseline = kept.to(images.device, torch.float32) / 255
            if score(baseline)[1] is None:
                raise TrialFailure(f"the images of {candidate} cannot be scored: {wrong}")
        raise BaselineError(
            f"the scorer fails on the baseline pipeline's images, it {wrong}: fix --clip_model and "
            "run the same command again to go on from the stored trials"
        )
