"""What is known of a workload before its pipeline is loaded."""

from __future__ import annotations

from types import SimpleNamespace

from accel_search.core.workload import Workload
from accel_search.errors import AccelSearchError
from accel_search.runtime.loading.pipelines import timesteps
from accel_search.runtime.loading.published import SCHEDULE
from accel_search.runtime.loading.schedulers import build_scheduler, check_options
from accel_search.runtime.quiet import quiet_libraries
from accel_search.settings import Settings

_CLASS = "StableDiffusionPipeline"
_GUIDANCE = 7.5
"""Default of that class's call; any that guides makes the same UNet calls."""


def expected_workload(settings: Settings) -> Workload | None:
    """Return the workload by the options alone: its UNet calls, and whether it is guided.

    Its sizes are SD1.5's, and decide nothing but which settings of ToMe are one.

    Returns:
        None where the scheduler cannot be made so, which is said where the pipeline is loaded.
    """
    sampler = settings.sampler_asked
    try:
        with quiet_libraries():
            check_options(f"--sched {sampler}", sampler.class_name, sampler.options)
            scheduler = build_scheduler(sampler.class_name, SCHEDULE, _CLASS, asked=sampler.options)
            calls = len(timesteps(SimpleNamespace(scheduler=scheduler), settings.steps))
    except AccelSearchError:
        return None
    guidance = settings.guidance_scale
    return Workload(
        pipeline=settings.pipe,
        pipeline_class=_CLASS,
        scheduler_class=sampler.class_name,
        steps=settings.steps,
        unet_calls=calls,
        height=512,
        width=512,
        batch_size=settings.batch_size,
        guidance_scale=_GUIDANCE if guidance is None else guidance,
        dtype="float32",
        device="cpu",
        latent_height=64,
        latent_width=64,
        attention_downsamples=(1, 2, 4, 8),
    )
