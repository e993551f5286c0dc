"""Which stored result answers: a search, a sweep, `accelerate`, `--verify`; one rule for all."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

from accel_search.core.candidate import Candidate
from accel_search.core.paths import local_folder
from accel_search.core.schedulers import scheduler_name
from accel_search.core.workload import differences
from accel_search.errors import ConfigurationError
from accel_search.settings import UPPER_BOUND, Settings
from accel_search.storage import speedup_bounds
from accel_search.storage.json_files import are_numbers, is_interval, part_of, read_json
from accel_search.storage.keys import parse_key
from accel_search.storage.search_results import by_model, device_of, model_of

DEMO = "demo"
"""The embedded pipeline, as `--pipe` names it."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What a result is to be of; None takes any."""

    pipeline_class: str | None = None
    """Class name of the pipeline."""
    scheduler_class: str | None = None
    """Class name of the scheduler."""
    steps: int | None = None
    targets: Sequence[str] | None = None
    """Accelerators that were searched, exactly these."""
    req_score_loss: float | None = None
    """Bound on the loss of score that was searched under, a fraction."""
    model: str | None = None
    """Hub id or folder."""
    label: str | None = None
    """Of a bound on speed, from `speedup_bounds.label_of`."""
    goal: str | float | None = None
    """`upbound_speedup`, or the least speedup."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options that it is to have been asked for with."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a provenance that it is to have."""

    def __str__(self) -> str:
        steps = None if self.steps is None else f"{self.steps} steps"
        named = (self.model, self.pipeline_class, self.scheduler_class, steps)
        parts = [each for each in named if each]
        if self.targets is not None:
            parts.append(f"targets {', '.join(self.targets)}")
        if self.req_score_loss is not None:
            parts.append(f"req_score_loss {self.req_score_loss:g}")
        return ", ".join(parts) or "anything"


@dataclass(frozen=True)
class Fitting:
    """A stored result that is of what is wanted."""

    bound: float
    """On the loss of score, a fraction."""
    entry: dict[str, Any]
    key: tuple[Any, ...] = ()
    """As `parse_key` returns it."""
    label: str | None = None
    """Of a bound on speed; None of a search's result."""

    @property
    def options(self) -> Any:
        """Return the options that it was asked for with; no mapping where it does not say."""
        if self.label is not None:
            return self.entry.get("asked")
        evidence = part_of(self.entry, "evidence")
        told = {"req_score_loss": self.bound, "strategy": evidence.get("strategy")}
        return told | part_of(evidence, "search")

    @property
    def is_settled(self) -> bool:
        """Return whether nothing that its search left out could win."""
        evidence = part_of(self.entry, "evidence")
        return bool(evidence.get("settled" if self.label is None else "search_settled"))

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Return accelerator name -> parameters."""
        settings: dict[str, dict[str, Any]] = self.entry["settings"]
        return settings

    def __str__(self) -> str:
        """Say in one line what was measured, what is to be expected of it, and where."""
        evidence, where = part_of(self.entry, "evidence"), part_of(self.entry, "provenance")
        # On prompts that the search did not choose by, where there are such.
        figures = part_of(evidence, "held_out") or {**evidence, **self.entry}
        expected = ["expected speedup " + _with_interval(figures, "speedup", 2)]
        if are_numbers(figures.get("score_loss")):
            expected.append("score loss " + _with_interval(figures, "score_loss", 1, 100, " %"))
        measured = [str(where[name]) for name in ("device_name", "date") if where.get(name)]
        names = [self.model, *map(str, self.key[:1]), *map(scheduler_name, self.key[1:2])]
        workload = [name for name in names if name] + [f"{steps} steps" for steps in self.key[2:3]]
        if where.get("width") and where.get("height"):
            workload.append(f"{where['width']} x {where['height']} px")
        if where.get("batch_size"):
            workload.append(f"batch size {where['batch_size']}")
        return (
            f"{Candidate(self.settings)}, {', '.join(expected)}; measured on "
            f"{', '.join(measured) or 'an unknown device'} with {', '.join(workload)}"
        )

    @property
    def model(self) -> str:
        """Return its model's hub id or folder; empty where it does not say."""
        return model_of(self.entry)

    @property
    def device(self) -> str:
        """Return what it was measured on; empty where it does not say."""
        return device_of(self.entry)

    @property
    def date(self) -> str:
        """Return when, in ISO 8601; empty where it does not say."""
        return str(part_of(self.entry, "provenance").get("date", ""))


class Reason(NamedTuple):
    """In what a stored result is another than the one that is wanted."""

    part: Literal["key", "options", "provenance"]
    name: str


HOW_FAR = ("strategy", "sampler", "max_trials", "time_budget")
"""Options that no longer matter once a search is settled."""
_DEFAULTS = {option.name: option.default for option in fields(Settings)}


