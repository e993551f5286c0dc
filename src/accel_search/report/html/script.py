"""The winner as Python: lines to copy, and a complete script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from keyword import iskeyword
from pathlib import Path
from typing import Any

from accel_search.accelerators.packages import script_parts
from accel_search.core.candidate import Candidate
from accel_search.core.loras import loading_lines
from accel_search.core.schedulers import class_and_options, scheduler_name
from accel_search.errors import ConfigurationError
from accel_search.report.format import (
    choosing,
    factor,
    literal,
    percent,
    python_lines,
    scheduler_option,
)
from accel_search.report.html.render import render_text
from accel_search.storage.entries import estimate_of
from accel_search.storage.json_files import write_atomically
from accel_search.storage.run import Run

CALL = ("negative_prompt", "clip_skip")
"""Further arguments of a call that a script may have; a file may hold any name."""
PROMPT = "a photo of an astronaut riding a horse on mars"
DEMO_PROMPT = "a small red ring to the left of a large blue star on white"


def direct_lines(run: Run) -> list[str]:
    """Return the lines that apply the winner's settings, written out."""
    assert run.winner is not None
    options = scheduler_option(run.record.workload.scheduler_class, run.asked.sched)
    if run.record.where.implementation == "package":
        options = [*options, *choosing({"implementation": "package"})]
    return _lines(run, literal(run.winner.candidate), *options)


def _package(run: Run, candidate: Candidate) -> dict[str, Any]:
    """Return what the script has in place of accel-search where the packages were measured."""
    load = run.record.workload
    is_xl = "XL" in load.pipeline_class
    imports, lines, call, arguments = script_parts(candidate, is_xl=is_xl)
    return {
        "imports": imports,
        "lines": lines,
        "call": call,
        "arguments": arguments,
        "scheduler_class": load.scheduler_class,
        "options": _scheduler_options(
            load.pipeline_class, scheduler_name(load.scheduler_class, run.asked.sched)
        ),
        "demo": repr(str(files("accel_search") / "demo" / "pipeline")),
    }


def _scheduler_options(pipeline_class: str, sampler: str) -> dict[str, str]:
    """Return what a search sets of a scheduler, whatever the pipeline's own has."""
    class_name, asked = class_and_options(sampler)
    options: dict[str, Any] = dict(asked)
    if class_name == "DDIMScheduler":
        options["clip_sample"] = False
    if pipeline_class == "StableDiffusionPipeline":
        options["steps_offset"] = 1
    return {name: repr(value) for name, value in options.items()}


def _predicting(scheduler: Mapping[str, Any]) -> dict[str, str]:
    """Return the options by which a file's scheduler knows what its model predicts, as Python."""
    known = {"prediction_type": "epsilon"} | dict(scheduler)
    names = ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")
    return {name: repr(known[name]) for name in names if name in known}


def file_lines(run: Run) -> list[str]:
    """Return the lines that apply the result file's entry; none where no file was written."""
    asked, load = run.asked, run.record.workload
    if not asked.output or not load.steps or asked.replay:
        return []
    # All that selects this search's result: the file may hold others by the time of reading.
    choice = {"req_score_loss": asked.req_score_loss, "targets": asked.targets}
    options = [
        *choosing({"steps": load.steps}),
        *scheduler_option(load.scheduler_class, asked.sched),
        *choosing({name: value for name, value in choice.items() if value is not None}),
    ]
    file = json.dumps(asked.output, ensure_ascii=False)
    return _lines(run, file, *options)


def _lines(run: Run, settings: str, *options: str) -> list[str]:
    where = run.record.where
    return python_lines(settings, *options, compiled=where.compiled, loras=where.loras)


def _is_compiled(run: Run) -> bool:
    return run.record.where.compiled


def write_script(run: Run, path: Path) -> None:
    """Write a script that makes an image with the winner's settings.

    Raises:
        ConfigurationError: The run has no winner or does not name its pipeline, or the file cannot
            be written.
    """
    text = script(run)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise ConfigurationError(f"--export {path}: {error.strerror}") from error


def script(run: Run) -> str:
    """Return the text of such a script; raises as `write_script`."""
    load, winner, where = run.record.workload, run.winner, run.record.where
    figures = run.headline
    if winner is None or figures is None:
        raise ConfigurationError("--export: no candidate meets the goal, so there is none to use")
    known = ("pipeline", "pipeline_class", "scheduler_class", "steps")
    if any(getattr(load, name) in ("", 0, "unknown") for name in known):
        raise ConfigurationError(
            f"--export: the run does not say its {', '.join(known)}; search a pipeline for it"
        )
    classes = (load.pipeline_class, load.scheduler_class)
    if any(not name.isidentifier() or iskeyword(name) for name in classes):
        raise ConfigurationError("--export: the run's pipeline or scheduler is no class's name")
    is_demo = load.pipeline == "demo"
    is_file = load.pipeline.lower().endswith(".safetensors")
    steps = load.steps
    package: dict[str, Any] | None = None
    if where.implementation == "package":
        steps = min(steps, int(winner.candidate.get("steps", {}).get("num_inference_steps", steps)))
        package = _package(run, winner.candidate)
    device = where.device_name or load.device or "an unknown device"
    return render_text(
        "run_fast.py.j2",
        is_demo=is_demo,
        model=repr(where.model_id or load.pipeline),
        revision=repr(where.revision) if where.revision and not is_demo else None,
        is_file=is_file,
        predicts=_predicting(where.scheduler or {}) if is_file else {},
        pipeline=load.pipeline_class,
        scheduler=scheduler_name(load.scheduler_class, run.asked.sched),
        dtype=load.dtype if load.dtype in ("float16", "bfloat16") else "float32",
        steps=steps,
        package=package,
        call={name: repr(value) for name, value in load.call if name in CALL},
        guidance=load.guidance_scale or 7.5,
        height=load.height or 512,
        width=load.width or 512,
        prompt=repr(DEMO_PROMPT if is_demo else PROMPT),
        settings=literal(winner.candidate),
        speedup=factor(estimate_of(figures.speedup, figures.speedup_interval)),
        loss=percent(estimate_of(figures.score_loss, figures.score_loss_interval)),
        prompts=figures.prompts,
        is_compiled=_is_compiled(run),
        loras=loading_lines(where.loras),
        is_offloaded=bool(where.offload),
        vae=" ".join(where.vae.split()) if where.vae else None,
        # In a comment: a line break in a device's name would end it.
        device=" ".join(device.split()),
        batch=run.baseline.batch_size,
    )
