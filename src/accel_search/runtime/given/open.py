"""Make an evaluator of a pipeline in memory, and give the pipeline back as it was."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from accel_search.accelerators.compose import Patch, apply_candidate
from accel_search.accelerators.packages import check_workload
from accel_search.core.candidate import Candidate
from accel_search.core.schedulers import sampler_name
from accel_search.core.workload import PromptSet, Workload
from accel_search.errors import ConfigurationError
from accel_search.runtime.demo import default_guidance, demo_folder
from accel_search.runtime.devices import dtype_name, execution_device
from accel_search.runtime.given.calls import OwnersCalls
from accel_search.runtime.given.fingerprint import digest_of_pipeline
from accel_search.runtime.given.watch import Watched, watch
from accel_search.runtime.loading.pipelines import (
    attention_downsamples,
    default_of,
    default_size,
    takes,
    timesteps,
)
from accel_search.runtime.loading.schedulers import build_scheduler, options_of
from accel_search.runtime.measuring.evaluator import PipelineEvaluator
from accel_search.runtime.provenance import describe
from accel_search.runtime.scoring.clip import load_scorer
from accel_search.runtime.workbench import applied, place_scorer
from accel_search.settings import Settings


def name_of(pipe: Any) -> str:
    """Return what a pipeline was loaded from, as `--pipe` names it; else its class.

    One that was made of another's components is named by what its UNet was loaded from.
    """
    own, unet = (str(part.config.get("_name_or_path") or "") for part in (pipe, pipe.unet))
    loaded = own or unet.removesuffix("unet").rstrip("/")
    if loaded and Path(loaded) == demo_folder() / "pipeline":
        return "demo"
    return loaded or type(pipe).__name__


def sampler_of(pipe: Any) -> str:
    """Return the sampler that a pipeline's own scheduler is."""
    own = pipe.scheduler
    return sampler_name(type(own).__name__, options_of(own))


@contextmanager
def borrowed(pipe: Any, settings: Settings, *, own_scheduler: bool) -> Iterator[None]:
    """Make a pipeline ready to be measured, for the length of a `with` block.

    It gets a scheduler of its own, no progress bars, and modules that are not in training. All of
    it is undone, whatever happens in the block.

    Args:
        pipe: Not accelerated.
        settings: The options.
        own_scheduler: Whether to measure with a copy of the pipeline's scheduler as it is, and not
            with the one that the settings name, made as a search makes it.

    Raises:
        AcceleratorError: It cannot be accelerated, or already is.
        LoadError: The scheduler cannot be made.
    """
    Patch(pipe, Candidate()).remove()
    with ExitStack() as stack:
        stack.callback(_put_back, pipe, dict(vars(pipe)))
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module) and any(each.training for each in part.modules()):
                training = [each for each in part.modules() if each.training]
                stack.callback(_train, training)
                part.eval()
        if settings.threads is not None:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(settings.threads)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = (
            copy.deepcopy(pipe.scheduler) if own_scheduler else _scheduler(pipe, settings)
        )
        yield


def _put_back(pipe: Any, attributes: Mapping[str, Any]) -> None:
    vars(pipe).clear()
    vars(pipe).update(attributes)


def _train(modules: list[torch.nn.Module]) -> None:
    for module in modules:
        module.training = True


def _scheduler(pipe: Any, settings: Settings) -> Any:
    sampler = settings.sampler_asked
    own = pipe.scheduler.config
    given = f"sched={settings.sched!r}"
    return build_scheduler(sampler.class_name, own, type(pipe).__name__, given, sampler.options)


def open_given(
    pipe: Any,
    prompts: PromptSet,
    settings: Settings,
    calls: OwnersCalls,
    log: logging.Logger,
) -> PipelineEvaluator:
    """Return the evaluator of a pipeline that is borrowed; one call is made to learn what it does.

    Args:
        pipe: On its device, in its precision, with the scheduler to measure with.
        prompts: To score on.
        settings: The options.
        calls: Prepares the calls.
        log: Gets warnings.

    Raises:
        AccelSearchError: As `watch`; the scorer cannot be loaded; the steps are not possible.
    """
    calls.check(pipe)
    device = execution_device(pipe)
    scorer = None if settings.latency_only else load_scorer(settings, device, parked=True)
    load = _workload(pipe, prompts, settings, calls)
    if settings.implementation == "package":
        times = timesteps(pipe, settings.steps)
        for targets, space in applied(settings):
            check_workload(targets, load, times, space)
    if scorer is not None:
        place_scorer(scorer, pipe, settings, device, log)
    is_compiled = any(
        getattr(module, "_compiled_call_impl", None) is not None for module in pipe.unet.modules()
    )
    provenance = describe(
        pipe,
        load,
        prompts,
        revision=None,
        weights=digest_of_pipeline(pipe),
        clip_model=None if scorer is None else scorer.name,
        threads=torch.get_num_threads() if device.type == "cpu" else settings.threads,
        compiled=is_compiled,
        implementation=settings.implementation,
        targets=settings.targets,
    )
    return PipelineEvaluator(
        pipe,
        scorer,
        prompts,
        load,
        provenance,
        timing_pairs=settings.timing_pairs,
        compiled=is_compiled,
        apply=partial(apply_candidate, implementation=settings.implementation),
        prepare=calls.prepare,
        log=log,
    )


def _workload(pipe: Any, prompts: PromptSet, settings: Settings, calls: OwnersCalls) -> Workload:
    """Return what is measured, as far as asked, and for the rest as one call shows it."""
    height, width = default_size(pipe, settings.pipe)
    asked = Workload(
        pipeline=settings.pipe,
        pipeline_class=type(pipe).__name__,
        scheduler_class=type(pipe.scheduler).__name__,
        steps=settings.steps,
        unet_calls=len(timesteps(pipe, settings.steps)),
        height=settings.height or height,
        width=settings.width or width,
        batch_size=settings.batch_size,
        guidance_scale=_guidance(pipe, settings),
        dtype=dtype_name(pipe.unet.dtype),
        device=str(execution_device(pipe)),
        latent_height=(settings.height or height) // pipe.vae_scale_factor,
        latent_width=(settings.width or width) // pipe.vae_scale_factor,
        attention_downsamples=attention_downsamples(pipe.unet),
        call=calls.described(pipe),
    )
    seen = watch(pipe, calls.prepare(pipe, asked, prompts.search[:1]))
    return _as_seen(asked, seen, settings)


def _as_seen(asked: Workload, seen: Watched, settings: Settings) -> Workload:
    from dataclasses import replace

    is_guided = seen.rows > 1
    guidance = asked.guidance_scale
    if is_guided is not asked.has_guidance:
        if settings.guidance_scale is not None:
            raise ConfigurationError(
                f"guidance_scale={settings.guidance_scale:g}: the pipeline's calls are "
                f"{'with' if is_guided else 'without'} guidance: give the scale that they have"
            )
        guidance = 7.5 if is_guided else 1.0
    height, width = seen.pictures.shape[-2:]
    return replace(
        asked,
        unet_calls=seen.unet_calls,
        height=height,
        width=width,
        guidance_scale=guidance,
        latent_height=seen.latent_size[0],
        latent_width=seen.latent_size[1],
    )


def _guidance(pipe: Any, settings: Settings) -> float:
    """Return the guidance scale asked for; else the demo's, or the default of the pipeline."""
    if settings.guidance_scale is not None:
        return settings.guidance_scale
    if settings.pipe == "demo":
        own = default_guidance(demo_folder() / "pipeline")
        if own is not None:
            return own
    return float(default_of(pipe, "guidance_scale")) if takes(pipe, "guidance_scale") else 7.5
