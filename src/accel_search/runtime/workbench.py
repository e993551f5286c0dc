"""Load pipeline, scorer and prompts once, and make evaluators of them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from accel_search.accelerators.compose import apply_candidate
from accel_search.accelerators.packages import check_workload
from accel_search.core.candidate import Value
from accel_search.core.loras import Lora
from accel_search.core.tasks import TEXT
from accel_search.core.workload import Prompt, PromptSet
from accel_search.errors import ConfigurationError
from accel_search.runtime.attention import use_kernel
from accel_search.runtime.compiling import compile_unet
from accel_search.runtime.devices import resolve_device, set_threads
from accel_search.runtime.loading.lora.files import LoraFile, find_loras
from accel_search.runtime.loading.pipeline_folder import PipelineFolder, check_name
from accel_search.runtime.loading.pipelines import (
    describe_workload,
    import_libraries,
    load_pipeline,
    random_pipeline,
    scheduler_of,
    timesteps,
)
from accel_search.runtime.loading.prompts import load_prompts
from accel_search.runtime.loading.random_weights import ARCHITECTURES
from accel_search.runtime.loading.schedulers import check_options
from accel_search.runtime.loading.single_file.load import PipelineFile
from accel_search.runtime.measuring.evaluator import PipelineEvaluator
from accel_search.runtime.measuring.timing_lock import TimingLock
from accel_search.runtime.memory import free_bytes
from accel_search.runtime.provenance import RANDOM_WEIGHTS, describe
from accel_search.runtime.scoring.clip import ClipScorer, load_scorer, weight_bytes
from accel_search.settings import Settings
from accel_search.storage.digests import digest_of

TIMED_PROMPT = "a small red ring to the left of a large blue star on white"
"""Prompt for where nothing is scored; every prompt is padded to one length."""
_Values = Mapping[str, Mapping[str, Sequence[Value]]]


class Workbench:
    """A pipeline, a scorer and prompts, loaded once for any number of schedulers and step counts.

    With `latency_only` there is no scorer, and SD1.5, SD2.1 and SDXL get random weights.

    Args:
        settings: What to load, where, in what precision, and whether to compile it.
        log: Gets notices and warnings.
        timing_lock: Keeps timed calls and other processes' loading apart.

    Raises:
        LoadError: A part or the device is missing.
        ConfigurationError: There are too few prompts.
        OutOfMemoryError: The weights do not fit the device.
    """

    def __init__(
        self, settings: Settings, log: logging.Logger, timing_lock: TimingLock | None = None
    ) -> None:
        device = resolve_device(settings.device)
        check_name(settings.pipe)
        _check_fit(settings, device)
        self._log = log
        self._timing_lock = timing_lock or TimingLock()
        self._threads = set_threads(settings.threads, device)
        self._scorer: ClipScorer | None = None
        self._folder: PipelineFolder | PipelineFile | None = None
        self._weights: str | None = None
        self._loras: tuple[Lora, ...] = ()
        self._pipe: Any
        # The prompts first: a mistake there shows before gigabytes are read.
        self._prompts = (
            timing_prompts(settings.batch_size) if settings.latency_only else load_prompts(settings)
        )
        import_libraries()
        sampler = settings.sampler_asked
        check_options(f"--sched {sampler}", sampler.class_name, sampler.options)
        # Before gigabytes are read, too.
        loras = find_loras(settings, log)
        with self._timing_lock.loading():
            self._load(settings, device, loras)

    def _load(self, settings: Settings, device: torch.device, loras: Sequence[LoraFile]) -> None:
        """Load what goes to the device."""
        limit_memory(settings.memory_limit, device)
        if not settings.latency_only:
            self._scorer = load_scorer(settings, device, parked=True)
        if settings.latency_only and settings.pipe in ARCHITECTURES:
            self._pipe = random_pipeline(settings, loras)
        else:
            task = self._prompts.task
            self._pipe, self._folder = load_pipeline(settings, self._log, task, loras)
            # After loading, which left the files in main memory.
            self._weights = digest_of(self._folder.files)
        self._loras = tuple(lora.record() for lora in loras)
        self._own_scheduler = (
            self._folder.scheduler if self._folder else self._pipe.scheduler.config
        )
        use_kernel(self._pipe, settings.attention)
        if settings.compile:
            compile_unet(self._pipe, settings.attention)
        if self._scorer is not None:
            place_scorer(self._scorer, self._pipe, settings, device, self._log)

    def evaluator(self, settings: Settings) -> PipelineEvaluator:
        """Return the evaluator of these settings.

        Args:
            settings: Of the same pipeline, prompts and scorer; scheduler, steps, size, batch,
                guidance and implementation may differ.

        Raises:
            ConfigurationError: The pipeline cannot make such images, or the packages not on it.
        """
        pipe = self._pipe
        pipe.scheduler = scheduler_of(settings, self._own_scheduler, type(pipe).__name__)
        workload = describe_workload(pipe, settings, self._folder, self._prompts)
        if settings.implementation == "package":
            _check_packages(self._prompts.task)
            times = timesteps(pipe, settings.steps)
            for targets, space in applied(settings):
                check_workload(targets, workload, times, space)
        provenance = describe(
            pipe,
            workload,
            self._prompts,
            revision=None if self._folder is None else self._folder.revision,
            remark=RANDOM_WEIGHTS if self._folder is None else None,
            weights=self._weights,
            loras=self._loras,
            vae=getattr(self._folder and self._folder.vae, "name", None),
            clip_model=None if self._scorer is None else self._scorer.name,
            threads=self._threads,
            attention=settings.attention,
            compiled=settings.compile,
            memory_limit=settings.memory_limit,
            implementation=settings.implementation,
            targets=settings.targets,
            **(getattr(self._folder, "adapters", None) or {}),
        )
        return PipelineEvaluator(
            pipe,
            self._scorer,
            self._prompts,
            workload,
            provenance,
            timing_pairs=settings.timing_pairs,
            compiled=settings.compile,
            apply=partial(apply_candidate, implementation=settings.implementation),
            timing_lock=self._timing_lock,
            log=self._log,
        )


def _check_packages(task: str) -> None:
    """Refuse what the packages count their steps wrong in, or know no pipeline of."""
    if task != TEXT:
        raise ConfigurationError(
            f"--implementation package: the packages accelerate {TEXT} alone, and the prompts file "
            f"asks for {task}: use --implementation own"
        )


def applied(settings: Settings) -> list[tuple[Collection[str], _Values]]:
    """Return the accelerators that are applied together, and their values."""
    if not settings.candidate:
        return [(settings.targets, settings.space)]
    return [
        (
            candidate,
            {
                name: {key: (value,) for key, value in params.items()}
                for name, params in candidate.items()
            },
        )
        for candidate in settings.candidate
    ]


def open_evaluator(settings: Settings, log: logging.Logger) -> PipelineEvaluator:
    """Load what one search needs and return its evaluator; raises as `Workbench`."""
    return Workbench(settings, log).evaluator(settings)


def _check_fit(settings: Settings, device: torch.device) -> None:
    """Raise ConfigurationError for options that fit neither the device nor each other."""
    if settings.offload and device.type != "cuda":
        raise ConfigurationError(
            f"--offload: moves parts between main memory and a GPU, but {device} is used; leave "
            "it out"
        )
    if settings.vae is not None and settings.latency_only and settings.pipe in ARCHITECTURES:
        raise ConfigurationError(
            f"--vae {settings.vae}: --latency_only loads nothing for --pipe {settings.pipe}; leave "
            "one of them out, or give a pipeline folder"
        )


def place_scorer(
    scorer: ClipScorer, pipe: Any, settings: Settings, device: torch.device, log: logging.Logger
) -> None:
    """Keep the scorer on the device if that leaves enough room, and log it if not.

    Enough is the size of the pipeline's weights: activations are of that order, and running out of
    memory would cost a measurement. With --offload, memory is short anyway.
    """
    if device.type == "cuda":
        weights = sum(
            weight_bytes(part)
            for part in pipe.components.values()
            if isinstance(part, torch.nn.Module)
        )
        free = free_bytes(device, settings.memory_limit)
        if settings.offload or free - scorer.weight_bytes < weights:
            log.info(
                "the scorer (%.1f GB) waits in main memory between scorings: %.1f GB are free on "
                "%s beside the pipeline",
                scorer.weight_bytes / 1e9,
                free / 1e9,
                device,
            )
            return
    scorer.unpark()


def timing_prompts(count: int) -> PromptSet:
    """Return prompts for one batch that is timed but not scored."""
    return PromptSet("timing", tuple(Prompt(TIMED_PROMPT, seed) for seed in range(count)), ())


def limit_memory(limit: float | None, device: torch.device) -> None:
    """Let torch allocate at most that many GiB on a GPU; None is no limit.

    Raises:
        ConfigurationError: The device is no GPU, or has less.
    """
    if limit is None:
        return
    if device.type != "cuda":
        raise ConfigurationError(
            f"--memory_limit {limit:g}: limits a CUDA device's memory, but {device} is used; leave "
            "it out"
        )
    total = torch.cuda.get_device_properties(device).total_memory
    if limit * 2**30 > total:
        raise ConfigurationError(
            f"--memory_limit {limit:g}: {device} has {total / 2**30:.1f} GiB; give less"
        )
    torch.cuda.set_per_process_memory_fraction(limit * 2**30 / total, device)
