"""What options may not be together, and values that no one option can refuse."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from accel_search.cli.options import MAX_WHOLE, check_text, check_value, refuse
from accel_search.core.paths import PICKLES, PIPELINES, local_file, local_folder
from accel_search.core.tasks import CONTROLLED, TEXT, is_controlled, with_scale
from accel_search.errors import ConfigurationError

if TYPE_CHECKING:
    from accel_search.settings import Settings


def check(settings: Settings) -> None:
    """Raise ConfigurationError for the first value that is out of range."""
    for option in fields(settings):
        value = getattr(settings, option.name)
        if isinstance(value, str):
            check_text(option.name, value, is_path=option.name != "storage")
        check_value(option, value)
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", settings.device):
        refuse("device", settings.device, "auto, cpu, cuda or cuda:N")
    if settings.offload and settings.device == "cpu":
        raise ConfigurationError(
            "--offload: moves parts between main memory and a GPU, but --device is cpu; leave it "
            "out"
        )
    if settings.latency_only and settings.replay is not None:
        raise ConfigurationError(
            "--latency_only and --replay: choose one; a replay measures no pipeline"
        )
    if settings.verify and settings.force:
        raise ConfigurationError(
            "--verify and --force: choose one; --verify measures a stored result again, --force "
            "searches again"
        )
    if settings.json and settings.quiet:
        raise ConfigurationError(
            "--json and --quiet: choose one; --json already prints nothing else"
        )
    _check_file(settings)
    _check_loras(settings)
    if settings.candidate:
        _check_beside_candidates(settings)
    if settings.latency_only and not settings.verify and (settings.junit or settings.markdown):
        raise ConfigurationError(
            "--latency_only with --junit or --markdown: a bound on speed has no verdict; leave "
            "those out, or add --verify"
        )
    _check_revision(settings)
    _check_task(settings)
    _check_names(settings)


def _check_beside_candidates(settings: Settings) -> None:
    """Refuse what asks for something else than to measure the candidates."""
    others = {
        "verify": "measures a stored result again",
        "latency_only": "searches the fastest",
        "export": "writes a script of a search's result",
    }
    for name, does in others.items():
        if getattr(settings, name):
            raise ConfigurationError(f"--candidate and --{name}: choose one; --{name} {does}")


def _check_file(settings: Settings) -> None:
    """Refuse a pickled file, and what only a file can be given."""
    path = settings.pipe_file
    if path is not None and path.suffix.lower() in PICKLES:
        made = path.with_suffix(".safetensors")
        # Never a command that would overwrite a file.
        remedy = (
            f"give {made}, which lies beside it"
            if made.exists()
            else f"convert it with {conversion_line(path)} and give {made}"
        )
        raise ConfigurationError(
            f"--pipe {settings.pipe}: is a pickle, which can run code; only .safetensors files are "
            f"loaded: {remedy}"
        )
    is_named_as_file = settings.pipe.lower().endswith(
        ".safetensors"
    )  # A missing one is said later.
    if path is None and settings.prediction_type is not None and not is_named_as_file:
        instead = (
            "--replay loads no pipeline"
            if settings.replay is not None
            else f"the scheduler's configuration says it of --pipe {settings.pipe}"
        )
        raise ConfigurationError(
            f"--prediction_type {settings.prediction_type}: is for a .safetensors file, and "
            f"{instead}: leave it out"
        )


def _check_loras(settings: Settings) -> None:
    """Refuse names that are none, pickled files, and LoRAs of what loads no pipeline."""
    for name, _ in settings.loras:
        check_text("lora", name)
        if not name.lower().endswith(PICKLES):
            continue
        path = local_file(name)
        remedy = "give the .safetensors file of the same LoRA"
        if path is not None and not path.with_suffix(".safetensors").exists():
            made = path.with_suffix(".safetensors")
            remedy = f"convert it with {conversion_line(path)} and give {made}"
        raise ConfigurationError(
            f"--lora {name}: is a pickle, which can run code; only .safetensors files are loaded: "
            f"{remedy}"
        )
    if settings.lora and settings.replay is not None:
        raise ConfigurationError(
            f"--lora {settings.lora[0]}: --replay loads no pipeline; leave one of them out"
        )


def conversion_line(path: Path) -> str:
    """Return the command that makes a .safetensors file of a pickled one, and runs no code in it.

    Tensors are copied, since several may share one storage, which safetensors refuses.
    """
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        "w = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
        "w = w.get('state_dict', w); "
        "save_file({k: v.clone().contiguous() for k, v in w.items() if torch.is_tensor(v)}, "
        "sys.argv[2])"
    )
    files = (shlex.quote(str(file)) for file in (path, path.with_suffix(".safetensors")))
    return f'`python -c "{code}" {" ".join(files)}`'


def _check_revision(settings: Settings) -> None:
    """Refuse a revision of what has none, instead of ignoring it."""
    if settings.revision is None:
        return
    instead = None
    if settings.replay is not None:
        instead = "--replay loads no pipeline"
    elif settings.pipe == "demo":
        instead = "--pipe demo is part of this package"
    elif settings.latency_only and settings.pipe in PIPELINES:
        instead = f"--latency_only fetches nothing for --pipe {settings.pipe}"
    elif local_folder(settings.pipe) is not None:
        instead = f"--pipe {settings.pipe} is a folder"
    elif settings.pipe_file is not None:
        instead = f"--pipe {settings.pipe} is a file"
    if instead is not None:
        raise ConfigurationError(
            f"--revision {settings.revision}: {instead}, and only a repository of the hub has "
            "revisions; leave it out, or give a hub id to --pipe"
        )


def _check_task(settings: Settings) -> None:
    """Refuse a pipeline of images where nothing reads images, and options that are none of its."""
    task = settings.pipe_class
    used = [f"--pipe_class {task}"] if task not in ("auto", TEXT) else []
    for name in settings.controlnet:
        check_text("controlnet", name)
        try:
            with_scale(name)
        except ValueError as error:
            refuse("controlnet", name, str(error))
        used.append(f"--controlnet {name}")
    if settings.ip_adapter is not None:
        used.append(f"--ip_adapter {settings.ip_adapter}")
    elif settings.ip_adapter_scale != 1:
        raise ConfigurationError(
            f"--ip_adapter_scale {settings.ip_adapter_scale:g}: there is no --ip_adapter: give "
            "one, or leave it out"
        )
    for given in used:
        if settings.replay is not None:
            raise ConfigurationError(
                f"--replay and {given}: choose one; --replay loads no pipeline"
            )
        if settings.latency_only:
            raise ConfigurationError(
                f"--latency_only and {given}: choose one; --latency_only draws from texts alone"
            )
    if task != "auto" and settings.controlnet and not is_controlled(task):
        raise ConfigurationError(
            f"--pipe_class {task} and --controlnet {settings.controlnet[0]}: choose one, or name "
            f"the class {CONTROLLED[task]}"
        )
    if task != "auto" and is_controlled(task) and not settings.controlnet:
        raise ConfigurationError(f"--pipe_class {task}: give its ControlNet with --controlnet")


def _check_names(settings: Settings) -> None:
    """Check the names of accelerators and parameters against what is installed."""
    from accel_search import accelerators

    if not settings.targets:
        refuse("targets", "", f"one or more of {', '.join(accelerators.all_accelerators())}")
    for name in settings.targets:
        accelerators.get(name)
    for name, parameters in settings.space.items():
        accelerator = accelerators.get(name)
        known = {parameter.name: parameter for parameter in accelerator.parameters}
        for key, values in parameters.items():
            if key not in known:
                raise ConfigurationError(
                    f"[space.{name}] {key!r}: expected one of {', '.join(known)}"
                )
            parameter = known[key]
            kind = type(parameter.values[0])
            for value in values:
                of_kind = type(value) is kind or (kind is float and type(value) is int)
                most = MAX_WHOLE if parameter.maximum is None else parameter.maximum
                # Written so that NaN is refused too: every comparison with it is false.
                if not of_kind or not parameter.minimum <= value <= most:
                    limit = "" if parameter.maximum is None else f" to {parameter.maximum}"
                    raise ConfigurationError(
                        f"[space.{name}] {key} = {value!r}: expected {kind.__name__} "
                        f"from {parameter.minimum}{limit}"
                    )
            if not values:
                raise ConfigurationError(f"[space.{name}] {key}: expected at least one value")
    if settings.implementation == "package":
        _check_packages(settings)


def _check_packages(settings: Settings) -> None:
    """Refuse what the packages of the accelerators' authors get wrong or cannot do."""
    from accel_search.accelerators.packages import check_targets

    if settings.replay is not None:
        raise ConfigurationError(
            "--replay and --implementation package: choose one; a replay applies nothing"
        )
    for targets in settings.candidate or (settings.targets,):
        check_targets(
            tuple(targets),
            guidance_scale=settings.guidance_scale,
            compiled=settings.compile,
            offloaded=settings.offload,
        )
