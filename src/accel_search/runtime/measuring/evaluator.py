"""Measures candidates on a real pipeline, beside the baseline, and proves it comes back."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch

from accel_search.accelerators.base import PLAIN, StepType
from accel_search.accelerators.computation import describe_steps
from accel_search.core.candidate import Candidate
from accel_search.core.trial import Measurement
from accel_search.core.workload import Prompt, PromptSet, Provenance, Workload
from accel_search.errors import (
    AccelSearchError,
    BaselineError,
    InvalidImage,
    OutOfMemoryError,
    TrialFailure,
    first_line,
)
from accel_search.runtime import memory
from accel_search.runtime.devices import execution_device
from accel_search.runtime.measuring.batches import Batch, plan_batches, plan_steps
from accel_search.runtime.measuring.calls import BASELINE, Accounting, Apply, Caller, Samples
from accel_search.runtime.measuring.contamination import References
from accel_search.runtime.measuring.generation import check_images
from accel_search.runtime.measuring.timing import timed
from accel_search.runtime.measuring.timing_lock import Turns
from accel_search.runtime.quiet import quiet_libraries
from accel_search.runtime.scoring.clip import ClipScorer
from accel_search.runtime.scoring.similarity import similarity, to_bytes

T = TypeVar("T")
Split = Literal["search", "held_out"]

NOISE_PAIRS = 4
"""Least number of times the baseline is timed against itself: every trial's interval leans on
the spread found there, and a single hiccup must not make it."""


class PipelineEvaluator:
    """Measures candidates by making and scoring images.

    Every call whose time counts has full batch size. The accelerator is entered and left around
    each candidate call, outside its time, so that each baseline call beside it runs on the bare
    pipeline; its images have to be bit-identical to those made before any accelerator was
    applied, which is how one that leaves something behind is found out.

    Where memory is short the scorer is moved off the device between scorings, which changes no
    score and is outside all times. A batch that still does not fit is halved, for good: the
    baseline of the part in hand is measured again at the new size (`baselines` holds it), then the
    candidate.

    Args:
        pipe: A baseline pipeline on its device, in eval mode.
        scorer: Scores images against texts; None leaves pictures unlooked at, and scores empty.
        prompts: What is scored on.
        workload: What is measured.
        provenance: Where and with what.
        timing_pairs: Baseline calls timed beside each candidate's own.
        compiled: Whether the UNet is compiled, so that calls may have to be made again.
        apply: Applies a candidate; None takes `accelerators.compose.apply_candidate`.
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
        timing_pairs: int = 3,
        compiled: bool = False,
        apply: Apply | None = None,
        turns: Turns | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        if apply is None:
            from accel_search.accelerators.compose import apply_candidate

            apply = apply_candidate
        self.workload = workload
        self.provenance = provenance
        self.prompts = prompts
        self.accounting = Accounting()
        self.baselines: dict[Split, Measurement] = {}
        """The latest baseline of each part."""
        self._caller = Caller(pipe, apply, self.accounting, compiled=compiled, turns=turns)
        self._scorer = scorer
        self._pairs = timing_pairs
        self._log = log or logging.getLogger(__name__)
        self._device = execution_device(pipe)
        self._growth = memory.GrowthWatch(self._device, self._log)
        self._references = References(self._log)
        self._pictures: dict[Hashable, torch.Tensor] = {}
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
        """Images a call, as of now."""
        return self.workload.batch_size

    @property
    def device(self) -> torch.device:
        """Device that is computed on."""
        return self._device

    @property
    def chunk(self) -> int:
        """Prompts that can be scored at a time: those of one call."""
        return self.batch_size

    @property
    def prompt_count(self) -> int:
        """Prompts that a candidate is fully scored on."""
        return len(self.prompts.search)

    @property
    def pairs(self) -> int:
        """Baseline calls that a candidate is timed beside, unless told otherwise."""
        return self._pairs

    def baseline(self, split: Split = "search") -> Measurement:
        """Measure the baseline pipeline on every prompt of a part, and against itself.

        Args:
            split: Part of the prompts.

        Returns:
            Scores of every prompt and a sample a full batch; each of the first `timing_pairs`
            batches, but at least `NOISE_PAIRS`, is run a second time right after, as its
            `baseline_seconds_per_image`. A part without prompts has neither.

        Raises:
            InvalidImage: The baseline pipeline itself makes no valid image.
            OutOfMemoryError: It does not fit the device even at batch size 1.
            ContaminationError: The pipeline is no longer what it was.
        """
        if not self._part(split):
            return Measurement((), (), (), self.batch_size)
        with self._session():
            return self._until_it_fits(lambda: self._measure_baseline(split))

    def measure(
        self,
        candidate: Candidate,
        split: Split = "search",
        prompts: range | None = None,
        pairs: int | None = None,
    ) -> Measurement:
        """Measure a candidate beside the baseline.

        Args:
            candidate: Settings to apply.
            split: Part of the prompts.
            prompts: Which of the part's prompts; None is all.
            pairs: Baseline calls to be timed beside the candidate's; None takes `self.pairs`.

        Raises:
            TrialFailure: The candidate cannot be measured; others can.
            OutOfMemoryError: It does not fit the device even at batch size 1.
            ContaminationError: The pipeline is no longer what it was.
        """
        if not self._part(split):
            raise ValueError(f"there are no {split} prompts to measure on")
        wanted = range(len(self._part(split))) if prompts is None else prompts
        paired = self._pairs if pairs is None else pairs
        with self._session():
            try:
                result = self._until_it_fits(
                    lambda: self._measure_candidate(candidate, split, wanted, paired)
                )
            except TrialFailure:
                self._growth.after_trial(str(candidate))
                raise
            self._growth.after_trial(str(candidate))
            return result

    def pictures(self, candidate: Candidate, count: int) -> torch.Tensor:
        """Make the pictures of the first search prompts, untimed; the baseline's may be at hand.

        Args:
            candidate: Settings to apply; the empty one is the baseline.
            count: Prompts.

        Returns:
            `[count, 3, H, W]`, uint8, on the CPU.

        Raises:
            TrialFailure: The accelerated pipeline raised.
            OutOfMemoryError: It does not fit the device even at batch size 1.
        """
        with self._session():
            return self._until_it_fits(lambda: self._make_pictures(candidate, count))

    def _make_pictures(self, candidate: Candidate, count: int) -> torch.Tensor:
        made = []
        for batch in plan_batches(range(count), self.batch_size):
            kept = None if candidate else self._pictures.get(("search", batch.prompts))
            if kept is None:
                texts = self._prompts("search", batch)
                kept = to_bytes(self._caller.call(self.workload, texts, candidate)[0])
            made.append(kept[: batch.scored])
        return torch.cat(made)

    def check(self) -> None:
        """Check that the pipeline still makes the image it made before the first candidate.

        Raises:
            ContaminationError: It does not.
            BaselineError: It makes none.
        """
        with self._session():
            self._until_it_fits(self._check_sentinel)

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
        """Give the scorer's memory to the pipeline; a smaller batch is the dearer answer."""
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
        shortage = memory.parse_shortage(message)
        size, load = self.batch_size, self.workload
        self._tried.append(size)
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
        self._pictures.clear()  # They are of batches that will not come again.

    def _measure_baseline(self, split: Split) -> Measurement:
        self._make_ready()
        if self._caller.last_applied is not None:
            self._check_sentinel()  # References may be about to be made.
        samples = Samples(memory.PeakMeter(self._device))
        batches = plan_batches(range(len(self._part(split))), self.batch_size)
        for step in plan_steps(batches, max(self._pairs, NOISE_PAIRS)):
            images, seconds = self._call_bare(split, step.batch, samples.peak)
            if step.batch.timed:
                samples.seconds_per_image.append(seconds)
            if step.paired:
                _, seconds = self._call_bare(split, step.batch, samples.peak)
                samples.baseline_seconds_per_image.append(seconds)
            if step.is_new and self._scorer is not None:
                self._check_bare(split, step.batch, images)
                samples.scores += self._score(split, step.batch, images, BASELINE)
        result = samples.measurement(self.batch_size, self.accounting.elapsed())
        self.baselines[split] = result
        return result

    def _measure_candidate(
        self, candidate: Candidate, split: Split, prompts: range, pairs: int
    ) -> Measurement:
        self._make_ready()
        known = self.baselines.get(split)
        if known is not None and known.batch_size != self.batch_size:
            self._measure_baseline(split)
        plan = list(plan_steps(plan_batches(prompts, self.batch_size), pairs))
        self._make_references(split, [step.batch for step in plan])
        samples = Samples(memory.PeakMeter(self._device))
        for step in plan:
            texts = self._prompts(split, step.batch)
            if step.paired and step.baseline_first:
                samples.baseline_seconds_per_image.append(self._call_bare(split, step.batch)[1])
            # After the first baseline call, which vouches for the candidate before this one.
            self._warm_up(texts, candidate)
            images, seconds = self._caller.call(self.workload, texts, candidate, peak=samples.peak)
            if step.paired and not step.baseline_first:
                samples.baseline_seconds_per_image.append(self._call_bare(split, step.batch)[1])
            if step.batch.timed:
                samples.seconds_per_image.append(seconds)
            if step.is_new and self._scorer is not None:
                check_images(images, texts, step.batch.prompts)
                samples.scores += self._score(split, step.batch, images, candidate)
                self._compare(split, step.batch, images, samples)
        return samples.measurement(self.batch_size, self.accounting.elapsed())

    def _warm_up(self, prompts: Sequence[Prompt], candidate: Candidate = BASELINE) -> None:
        """Make an untimed call before a step type is timed at a batch size for the first time.

        What a first call pays for, kernels chosen and memory allocated for new shapes, hangs on
        the shapes alone, and those on what is done in each UNet call.
        """
        types = {(len(prompts), step) for step in describe_steps(candidate, self.workload)}
        if not types <= self._met:
            self._caller.warm_up(self.workload, prompts, candidate)
            self._met |= types

    def _call_bare(
        self, split: Split, batch: Batch, peak: memory.PeakMeter | None = None
    ) -> tuple[torch.Tensor, float]:
        """Return the baseline's images, compared to their reference, and seconds per image."""
        images, seconds = self._caller.call(self.workload, self._prompts(split, batch), peak=peak)
        key = (split, batch.prompts)
        self._references.compare(key, images, self._caller.last_applied)
        if key not in self._pictures:
            self._pictures[key] = to_bytes(images)
        return images, seconds

    def _compare(self, split: Split, batch: Batch, images: torch.Tensor, samples: Samples) -> None:
        """Add how near the images that count are to the baseline's."""
        with self.accounting.comparing():
            reference = self._pictures[split, batch.prompts][: batch.scored]
            found = similarity(images[: batch.scored], reference)
        samples.psnr += found.psnr
        samples.ssim += found.ssim

    def _check_bare(self, split: Split, batch: Batch, images: torch.Tensor) -> None:
        try:
            check_images(images, self._prompts(split, batch), batch.prompts)
        except InvalidImage as error:
            raise InvalidImage(
                f"{error}, made by the baseline pipeline: use --dtype float32 or bfloat16, or mend "
                "the model"
            ) from error

    def _make_ready(self) -> None:
        """Before the first call of a batch size: warm up, and prove that the pipeline is bare."""
        if (self.batch_size, PLAIN) not in self._met:
            first = plan_batches(range(len(self.prompts.search)), self.batch_size)[0]
            self._warm_up(self._prompts("search", first))
            self._check_sentinel()

    def _check_sentinel(self) -> None:
        # One image, at the one batch size that fits if any does: it vouches for the pipeline
        # where references are to be made after candidates were applied.
        images, _ = self._caller.call(self.workload, self.prompts.search[:1])
        self._references.compare("sentinel", images, self._caller.last_applied)

    def _make_references(self, split: Split, batches: list[Batch]) -> None:
        """Make the baseline pictures that a resumed search lacks: an earlier run measured it."""
        missing = {
            batch.prompts: batch
            for batch in batches
            if (split, batch.prompts) not in self._pictures
        }
        if missing and self._caller.last_applied is not None:
            self._check_sentinel()
        for batch in missing.values():
            self._call_bare(split, batch)

    def _part(self, split: Split) -> tuple[Prompt, ...]:
        return self.prompts.search if split == "search" else self.prompts.held_out

    def _prompts(self, split: Split, batch: Batch) -> list[Prompt]:
        part = self._part(split)
        return [part[index] for index in batch.prompts]

    def _score(
        self, split: Split, batch: Batch, images: torch.Tensor, candidate: Candidate
    ) -> list[float]:
        """Score the images that count; a failure is the candidate's only if it is not the scorer's.

        Raises:
            TrialFailure: The candidate's images cannot be scored, the baseline's can.
            BaselineError: Neither can.
        """
        texts = [prompt.text for prompt in self._prompts(split, batch)[: batch.scored]]
        scores, wrong = self._try_to_score(images[: batch.scored], texts)
        if wrong is None:
            return scores
        if candidate:
            kept = self._pictures[split, batch.prompts][: batch.scored]
            bare = kept.to(images.device, torch.float32) / 255
            if self._try_to_score(bare, texts)[1] is None:
                raise TrialFailure(f"the images of {candidate} cannot be scored: {wrong}")
        raise BaselineError(
            f"the scorer fails on the baseline pipeline's images, it {wrong}: fix --clip_model and "
            "run the same command again to go on from the stored trials"
        )

    def _try_to_score(
        self, images: torch.Tensor, texts: list[str]
    ) -> tuple[list[float], str | None]:
        """Return scores, and what is wrong with them; None if nothing is."""
        scorer = self._scorer
        assert scorer is not None
        try:
            scores, seconds = timed(lambda: scorer.score(images, texts), self._device)
        except Exception as error:
            if memory.is_out_of_memory(error) or isinstance(error, AccelSearchError):
                raise
            return [], f"raised {first_line(error)}"
        self.accounting.scoring_seconds += seconds
        if len(scores) != len(texts):
            return scores, f"returned {len(scores)} scores for {len(texts)} images"
        if not all(math.isfinite(each) for each in scores):
            return scores, f"returned {next(s for s in scores if not math.isfinite(s))} as a score"
        return scores, None
