"""Which stored entry answers: one rule for a search, a sweep, `accelerate` and `--verify`."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from accel_search.core.paths import local_file, local_folder
from accel_search.core.schedulers import sampler_name
from accel_search.core.trial import is_sure
from accel_search.core.workload import differences
from accel_search.settings import UPPER_BOUND, Settings
from accel_search.storage import speedup_bounds
from accel_search.storage.entries import BoundEntry, Figures, SearchEntry
from accel_search.storage.keys import Key, parse_key
from accel_search.storage.search_results import entries_of

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
    where = stored.entry.where
    measured = [name for name in (where.device_name, where.date) if name]
    return (
        f"{stored.entry.candidate}, expected {expected(stored)}; measured on "
        f"{', '.join(measured) or 'an unknown device'} with {', '.join(measured_of(stored))}"
    )


def expected(stored: StoredEntry[SearchEntry]) -> str:
    """Return the figures of a result, preferably on prompts by which the search did not choose."""
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
    sampler = sampler_name(key.scheduler_class, where.scheduler)
    parts += [key.pipeline_class, sampler, f"{key.steps} steps"]
    if where.width and where.height:
        parts.append(f"{where.width} x {where.height} px")
    if where.batch_size:
        parts.append(f"batch size {where.batch_size}")
    parts += [f"{name.replace('_', ' ')} {value!r}" for name, value in (where.call or {}).items()]
    if where.vae:
        parts.append(f"VAE {where.vae}")
    parts += [f"LoRA {lora}" for lora in where.loras or ()]
    if where.controlnet:
        parts.append(f"ControlNets {where.controlnet}")
    if where.ip_adapter:
        parts.append(f"IP-Adapter {where.ip_adapter}")
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
_DEFAULTS: dict[str, Any] = {
    option.name: [] if option.default == () else option.default for option in fields(Settings)
}


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


def matching(content: Mapping[str, Any], wanted: Wanted) -> list[Result]:
    """Return the entries of a result file that fit."""
    return [stored for stored in results(content) if not why_not(stored, wanted)]


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
