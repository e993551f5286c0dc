"""Which stored entry answers: one rule for a search, a sweep, `accelerate` and `--verify`."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from accel_search.core.paths import local_file, local_folder
from accel_search.core.schedulers import scheduler_name
from accel_search.core.workload import differences, in_words
from accel_search.errors import ConfigurationError
from accel_search.settings import UPPER_BOUND, Settings
from accel_search.storage import speedup_bounds
from accel_search.storage.entries import BoundEntry, Figures, SearchEntry
from accel_search.storage.json_files import read_json
from accel_search.storage.keys import Key, parse_key
from accel_search.storage.search_results import entries_of

DEMO = "demo"
"""The embedded pipeline, as `--pipe` names it."""

SIZE = ("height", "width", "batch_size", "guidance_scale")
"""Fields of a provenance that are arguments of a call of the pipeline."""
NEAR = ("weights", "dtype", "scheduler")
"""Fields that a pipeline shows by itself, the most important first."""
WORKLOAD = (
    *("model_id", "revision", "weights", "vae", "scheduler", "call", "dtype", *SIZE),
    *("attention_backend", "compiled", "offload", "memory_limit", "implementation"),
)
"""Fields that say what was measured, and not where and how well."""

E = TypeVar("E", bound=SearchEntry | BoundEntry)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """The entry that is wanted; None in a field accepts any."""

    pipeline_class: str | None = None
    """Class name of the pipeline."""
    scheduler_class: str | None = None
    """Class name of the scheduler."""
    steps: int | None = None
    targets: Sequence[str] | None = None
    """The accelerators searched, exactly these."""
    req_score_loss: float | None = None
    """The search's bound on the loss of score, a fraction."""
    model: str | None = None
    """Hub id or folder."""
    label: str | None = None
    """Of a bound on speed, from `speedup_bounds.label_of`."""
    goal: str | float | None = None
    """`upbound_speedup`, or the least speedup."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options that it must have been searched with."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Fields that its provenance must have."""

    def __str__(self) -> str:
        steps = None if self.steps is None else f"{self.steps} steps"
        named = (self.model, self.pipeline_class, self.scheduler_class, steps)
        parts = [name for name in named if name]
        if self.targets is not None:
            parts.append(f"targets {', '.join(self.targets)}")
        if self.req_score_loss is not None:
            parts.append(f"req_score_loss {self.req_score_loss:g}")
        return ", ".join(parts) or "anything"


@dataclass(frozen=True)
class StoredEntry(Generic[E]):
    """An entry of a file, with its key."""

    key: Key
    entry: E
    label: str | None = None
    """Of a bound on speed; None for a search's result."""

    @property
    def options(self) -> Mapping[str, Any] | None:
        """Return the options that it was searched with; None if unknown."""
        if isinstance(self.entry, BoundEntry):
            return self.entry.asked
        evidence = self.entry.evidence
        named = {"req_score_loss": self.key.req_score_loss, "strategy": evidence.strategy}
        return named | evidence.search

    @property
    def is_settled(self) -> bool:
        """Return whether no candidate that its search left out could win."""
        if isinstance(self.entry, BoundEntry):
            evidence = self.entry.evidence
            return evidence.speed_settled and evidence.search_settled is not False
        return self.entry.evidence.settled


def in_a_line(stored: StoredEntry[SearchEntry]) -> str:
    """Return a result in one line: settings, expected figures, and where it was measured."""
    where = stored.entry.where
    measured = [name for name in (where.device_name, where.date) if name]
    return (
        f"{stored.entry.candidate}, expected {expected(stored)}; measured on "
        f"{', '.join(measured) or 'an unknown device'} with {', '.join(measured_of(stored))}"
    )


