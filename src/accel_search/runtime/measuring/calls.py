"""Timed pipeline calls, of the baseline or a candidate, and an evaluator's account of time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from accel_search.accelerators.patching import layered
from accel_search.core.candidate import Candidate, Params
from accel_search.core.machine_health import Health
from accel_search.core.step_times import StepTimes
from accel_search.core.trial import Measurement
from accel_search.core.workload import Prompt, Workload
from accel_search.errors import (
    AcceleratorError,
    AccelSearchError,
    BaselineError,
    TrialFailure,
    first_line,
)
from accel_search.runtime.compiling import graphs_compiled, is_compile_error
from accel_search.runtime.devices import execution_device
from accel_search.runtime.measuring.generation import Call, Prepare, prepare
from accel_search.runtime.measuring.health import HealthSampler
from accel_search.runtime.measuring.step_timer import StepTimer, has_hooks, plain_twin
from accel_search.runtime.measuring.timing import timed, warm_up_steps
from accel_search.runtime.measuring.timing_lock import TimingLock
from accel_search.runtime.memory import PeakMeter, is_out_of_memory

Apply = Callable[[Any, Mapping[str, Params]], AbstractContextManager[None]]
"""Applies a candidate to a pipeline for the length of a `with` block."""

BASELINE = Candidate()

GLANCE_STEPS = 2
"""Denoising steps by which it is checked whether a candidate left the pipeline changed."""
COMPILING_CALLS = 4
"""Successive calls that may compile something before a pipeline counts as untimeable."""


@dataclass
class Accounting:
    """Wall time of an evaluator, by what it was spent on."""

    pipeline_seconds: float = 0.0
    """Pipeline calls, warm-ups and checks included."""
    scoring_seconds: float = 0.0
    """CLIP scoring."""
    comparing_seconds: float = 0.0
    """Comparison with the baseline's images."""
    total_seconds: float = 0.0
    """Everything, from call to return."""
    _started: float | None = field(default=None, repr=False)

    @contextmanager
    def comparing(self) -> Iterator[None]:
        """Count a block as comparison of images."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.comparing_seconds += time.perf_counter() - began

    def start(self) -> None:
        """Start counting one measurement."""
        self._started = time.perf_counter()

    def elapsed(self) -> float:
        """Return the seconds since `start`; 0 where nothing is counted."""
        return 0.0 if self._started is None else time.perf_counter() - self._started

    def stop(self) -> None:
        """Stop counting one measurement."""
        self.total_seconds += self.elapsed()
        self._started = None


@dataclass
class Samples:
    """The samples of one measurement so far."""

    peak: PeakMeter
    """Watches the measured calls, not the baseline's beside them."""
    health: list[Health] = field(default_factory=list)
    """The machine at each call, the baseline's included."""
    seconds_per_image: list[float] = field(default_factory=list)
    baseline_seconds_per_image: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    shuffled_scores: list[float] = field(default_factory=list)
    step_times: list[StepTimes] = field(default_factory=list)

    def add_step_times(
        self, timer: StepTimer | None, seconds: float, kinds: Sequence[int], workload: Workload
    ) -> None:
        """Add the times of the UNet calls of a call of the full batch size.

        Args:
            timer: Has timed it; None adds nothing.
            seconds: Its seconds per image.
            kinds: Number of the step type of each UNet call; 0 is a plain one.
            workload: The baseline's.
        """
        images, calls = workload.batch_size, workload.unet_calls
        times = None if timer is None else timer.times(seconds * images, images, kinds, calls)
        if times is not None:
            self.step_times.append(times)

    def measurement(self, batch_size: int, seconds: float) -> Measurement:
        """Return the finished measurement.

        Args:
            batch_size: Images per call.
            seconds: Wall seconds, everything included.
        """
        return Measurement(
            seconds_per_image=tuple(self.seconds_per_image),
            baseline_seconds_per_image=tuple(self.baseline_seconds_per_image),
            scores=tuple(self.scores),
            batch_size=batch_size,
            peak_memory_bytes=self.peak.peak_bytes,
            seconds=seconds,
            psnr=tuple(self.psnr),
            ssim=tuple(self.ssim),
            shuffled_scores=tuple(self.shuffled_scores),
            step_times=tuple(self.step_times),
            health=tuple(self.health),
        )