def why_not(entry: Fitting, query: Wanted) -> list[Reason]:
    """Return why a stored result does not answer a query; nothing where it does.

    Once its key is another, the rest is not looked at.
    """
    cls, scheduler, count, goal, bound, searched = entry.key
    key = {
        "pipeline_class": (query.pipeline_class, cls),
        "scheduler_class": (query.scheduler_class, scheduler),
        "steps": (None if query.steps is None else str(query.steps), count),
        "req_score_loss": (query.req_score_loss, bound),
        "targets": (None if query.targets is None else sorted(query.targets), searched),
        "label": (query.label, entry.label),
    }
    others = [name for name, (wanted, stored) in key.items() if wanted not in (None, stored)]
    if query.goal is not None:
        is_other_kind = (goal == UPPER_BOUND) != (query.goal == UPPER_BOUND)
        # The speedup in a key is rounded: a name, and not what was reached.
        if is_other_kind or (goal != UPPER_BOUND and entry.entry["speedup"] < query.goal):
            others.append("req_speedup")
    if not others and query.model is not None and not is_same_model(query.model, entry.model):
        others.append("model")
    if others:
        return [Reason("key", name) for name in others]
    asked = other_options(entry.options, query.options, settled=entry.is_settled)
    elsewhere = differences(query.provenance, part_of(entry.entry, "provenance"))
    options = [Reason("options", name) for name in asked]
    return options + [Reason("provenance", name) for name in elsewhere]


def other_options(asked: Any, wanted: Mapping[str, Any], *, settled: bool = False) -> list[str]:
    """Name the options by which what was asked for does not answer what is wanted.

    More timing pairs will do, for an unsteady machine is told to ask for them. How far a search
    went does not matter once it is settled; but a grid, which measures everything, is answered by
    none but its like. An option that `asked` does not name is younger, and had its default.
    """
    if not isinstance(asked, Mapping):
        return list(wanted)
    kept = {name: asked.get(name, _DEFAULTS.get(name)) for name in wanted}
    others = [name for name, value in wanted.items() if kept[name] != value]
    if settled:
        is_grid = wanted.get("strategy") == "grid"
        others = [n for n in others if n not in HOW_FAR or (is_grid and n == "strategy")]
    pairs = kept.get("timing_pairs")
    if are_numbers(pairs) and pairs >= wanted["timing_pairs"]:
        others = [name for name in others if name != "timing_pairs"]
    return others


def results(content: Mapping[str, Any]) -> Iterator[Fitting]:
    """Yield the entries of a result file; what is none, since it was edited, is passed over."""
    for key, value in _keyed(content):
        yield from (Fitting(key[4], entry, key) for entry in by_model(value).values())


def bounds(content: Mapping[str, Any]) -> Iterator[Fitting]:
    """Yield the entries of a file of bounds."""
    for key, value in _keyed(content):
        for label, entry in speedup_bounds.by_label(value).items():
            yield Fitting(key[4], entry, key, label)


