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

from accel_search.core.paths import local_folder
from accel_search.core.schedulers import scheduler_name
from accel_search.core.workload import differences
from accel_search.errors import ConfigurationError
from accel_search.settings import UPPER_BOUND, Settings
from accel_search.storage import speedup_bounds
from accel_search.storage.entries import BoundEntry, Figures, SearchEntry
from accel_search.storage.json_files import read_json
from accel_search.storage.keys import Key, parse_key
from accel_search.storage.search_results import by_model

DEMO = "demo"
"""The embedded pipeline, as `--pipe` names it."""

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
    entry, key = stored.entry, stored.key
    evidence, where = entry.evidence, entry.where
    # Preferably on prompts by which the search did not choose.
    figures = evidence.held_out or Figures(
        speedup=entry.speedup,
        score_loss=math.nan if entry.score_loss is None else entry.score_loss,
        speedup_interval=evidence.speedup_interval,
        score_loss_interval=evidence.score_loss_interval,
    )
    speedup = _with_interval(figures.speedup, figures.speedup_interval, 2)
    expected = [f"expected speedup {speedup}"]
    if not math.isnan(figures.score_loss):
        loss = _with_interval(figures.score_loss, figures.score_loss_interval, 1, 100, " %")
        expected.append(f"score loss {loss}")
    measured = [name for name in (where.device_name, where.date) if name]
    workload = [entry.model_id] if entry.model_id else []
    workload += [key.pipeline_class, scheduler_name(key.scheduler_class), f"{key.steps} steps"]
    if where.width and where.height:
        workload.append(f"{where.width} x {where.height} px")
    if where.batch_size:
        workload.append(f"batch size {where.batch_size}")
    if where.implementation == "package":
        workload.append("the accelerators' own packages")
    return (
        f"{entry.candidate}, {', '.join(expected)}; measured on "
        f"{', '.join(measured) or 'an unknown device'} with {', '.join(workload)}"
    )


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
            not is_bound and isinstance(entry, SearchEntry) and entry.speedup < float(query.goal)
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
    """Yield the entries of a result file; raises as `search_results.by_model`."""
    for key, value in _keyed(content):
        yield from (StoredEntry(key, entry) for entry in by_model(value, strict=strict).values())


def bounds(
    content: Mapping[str, Any], *, strict: bool = False
) -> Iterator[StoredEntry[BoundEntry]]:
    """Yield the entries of a file of bounds; raises as `speedup_bounds.by_label`."""
    for key, value in _keyed(content):
        for label, entry in speedup_bounds.by_label(value, strict=strict).items():
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
) -> StoredEntry[SearchEntry]:
    """Return the fastest stored result that fits.

    Args:
        path: The result file.
        wanted: The query; None accepts any result.
        loaded_from: Hub id or folder of the pipeline's model, empty if unknown: selects among
            results of several models, and warns if the only one is of another. None takes the
            fastest of all.
        device: Name of the pipeline's GPU: selects among results of several devices. None, or a
            device without results, takes those of the device measured last, with a warning.

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
    return _fastest(chosen)


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


def arguments_for(
    path: Path, wanted: Wanted, entry: SearchEntry
) -> dict[str, float | list[str]] | None:
    """Return the arguments by which `accelerate` takes an entry, and no other, from its file.

    Those are as few of the query's `req_score_loss` and `targets` as possible; None if no choice of
    them selects the entry.
    """
    content = read_json(path)
    bound, targets = wanted.req_score_loss, wanted.targets
    assert bound is not None and targets is not None
    known: dict[str, float | list[str]] = {"req_score_loss": bound, "targets": list(targets)}
    for count in range(len(known) + 1):
        for left_out in combinations(known, len(known) - count):
            unset: dict[str, Any] = dict.fromkeys(left_out)
            if _is_selected(path, content, replace(wanted, **unset), entry):
                return {name: value for name, value in known.items() if name not in left_out}
    return None


def _is_selected(
    path: Path, content: Mapping[str, Any], wanted: Wanted, entry: SearchEntry
) -> bool:
    """Return whether an entry's settings are selected, with the pipeline on its GPU or not."""
    try:
        fitting = _candidates(path, content, wanted, entry.model_id)
    except ConfigurationError:
        return False
    selected = [_fastest(_of_device(fitting, device)).entry for device in (None, entry.device)]
    return all(
        (own.settings, own.where.implementation) == (entry.settings, entry.where.implementation)
        for own in selected
    )


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
    """Return a message that no result fits, naming the schedulers with results."""
    if wanted.provenance and matching(content, replace(wanted, provenance={})):
        return (
            f"holds no result for {wanted} with implementation "
            f"{wanted.provenance['implementation']}, but with another, which accelerate(pipe, "
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
    """Return the hub id of a snapshot in a cache of the hub, `demo` of its folder, or a folder."""
    folder = None if name in ("", DEMO) else local_folder(name)
    if folder is None:
        return name
    path = folder.resolve()
    if path == (Path(str(files("accel_search"))) / "demo" / "pipeline").resolve():
        return DEMO
    snapshot = re.search(r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+$", path.as_posix())
    return f"{snapshot[1]}/{snapshot[2]}" if snapshot else str(path)
