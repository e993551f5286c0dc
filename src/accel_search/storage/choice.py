"""Which of the results that fit is taken for a pipeline, and what is said of the others."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from accel_search.core.loras import Lora, scales_of
from accel_search.core.schedulers import sampler_name
from accel_search.core.workload import in_words
from accel_search.errors import ConfigurationError
from accel_search.storage.entries import SearchEntry
from accel_search.storage.json_files import read_json
from accel_search.storage.lookup import Result, StoredEntry, Wanted, is_same_model, matching

SIZE = ("height", "width", "batch_size", "guidance_scale")
"""Fields of a provenance that are arguments of a call of the pipeline."""
NEAR = ("weights", "loras", "dtype", "scheduler")
"""Fields that a pipeline shows by itself, the most important first; of LoRAs it shows scales."""
WORKLOAD = (
    *("model_id", "revision", "weights", "vae", "loras", "controlnet", "ip_adapter"),
    *("scheduler", "call", "dtype", *SIZE),
    *("attention_backend", "compiled", "offload", "memory_limit", "implementation"),
)
"""Fields that say what was measured, and not where and how well."""

_logger = logging.getLogger(__name__)


def find_result(
    path: Path,
    wanted: Wanted | None = None,
    loaded_from: str | None = None,
    device: str | None = None,
    near: Mapping[str, Sequence[Any]] | None = None,
) -> StoredEntry[SearchEntry]:
    """Return the fastest stored result of the workload that fits best.

    Args:
        path: The result file.
        wanted: The query; None accepts any result.
        loaded_from: Hub id or folder of the pipeline's model, empty if unknown: selects among
            results of several models, and warns if the only one is of another. None takes any.
        device: Name of the pipeline's GPU: selects among results of several devices. None, or a
            device without results, takes those of the device measured last, with a warning.
        near: Fields of a provenance that the pipeline shows, the most important first, with what
            they may be: each selects among results that differ in it. Of workloads that are left,
            the one measured last is taken, with a warning.

    Raises:
        ConfigurationError: No stored result fits, or those that fit are of several other models or
            within several bounds.
    """
    wanted = wanted or Wanted()
    fitting = _candidates(path, read_json(path), wanted, loaded_from)
    chosen = _of_device(fitting, device)
    first = chosen[0].entry
    if first.device != device:
        _warn_of_devices(path, fitting, first.device)
    if loaded_from is not None and wanted.model is None:
        _warn_of_model(path, first.model_id, loaded_from)
    nearest = _nearest(chosen, near or {})
    last = _measured_last(nearest)
    _warn_of_workloads(path, nearest, last)
    return _fastest(last)


def holds_any(path: Path, wanted: Wanted) -> bool:
    """Return whether a file holds a result that fits."""
    return bool(matching(read_json(path), wanted))


def _warn_of_devices(path: Path, fitting: Sequence[Result], chosen: str) -> None:
    devices = sorted({stored.entry.device for stored in fitting})
    if len(devices) > 1:
        _logger.warning(
            "%s: holds results of %s; taking those of %s, measured last",
            path,
            ", ".join(device or "an unknown device" for device in devices),
            chosen or "an unknown device",
        )


def _warn_of_model(path: Path, model: str, loaded_from: str) -> None:
    """Warn that a result may be of another model; a folder may be a copy of the same one."""
    if model and not is_same_model(model, loaded_from):
        _logger.warning(
            "%s: its result is of %s, and the pipeline was loaded from %s; if that is another "
            'model, search it: model="%s" says that it is the same',
            path,
            model,
            loaded_from or "elsewhere",
            model,
        )


def warn_of_loras(path: Path, measured: Sequence[Lora] | None, here: Sequence[list[float]]) -> None:
    """Warn where other LoRAs are active than a result was measured with, as far as scales tell.

    Args:
        path: The result file.
        measured: Those of the result.
        here: What the scales of the pipeline's may be; empty if that cannot be told.
    """
    if not here or scales_of(measured) in here:
        return
    scales = ", ".join(f"{scale:g}" for scale in here[0])
    _logger.warning(
        "%s: measured with %s, and the pipeline has %s: speed and loss can differ, so load those, "
        "or search with --lora",
        path,
        ", ".join(f"LoRA {lora}" for lora in measured or ()) or "no LoRA",
        f"active LoRAs at {scales}" if scales else "none that is active",
    )


def _warn_of_workloads(path: Path, fitting: Sequence[Result], taken: Sequence[Result]) -> None:
    """Warn that results of other workloads fit too, with the arguments that tell them apart."""
    ours = workload_of(taken[0])
    others = [theirs for stored in fitting if (theirs := workload_of(stored)) != ours]
    apart = [name for name in ours if any(theirs[name] != ours[name] for theirs in others)]
    said = {name: ours[name] for name in apart if name in ("steps", *SIZE)}
    if len({_sampler(stored) for stored in fitting}) > 1:
        said["scheduler"] = repr(_sampler(taken[0]))
    if others:
        _logger.warning(
            "%s: holds results of other %s, too; taking those measured last%s",
            path,
            in_words(apart),
            f" ({_said(said)}): say which with {', '.join(f'{name}=' for name in said)}"
            if said
            else "",
        )


def _sampler(stored: Result) -> str:
    return sampler_name(stored.key.scheduler_class, stored.entry.where.scheduler)


def _said(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


def arguments_for(
    path: Path, wanted: Wanted, entry: SearchEntry
) -> dict[str, float | list[str]] | None:
    """Return the arguments by which `accelerate` takes an entry, and no other, from its file.

    Those are as few as possible of the query's `req_score_loss` and `targets` and of the size of
    the call, and tell the entry's workload from others, whichever is measured last; None if no
    choice of them selects the entry.
    """
    content = read_json(path)
    bound, targets = wanted.req_score_loss, wanted.targets
    assert bound is not None and targets is not None
    size = {name: getattr(entry.where, name) for name in SIZE}
    known = {"req_score_loss": bound, "targets": list(targets), **size}
    choices = [names for count in range(len(known) + 1) for names in combinations(known, count)]
    for is_alone in (True, False):
        for names in choices:
            query = replace(
                wanted,
                req_score_loss=bound if "req_score_loss" in names else None,
                targets=targets if "targets" in names else None,
                provenance={**wanted.provenance, **{n: size[n] for n in names if n in size}},
            )
            if _is_selected(path, content, query, entry, is_alone=is_alone):
                return {name: known[name] for name in names}
    return None


def _is_selected(
    path: Path, content: Mapping[str, Any], wanted: Wanted, entry: SearchEntry, *, is_alone: bool
) -> bool:
    """Return whether an entry's settings are selected, with the pipeline on its GPU or not.

    With `is_alone` also where another workload were measured later.
    """
    try:
        fitting = _candidates(path, content, wanted, entry.model_id)
    except ConfigurationError:
        return False
    near = {name: [_shown(entry, name)] for name in NEAR}
    for device in (None, entry.device):
        nearest = _nearest(_of_device(fitting, device), near)
        last = _measured_last(nearest)
        own = _fastest(last).entry
        if _applied(own) != _applied(entry):
            return False
        if is_alone and any(workload_of(one) != workload_of(last[0]) for one in nearest):
            return False
    return True


def _applied(entry: SearchEntry) -> tuple[Any, ...]:
    """Return what is applied, and what it was measured with."""
    where = entry.where
    return entry.settings, where.implementation, where.weights, where.loras


def _candidates(
    path: Path, content: Mapping[str, Any], wanted: Wanted, loaded_from: str | None
) -> list[Result]:
    """Return the results that fit, of one model and one bound; raises as `find_result`."""
    fitting = matching(content, wanted)
    if not fitting:
        raise ConfigurationError(f"{path}: {_nothing(content, wanted)}")
    fitting = _of_model(path, fitting, loaded_from)
    limits = sorted({stored.key.req_score_loss for stored in fitting})
    if len(limits) > 1:
        # The fastest is of the loosest bound, and loses more than the user may accept.
        raise ConfigurationError(
            f"{path}: holds results within several bounds on the loss of score: say which with "
            f"req_score_loss={' or '.join(f'{limit:g}' for limit in limits)}"
        )
    return fitting


def _nearest(fitting: list[Result], near: Mapping[str, Sequence[Any]]) -> list[Result]:
    for name, values in near.items():
        own = [stored for stored in fitting if _shown(stored.entry, name) in values]
        fitting = own or fitting
    return fitting


def _shown(entry: SearchEntry, name: str) -> Any:
    """Return what a pipeline shows of a field: the same of any that a result may be taken for."""
    value = getattr(entry.where, name)
    return scales_of(value) if name == "loras" else value


def _measured_last(fitting: list[Result]) -> list[Result]:
    """Return the results of the workload that was measured last, with the same versions."""
    last = max(enumerate(fitting), key=lambda each: (each[1].entry.where.date, each[0]))[1]
    versions = last.entry.where.versions
    return [
        stored
        for stored in fitting
        if workload_of(stored) == workload_of(last) and stored.entry.where.versions == versions
    ]


def workload_of(stored: Result) -> dict[str, Any]:
    """Return what a result was measured of: results that differ in it do not compete."""
    where = stored.entry.where
    return {"steps": int(stored.key.steps)} | {name: getattr(where, name) for name in WORKLOAD}


def _fastest(fitting: Sequence[Result]) -> Result:
    return max(fitting, key=lambda stored: stored.entry.speedup)


def _of_device(fitting: list[Result], device: str | None) -> list[Result]:
    """Return the results of a device, or of the device measured last if there are none.

    Settings that are fast on one GPU may be slow on another.
    """
    own = [stored for stored in fitting if stored.entry.device == device]
    last = max(fitting, key=lambda stored: stored.entry.where.date).entry.device
    return own or [stored for stored in fitting if stored.entry.device == last]


def _nothing(content: Mapping[str, Any], wanted: Wanted) -> str:
    """Return a message that no result fits, naming the workloads or schedulers with results."""
    size = {name: value for name, value in wanted.provenance.items() if name in SIZE}
    rest = {name: value for name, value in wanted.provenance.items() if name not in SIZE}
    there = matching(content, replace(wanted, provenance=rest)) if size else []
    if there:
        sizes = {_said({name: getattr(one.entry.where, name) for name in size}) for one in there}
        return (
            f"holds no result for {wanted} with {_said(size)}, but with "
            f"{' or '.join(sorted(sizes))}"
        )
    if rest and matching(content, replace(wanted, provenance={})):
        return (
            f"holds no result for {wanted} with implementation "
            f"{rest['implementation']}, but with another, which accelerate(pipe, "
            "file) applies as it was measured"
        )
    anyhow = matching(content, replace(wanted, scheduler_class=None))
    others = sorted({_sampler(stored) for stored in anyhow})
    if not others:
        return f"holds no result for {wanted}; run accel-search for it first"
    choice = " or ".join(f'"{name}"' for name in others)
    return f"holds no result for {wanted}, but some with another scheduler: give scheduler={choice}"


def _of_model(path: Path, fitting: list[Result], loaded_from: str | None) -> list[Result]:
    """Return the results of the model that a pipeline was loaded from, if there are several."""
    models = sorted({stored.entry.model_id for stored in fitting})
    if loaded_from is None or len(models) < 2:
        return fitting
    own = [stored for stored in fitting if is_same_model(stored.entry.model_id, loaded_from)]
    if not own:
        raise ConfigurationError(
            f"{path}: holds results of {', '.join(models)}, and the pipeline was loaded from "
            f"{loaded_from or 'elsewhere'}: say whose with model="
        )
    return own