class Caller:
    """Calls one pipeline, with or without a candidate applied.

    Args:
        pipe: A baseline pipeline on its device.
        apply: Applies a candidate; entered and left around each call, outside its time.
        accounting: Counts every call.
        compiled: Whether the UNet is compiled: a call that compiles anything is repeated.
        times_steps: Whether UNet calls that are described as plain are as the baseline's.
        prepare: Prepares every call.
        timing_lock: Keeps calls apart from other processes' loading.
        log: Gets warnings.
    """

    def __init__(
        self,
        pipe: Any,
        apply: Apply,
        accounting: Accounting,
        *,
        compiled: bool = False,
        times_steps: bool = True,
        prepare: Prepare = prepare,
        timing_lock: TimingLock | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        self.last_applied: Candidate | None = None
        """The candidate that was applied last; None before the first."""
        self._pipe = pipe
        self._apply = apply
        self._accounting = accounting
        self._compiled = compiled
        self._prepare = prepare
        self._timing_lock = timing_lock or TimingLock()
        self._log = log or logging.getLogger(__name__)
        self._device = execution_device(pipe)
        # A copy of a compiled UNet would have to be compiled too, and hooks of offloading move the
        # weights of one UNet.
        self.times_steps = times_steps and not compiled and not has_hooks(pipe.unet)
        """Whether UNet calls of a candidate can be compared with plain ones."""
        self.health = HealthSampler(self._device)

    def call(
        self,
        workload: Workload,
        prompts: Sequence[Prompt],
        candidate: Candidate = BASELINE,
        peak: PeakMeter | None = None,
        timer: StepTimer | None = None,
    ) -> tuple[torch.Tensor, float]:
        """Make one image per prompt in one pipeline call.

        Args:
            workload: Size, steps and guidance.
            prompts: One per image.
            candidate: Settings to apply; the empty one is the baseline.
            peak: Records the call's memory.
            timer: Times its UNet calls.

        Returns:
            Images `[B, 3, H, W]`, float32, 0..1, and the call's wall seconds per image, plain UNet
            calls of the timer left out.

        Raises:
            TrialFailure: The accelerated pipeline raised.
            AcceleratorError: The pipeline cannot be compiled, alone or with the candidate.
        """
        before = None if peak is None else peak.peak_bytes
        for _ in range(COMPILING_CALLS):
            graphs = graphs_compiled() if self._compiled else 0
            # Prepared for each call, because generators advance.
            call = self._prepare(self._pipe, workload, prompts)
            images, seconds = self._run(call, candidate, peak, timer)
            if not self._compiled or graphs_compiled() == graphs:
                self.health.keep()
                return images.float(), seconds / len(prompts)
            if peak is not None:
                peak.peak_bytes = before  # Compiling takes memory of its own.
        raise AcceleratorError(
            f"--compile: {candidate or 'the baseline pipeline'} compiles at every call, so it "
            "cannot be timed: search without --compile"
        )

    def timer(
        self, probed: Collection[int] = (), peak: PeakMeter | None = None
    ) -> StepTimer | None:
        """Return what times the UNet calls of one pipeline call; None where it would not tell.

        Args:
            probed: Indices of the UNet calls that a plain one is to follow.
            peak: Watches the memory of that call.
        """
        if not self.times_steps:
            return None
        return StepTimer(self._device, probed, self._twin if probed else None, peak)

    @cached_property
    def _twin(self) -> Any:
        return plain_twin(self._pipe.unet)

    def glance(self, workload: Workload, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Return what a few steps of the baseline make of prompts.

        Returns:
            Latents `[B, C, h, w]`, float32.
        """
        steps = min(GLANCE_STEPS, workload.steps)
        call = self._prepare(self._pipe, workload, prompts, steps, decode=False)
        return self._run(call, BASELINE)[0].float()

    def warm_up(
        self, workload: Workload, prompts: Sequence[Prompt], candidate: Candidate = BASELINE
    ) -> None:
        """Make the untimed call before a configuration's first timed one.

        `timing.warm_up_steps` gives its length. A short warm-up of a candidate leaves out the
        decoder, which no accelerator changes.
        """
        steps = warm_up_steps(self._device, workload.steps)
        decode = steps == workload.steps or not candidate
        self._run(self._prepare(self._pipe, workload, prompts, steps, decode=decode), candidate)

    def _run(
        self,
        call: Call,
        candidate: Candidate,
        peak: PeakMeter | None = None,
        timer: StepTimer | None = None,
    ) -> tuple[torch.Tensor, float]:
        watch = self._watch(peak, timer)
        try:
            with self._timing_lock.timing(), self.health.watch():
                if candidate:
                    images, seconds = self._run_accelerated(call, candidate, watch)
                else:
                    with watch:
                        images, seconds = timed(call, self._device)
        except Exception as error:
            if self._compiled and is_compile_error(error):
                raise AcceleratorError(
                    f"--compile: {candidate or 'the baseline pipeline'} cannot be compiled "
                    f"({first_line(error, 160)}): search without --compile"
                    + (", or without that target" if candidate else "")
                ) from error
            if candidate or isinstance(error, AccelSearchError) or is_out_of_memory(error):
                raise
            raise BaselineError(self._blame(error)) from error
        self._accounting.pipeline_seconds += seconds
        if timer is not None:
            seconds -= timer.probing_seconds()
            if timer.failure is not None:
                self.times_steps = False
                self._log.warning(
                    "a plain UNet call, made for comparison, failed (%s): from now on candidates "
                    "are timed in pairs alone",
                    timer.failure,
                )
        return images, seconds

    @contextmanager
    def _watch(self, peak: PeakMeter | None, timer: StepTimer | None) -> Iterator[None]:
        """Watch the memory and the UNet calls of one pipeline call."""
        with ExitStack() as stack:
            if timer is not None:
                timer.start()
                # Outside the candidate's own layers.
                stack.enter_context(layered(self._pipe.unet, timer))
            if peak is not None:
                stack.enter_context(peak.watch())
            yield

    def _blame(self, error: Exception) -> str:
        """Return the message for a baseline pipeline that raised."""
        message = f"the baseline pipeline raised {first_line(error)}"
        if self.last_applied is None:
            return f"{message}: fix the model, or choose another --dtype or --device"
        return (
            f"{message}; the last candidate was {self.last_applied}, whose accelerators may leave "
            "the pipeline changed, or the device no longer works: run the same command again to go "
            "on from the stored trials in a new process"
        )

    def _run_accelerated(
        self, call: Call, candidate: Candidate, watch: AbstractContextManager[None]
    ) -> tuple[torch.Tensor, float]:
        self.last_applied = candidate
        try:
            with self._apply(self._pipe, candidate), watch:
                return timed(call, self._device)
        except AccelSearchError:
            raise
        except Exception as error:
            if is_out_of_memory(error) or (self._compiled and is_compile_error(error)):
                raise
            # One candidate that raises must not end the search.
            raise TrialFailure(f"{candidate} raised {first_line(error)}") from error
