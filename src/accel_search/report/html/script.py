"""The winner as Python: lines to copy, and a complete script."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from keyword import iskeyword
from pathlib import Path
from typing import Any

from accel_search.accelerators.packages import script_parts
from accel_search.core.candidate import Candidate
from accel_search.core.loras import loading_lines
from accel_search.core.paths import local_folder, local_path
from accel_search.core.schedulers import class_and_options, scheduler_name
from accel_search.core.tasks import (
    ADAPTER,
    SCALE,
    images_of,
    is_controlled,
    numbered,
    text_class_of,
    with_scale,
)
from accel_search.core.workload import Workload
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

CALL = ("negative_prompt", "clip_skip", "strength")
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
    if text_class_of(pipeline_class) == "StableDiffusionPipeline":
        options["steps_offset"] = 1
    return {name: repr(value) for name, value in options.items()}


def _predicting(scheduler: Mapping[str, Any]) -> dict[str, str]:
    """Return the options by which a file's scheduler knows what its model predicts, as Python."""
    known = {"prediction_type": "epsilon"} | dict(scheduler)
    names = ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")
    return {name: repr(known[name]) for name in names if name in known}


def _images(task: str, nets: int) -> dict[str, str]:
    """Return argument of the call -> its pictures as Python, from the constants of their files."""
    columns: dict[str, list[str]] = {}
    for column, argument in images_of(task, nets).items():
        columns.setdefault(argument, []).append(f"load_image({column.upper()})")
    return {
        argument: f"[{', '.join(several)}]" if len(several) > 1 else several[0]
        for argument, several in columns.items()
    }


def _controlnets(run: Run) -> list[str]:
    """Return the arguments of `ControlNetModel.from_pretrained` of each, as Python."""
    asked = run.asked.controlnet or ()
    if is_controlled(run.record.workload.task) and not asked:
        raise ConfigurationError("--export: the run does not say its ControlNets; search again")
    nets = []
    for name, _, revision in (_named(text).partition("@") for text in asked):
        is_folder = not revision or local_folder(f"{name}@{revision}") is not None
        whole = f"{name}@{revision}" if is_folder and revision else name
        nets.append(repr(whole) + ("" if is_folder else f", revision={revision!r}"))
    return nets


def _ip_adapter(run: Run) -> dict[str, str]:
    """Return the arguments by which `load_ip_adapter` loads the adapter that was measured."""
    where, asked = run.record.where.ip_adapter, run.asked.ip_adapter
    if where is None:
        return {}
    match = re.fullmatch(r"(.+?)( \(models/image_encoder\))?@[0-9a-f]+ × [0-9.e-]+", where)
    if match is None or asked is None or run.asked.ip_adapter_scale is None:
        raise ConfigurationError("--export: the run does not say its IP-Adapter; search again")
    if match[1] == asked and "/" in asked:  # Of the hub.
        owner, name, file = asked.split("/", 2)
        root, folder = f"{owner}/{name}", file.rpartition("/")[0]
    else:
        place = local_path(asked)
        place = place if local_folder(asked) else place.parent
        root, folder = str(place.parent if match[2] else place), place.name if match[2] else ""
    call = {"subfolder": folder, "weight_name": match[1].rpartition("/")[2]}
    if match[2]:
        call["image_encoder_folder"] = "models/image_encoder"
    arguments = [repr(root), *(f"{name}={value!r}" for name, value in call.items())]
    return {"load": ", ".join(arguments), "scale": repr(run.asked.ip_adapter_scale)}


def _named(text: str) -> str:
    try:
        return with_scale(text)[0]
    except ValueError:  # A file may hold anything.
        return text


def _call(load: Workload, nets: int) -> dict[str, str]:
    """Return further arguments of the call, as Python."""
    known = dict(load.call)
    call = {name: repr(value) for name, value in load.call if name in CALL}
    scales = [repr(known.get(name, 1.0)) for name in numbered(SCALE, nets)]
    if scales:
        call[SCALE] = scales[0] if nets == 1 else f"[{', '.join(scales)}]"
    return call


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
    nets, adapter = _controlnets(run), _ip_adapter(run)
    device = where.device_name or load.device or "an unknown device"
    return render_text(
        "run_fast.py.j2",
        is_demo=is_demo,
        model=repr(where.model_id or load.pipeline),
        revision=repr(where.revision) if where.revision and not is_demo else None,
        is_file=is_file,
        predicts=_predicting(where.scheduler or {}) if is_file else {},
        pipeline=load.pipeline_class,
        has_checker=text_class_of(load.pipeline_class) == "StableDiffusionPipeline",
        scheduler=scheduler_name(load.scheduler_class, run.asked.sched),
        dtype=load.dtype if load.dtype in ("float16", "bfloat16") else "float32",
        steps=steps,
        package=package,
        call=_call(load, len(nets)),
        controlnets=nets,
        ip_adapter=adapter,
        guidance=load.guidance_scale or 7.5,
        images=_images(load.task, len(nets))
        | ({ADAPTER: f"load_image({ADAPTER.upper()})"} if adapter else {}),
        files=[
            column.upper()
            for column in (*images_of(load.task, len(nets)), *([ADAPTER] if adapter else []))
        ],
        # From an image alone the size is the image's.
        is_sized=load.task != "img2img",
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