def expected(stored: StoredEntry[SearchEntry]) -> str:
    """Return the figures of a result, preferably on prompts by which the search did not choose."""
    from accel_search.core.outcome import is_sure  # It loads SciPy.

    entry, evidence = stored.entry, stored.entry.evidence
    figures = evidence.held_out or Figures(
        speedup=entry.speedup,
        score_loss=math.nan if entry.score_loss is None else entry.score_loss,
        speedup_interval=evidence.speedup_interval,
        score_loss_interval=evidence.score_loss_interval,
    )
    parts = [f"speedup {_with_interval(figures.speedup, figures.speedup_interval, 2)}"]
    if not math.isnan(figures.score_loss):
        loss = _with_interval(figures.score_loss, figures.score_loss_interval, 1, 100, " %")
        parts.append(f"score loss {loss}")
    if not is_sure(evidence.chance_within_bound):
        chance = 100 * (evidence.chance_within_bound or 0.0)
        parts.append(f"likely ({chance:.0f} %) to be within {100 * stored.key.req_score_loss:g} %")
    return ", ".join(parts)


def measured_of(stored: StoredEntry[SearchEntry]) -> list[str]:
    """Return what a result was measured of, in words."""
    key, where = stored.key, stored.entry.where
    parts = [where.model_id] if where.model_id else []
    parts += [key.pipeline_class, scheduler_name(key.scheduler_class), f"{key.steps} steps"]
    if where.width and where.height:
        parts.append(f"{where.width} x {where.height} px")
    if where.batch_size:
        parts.append(f"batch size {where.batch_size}")
    parts += [f"{name.replace('_', ' ')} {value!r}" for name, value in (where.call or {}).items()]
    if where.vae:
        parts.append(f"VAE {where.vae}")
    if where.compiled:
        parts.append("compiled")
    if where.offload:
        parts.append("offloaded")
    if where.implementation == "package":
        parts.append("the accelerators' own packages")
    return parts


Result = StoredEntry[SearchEntry]


class Reason(NamedTuple):
    """A field in which a stored entry differs from the wanted one."""

    part: Literal["key", "options", "provenance"]
    name: str


HOW_FAR = ("strategy", "sampler", "max_trials", "time_budget")
"""Options that no longer matter once a search is settled."""
_DEFAULTS = {option.name: option.default for option in fields(Settings)}


def why_not(stored: StoredEntry[E], query: Wanted) -> list[Reason]:
    """Return why a stored entry does not answer a query; empty if it does.

    The rest is compared only if the keys agree.
    """
    key, entry = stored.key, stored.entry
    fields_of_key = {
        "pipeline_class": (query.pipeline_class, key.pipeline_class),
        "scheduler_class": (query.scheduler_class, key.scheduler_class),
        "steps": (None if query.steps is None else str(query.steps), key.steps),
        "req_score_loss": (query.req_score_loss, key.req_score_loss),
        "targets": (None if query.targets is None else sorted(query.targets), key.targets),
        "label": (query.label, stored.label),
    }
    others = [name for name, (wanted, own) in fields_of_key.items() if wanted not in (None, own)]
    if query.goal is not None:
        is_bound = key.goal == UPPER_BOUND
        # The speedup in a key is rounded: it is a name, not the speedup reached.
        if is_bound != (query.goal == UPPER_BOUND) or (
            not is_bound
            and isinstance(entry, SearchEntry)
            and not _reaches(entry, float(query.goal))
        ):
            others.append("req_speedup")
    if not others and query.model is not None and not is_same_model(query.model, entry.model_id):
        others.append("model")
    if others:
        return [Reason("key", name) for name in others]
    asked = other_options(stored.options, query.options, settled=stored.is_settled)
    elsewhere = differences(query.provenance, entry.where.as_dict())
    options = [Reason("options", name) for name in asked]
    return options + [Reason("provenance", name) for name in elsewhere]


def _reaches(entry: SearchEntry, required: float) -> bool:
    """Return whether a result meets a required speedup: by its value, or as its search judged.

    A search for a required speedup accepts a held-out one whose interval reaches it.
    """
    goal = entry.evidence.goal
    return entry.speedup >= required or (not isinstance(goal, str | None) and goal >= required)