def _keyed(content: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    keys = ((parse_key(text), value) for text, value in content.items())
    return ((key, value) for key, value in keys if key is not None)


def _with_interval(
    figures: Mapping[str, Any], name: str, digits: int, scale: float = 1, unit: str = ""
) -> str:
    text = f"{figures[name] * scale:.{digits}f}{unit}"
    interval = figures.get(f"{name}_interval")
    if not is_interval(interval):
        return text
    low, high = (f"{end * scale:.{digits}f}" for end in interval)
    return f"{text} [{low}, {high}]"


def find_settings(
    path: Path,
    wanted: Wanted | None = None,
    loaded_from: str | None = None,
    device: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the settings of the fastest stored result that fits; see `find_result`."""
    return find_result(path, wanted, loaded_from, device).settings


def find_result(
    path: Path,
    wanted: Wanted | None = None,
    loaded_from: str | None = None,
    device: str | None = None,
) -> Fitting:
    """Return the fastest stored result that fits.

    Args:
        path: The result file.
        wanted: What it is to be of; None takes any.
        loaded_from: Hub id or folder of the model, empty where the pipeline does not say, but only
            to choose where results of several models fit, and to warn where the only one is of
            another; None takes the fastest of all.
        device: The GPU's name, but only to choose where results of several fit; None, or one that
            none is of, takes those of the device that was measured on last, with a warning.

    Raises:
        ConfigurationError: No stored result fits; or those that do are of several models, none of
            which is that of `loaded_from`, or were found under several bounds.
    """
    wanted = wanted or Wanted()
    fitting = _candidates(path, read_json(path), wanted, loaded_from)
    chosen = _of_device(fitting, device)
    if chosen[0].device != device:
        _warn_of_devices(path, fitting, chosen[0].device)
    if loaded_from is not None and wanted.model is None:
        _warn_of_model(path, chosen[0].model, loaded_from)
    return _fastest(chosen)


def holds_any(path: Path, wanted: Wanted) -> bool:
    """Return whether a file holds a result of what is wanted."""
    return bool(matching(read_json(path), wanted))


def _warn_of_devices(path: Path, fitting: Sequence[Fitting], chosen: str) -> None:
    devices = sorted({each.device for each in fitting})
    if len(devices) > 1:
        _logger.warning(
            "%s: holds results of %s; taking those of %s, measured last",
            path,
            ", ".join(each or "an unknown device" for each in devices),
            chosen or "an unknown device",
        )


def _warn_of_model(path: Path, model: str, loaded_from: str) -> None:
    """Say that a result may be of another model; a folder may well be a copy of the same."""
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
    path: Path, wanted: Wanted, entry: Mapping[str, Any]
) -> dict[str, float | list[str]] | None:
    """Return what has to be said for `accelerate` to take an entry, and no other, from its file.

    Args:
        path: The result file.
        wanted: What the entry is of: all but the model, which the pipeline itself tells.
        entry: As `search_results.entry_of` makes it, and as it was written.

    Returns:
        The fewest of `req_score_loss` and `targets`; None where others are faster by any of them.
    """
    content = read_json(path)
    bound, targets = wanted.req_score_loss, wanted.targets
    assert bound is not None and targets is not None
    known: dict[str, float | list[str]] = {"req_score_loss": bound, "targets": list(targets)}
    for count in range(len(known) + 1):
        for left_out in combinations(known, len(known) - count):
            unsaid: dict[str, Any] = dict.fromkeys(left_out)
            asked = replace(wanted, **unsaid)
            if _is_found(path, content, asked, entry):
                return {name: value for name, value in known.items() if name not in left_out}
    return None


def _is_found(
    path: Path, content: Mapping[str, Any], wanted: Wanted, entry: Mapping[str, Any]
) -> bool:
    """Tell whether an entry's settings are what is taken, with the pipeline on its GPU or not."""
    try:
        fitting = _candidates(path, content, wanted, model_of(entry))
    except ConfigurationError:
        return False
    return all(
        _fastest(_of_device(fitting, device)).settings == entry["settings"]
        for device in (None, device_of(entry))
    )


def _candidates(
    path: Path, content: Mapping[str, Any], wanted: Wanted, loaded_from: str | None
) -> list[Fitting]:
    """Return the results that fit, of one model and one bound; raises as `find_settings`."""
    fitting = matching(content, wanted)
    if not fitting:
        raise ConfigurationError(f"{path}: {_nothing(content, wanted)}")
    fitting = _of_model(path, fitting, loaded_from)
    bounds = sorted({each.bound for each in fitting})
    if len(bounds) > 1:
        # The loosest is the fastest: to take it would be to lose more than was asked for last.
        raise ConfigurationError(
            f"{path}: holds results within several bounds on the loss of score: say which with "
            f"req_score_loss={' or '.join(f'{each:g}' for each in bounds)}"
        )
    return fitting


def _fastest(fitting: Sequence[Fitting]) -> Fitting:
    return max(fitting, key=lambda each: float(each.entry["speedup"]))


def matching(content: Mapping[str, Any], wanted: Wanted) -> list[Fitting]:
    """Return the entries of a result file that are of what is wanted."""
    return [stored for stored in results(content) if not why_not(stored, wanted)]


def _of_device(fitting: list[Fitting], device: str | None) -> list[Fitting]:
    """Return the results of a device; those of the one measured on last where there are none.

    What is fast on one GPU may be slow on another, so a faster result of another is no better.
    """
    own = [each for each in fitting if each.device == device]
    last = max(fitting, key=lambda each: each.date).device
    return own or [each for each in fitting if each.device == last]


def _nothing(content: Mapping[str, Any], wanted: Wanted) -> str:
    """Say that no result fits, and which schedulers there are results of in its place."""
    anyhow = replace(wanted, scheduler_class=None)
    keys = [(text, parse_key(text)) for text in content]
    others = sorted(
        {
            scheduler_name(key[1])
            for text, key in keys
            if key is not None and matching({text: content[text]}, anyhow)
        }
    )
    if not others:
        return f"holds no result for {wanted}; run accel-search for it first"
    choice = " or ".join(f'"{each}"' for each in others)
    return f"holds no result for {wanted}, but some with another scheduler: give scheduler={choice}"


def _of_model(path: Path, fitting: list[Fitting], loaded_from: str | None) -> list[Fitting]:
    """Return the results of the model that a pipeline was loaded from, if there are several."""
    models = sorted({each.model for each in fitting})
    if loaded_from is None or len(models) < 2:
        return fitting
    found = [each for each in fitting if is_same_model(each.model, loaded_from)]
    if not found:
        raise ConfigurationError(
            f"{path}: holds results of {', '.join(models)}, and the pipeline was loaded from "
            f"{loaded_from or 'elsewhere'}: say whose with model="
        )
    return found


def is_same_model(one: str, other: str) -> bool:
    """Tell whether two hub ids or folders are known to be of one model."""
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