def other_options(
    asked: Mapping[str, Any] | None, wanted: Mapping[str, Any], *, settled: bool = False
) -> list[str]:
    """Return the options in which a search differs from the wanted one.

    More timing pairs are accepted, because unsteady machines need them. How far a search went does
    not matter once it is settled; but only a grid, which measures everything, answers a grid. An
    option that `asked` lacks was added later, and had its default.
    """
    if asked is None:
        return list(wanted)
    kept = {name: asked.get(name, _DEFAULTS.get(name)) for name in wanted}
    others = [name for name, value in wanted.items() if kept[name] != value]
    if settled:
        is_grid = wanted.get("strategy") == "grid"
        others = [n for n in others if n not in HOW_FAR or (is_grid and n == "strategy")]
    pairs = kept.get("timing_pairs")
    if type(pairs) is int and pairs >= wanted["timing_pairs"]:
        others = [name for name in others if name != "timing_pairs"]
    return others


def results(
    content: Mapping[str, Any], *, strict: bool = False
) -> Iterator[StoredEntry[SearchEntry]]:
    """Yield the entries of a result file; raises as `search_results.entries_of`."""
    for key, value in _keyed(content):
        yield from (StoredEntry(key, entry) for entry in entries_of(value, strict=strict))


def bounds(
    content: Mapping[str, Any], *, strict: bool = False
) -> Iterator[StoredEntry[BoundEntry]]:
    """Yield the entries of a file of bounds; raises as `speedup_bounds.by_label`."""
    for key, value in _keyed(content):
        for label, entry in speedup_bounds.by_label(value, strict=strict):
            yield StoredEntry(key, entry, label)


def _keyed(content: Mapping[str, Any]) -> Iterator[tuple[Key, Any]]:
    keys = ((parse_key(text), value) for text, value in content.items())
    return ((key, value) for key, value in keys if key is not None)


def _with_interval(
    value: float,
    interval: tuple[float, float] | None,
    digits: int,
    scale: float = 1,
    unit: str = "",
) -> str:
    text = f"{value * scale:.{digits}f}{unit}"
    if interval is None:
        return text
    low, high = (f"{end * scale:.{digits}f}" for end in interval)
    return f"{text} [{low}, {high}]"


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


def _warn_of_workloads(path: Path, fitting: Sequence[Result], taken: Sequence[Result]) -> None:
    """Warn that results of other workloads fit too, with the arguments that tell them apart."""
    ours = workload_of(taken[0])
    others = [theirs for stored in fitting if (theirs := workload_of(stored)) != ours]
    apart = [name for name in ours if any(theirs[name] != ours[name] for theirs in others)]
    said = {name: ours[name] for name in apart if name in ("steps", *SIZE)}
    if others:
        _logger.warning(
            "%s: holds results of other %s, too; taking those measured last%s",
            path,
            in_words(apart),
            f" ({_said(said)}): say which with {', '.join(f'{name}=' for name in said)}"
            if said
            else "",
        )


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
    near = {name: [getattr(entry.where, name)] for name in NEAR}
    for device in (None, entry.device):
        nearest = _nearest(_of_device(fitting, device), near)
        last = _measured_last(nearest)
        own = _fastest(last).entry
        if (own.settings, own.where.implementation, own.where.weights) != (
            entry.settings,
            entry.where.implementation,
            entry.where.weights,
        ):
            return False
        if is_alone and any(workload_of(one) != workload_of(last[0]) for one in nearest):
            return False
    return True


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
        own = [stored for stored in fitting if getattr(stored.entry.where, name) in values]
        fitting = own or fitting
    return fitting


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


def matching(content: Mapping[str, Any], wanted: Wanted) -> list[Result]:
    """Return the entries of a result file that fit."""
    return [stored for stored in results(content) if not why_not(stored, wanted)]


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
    others = sorted({scheduler_name(stored.key.scheduler_class) for stored in anyhow})
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


def is_same_model(one: str, other: str) -> bool:
    """Return whether two hub ids or folders are known to be of one model."""
    return _model_named(one) == _model_named(other)


def _model_named(name: str) -> str:
    """Return the hub id of a snapshot in a cache of the hub, `demo` of its folder, or a path."""
    folder = None if name in ("", DEMO) else local_folder(name) or local_file(name)
    if folder is None:
        return name
    path = folder.resolve()
    if path == (Path(str(files("accel_search"))) / "demo" / "pipeline").resolve():
        return DEMO
    snapshot = re.search(r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+$", path.as_posix())
    return f"{snapshot[1]}/{snapshot[2]}" if snapshot else str(path)
