"""The report of a sweep: a table of configurations and methods as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_search.core.candidate import Candidate
from accel_search.core.schedulers import scheduler_name
from accel_search.core.workload import Provenance
from accel_search.errors import AccelSearchError, ConfigurationError, LoadError
from accel_search.report.format import short
from accel_search.report.html.page import search_page
from accel_search.report.html.render import render
from accel_search.report.html.write import AUTO
from accel_search.storage.entries import BoundEntry, FailedEntry
from accel_search.storage.json_files import Unreadable, as_type, load_json, write_atomically
from accel_search.storage.keys import Configuration
from accel_search.storage.lookup import bounds
from accel_search.storage.run_reader import read_run
from accel_search.storage.speedup_bounds import failures
from accel_search.sweep.settings import SweepSettings


@dataclass(frozen=True)
class Explored:
    """One configuration and what became of it: an entry or a failure."""

    configuration: Configuration
    entry: BoundEntry | None = None
    failure: FailedEntry | None = None


def read_bounds(path: Path) -> list[Explored]:
    """Read a file of bounds.

    Raises:
        LoadError: It cannot be read as one.
        ConfigurationError: It is empty.
    """
    try:
        explored = list(_explored(as_type(load_json(path), dict[str, Any])))
    except Unreadable as error:
        raise LoadError(f"{path}: cannot be read as a file of bounds: {error}") from error
    if not explored:
        raise ConfigurationError(f"{path}: holds no configuration; run accel-explore first")
    return explored


def _explored(content: Mapping[str, Any]) -> Iterator[Explored]:
    latest = {(str(one.key), one.label): one for one in bounds(content, strict=True)}
    for stored in latest.values():
        key = stored.key
        sched = scheduler_name(key.scheduler_class)
        model = stored.entry.model or key.pipeline_class
        configuration = Configuration(model, sched, int(key.steps), "+".join(key.targets))
        yield Explored(configuration, entry=stored.entry)
    for configuration, failure in failures(content, strict=True).items():
        yield Explored(configuration, failure=failure)


def sweep_page(explored: Sequence[Explored], links: Mapping[Configuration, str]) -> str:
    """Return the page of a sweep, with the links to its configurations' own reports."""
    methods = list(dict.fromkeys(one.configuration.method for one in explored))
    done = [(one.configuration, one.entry) for one in explored if one.entry is not None]
    fastest = {configuration: entry.measured_max_speedup for configuration, entry in done}
    feasible = {
        configuration: entry.best_feasible.speedup
        for configuration, entry in done
        if entry.best_feasible is not None
    }
    widest = max([1.0, *fastest.values()])
    places: dict[tuple[str, str, int], dict[str, Explored]] = {}
    for one in explored:
        where = one.configuration
        cells = places.setdefault((where.model, where.sched, where.steps), {})
        # A configuration that succeeded once and failed later is shown with its result.
        if where.method not in cells or one.entry is not None:
            cells[where.method] = one
    rows = [
        {
            "model": model,
            "sched": sched,
            "steps": steps,
            "kind": "failed" if any(one.failure for one in cells.values()) else "done",
            "cells": [
                _cell(cells[name], widest, links.get(cells[name].configuration))
                if name in cells
                else None
                for name in methods
            ],
        }
        for (model, sched, steps), cells in sorted(places.items())
    ]
    return render(
        "sweep.html.j2",
        title="How fast each configuration can be",
        methods=methods,
        rows=rows,
        unit=f"{100 / widest:.2f}",
        cells_done=len(done),
        fastest=_top(fastest),
        feasible=_top(feasible),
        no_gain=sum(not entry.measured_max.is_gain for _, entry in done),
        whys=_whys(done),
        scored=any(not entry.latency_only for _, entry in done),
        failures=[
            _failure(one.configuration, one.failure) for one in explored if one.failure is not None
        ],
        provenance=list(_provenance([entry.provenance for _, entry in done if entry.provenance])),
    )


def _cell(one: Explored, widest: float, link: str | None) -> dict[str, Any]:
    entry = one.entry
    if entry is None:
        assert one.failure is not None
        return {"error": one.failure.error, "value": ""}
    feasible, fastest = entry.best_feasible, entry.measured_max_speedup
    low, high = entry.measured_max.speedup_interval
    large, measured = f"{fastest:.2f} ×", f"95 %: {low:.2f} to {high:.2f}"
    if not entry.latency_only:
        large = "–" if feasible is None else f"{feasible.speedup:.2f} ×"
        measured = f"measured {fastest:.2f} [{low:.2f}, {high:.2f}]"
    shown = entry.measured_max if feasible is None else feasible
    return {
        "error": None,
        "value": fastest if feasible is None else feasible.speedup,
        "large": large,
        "measured": measured,
        "bound": f"{entry.max_speedup:.2f}",
        "bar": f"{100 * fastest / widest:.1f}",
        "feasible_bar": None if feasible is None else f"{100 * feasible.speedup / widest:.1f}",
        "settings": short(Candidate(shown.settings)),
        "likely": None if feasible is None else feasible.likely,
        "is_gain": entry.measured_max.is_gain,
        "link": link,
    }


def _whys(done: Sequence[tuple[Configuration, BoundEntry]]) -> dict[str, list[str]]:
    """Return each explanation of no gain -> its configurations."""
    whys: dict[str, list[str]] = {}
    for configuration, entry in done:
        if entry.no_gain:
            whys.setdefault(entry.no_gain, []).append(str(configuration))
    return whys


def _top(speedups: Mapping[Configuration, float]) -> dict[str, str] | None:
    if not speedups:
        return None
    configuration = max(speedups, key=lambda known: speedups[known])
    return {"speedup": f"{speedups[configuration]:.2f}", "configuration": str(configuration)}


def _failure(configuration: Configuration, failure: FailedEntry) -> dict[str, str]:
    facts = {
        "exit code": failure.exit_code,
        "batch sizes": list(failure.batch_sizes_tried or ()),
        "seconds": failure.seconds,
    }
    return {
        "name": str(configuration),
        "error": failure.error,
        "facts": ", ".join(f"{name} {value}" for name, value in facts.items() if value),
        "message": failure.message,
    }


def _provenance(measured: Sequence[Provenance]) -> Iterator[tuple[str, str]]:
    """Yield the names and values of the entries' provenance, every value where they differ."""
    names = {
        "device_name": "Device", "driver": "Driver", "dtype": "Precision", "threads": "CPU threads",
        "batch_size": "Batch size", "guidance_scale": "Guidance scale",
        "attention_backend": "Attention", "clip_model": "Scored by", "prompt_set_hash": "Prompts",
    }  # fmt: skip
    for name, title in names.items():
        values = dict.fromkeys(getattr(where, name) for where in measured)
        known = [str(value) for value in values if value not in (None, "")]
        if known:
            yield title, ", ".join(known)
    dates = sorted(where.date[:10] for where in measured if where.date)
    if dates:
        yield "Measured", " to ".join(dict.fromkeys((dates[0], dates[-1])))
    versions: dict[str, dict[str, None]] = {}
    for where in measured:
        for package, version in where.versions.items():
            versions.setdefault(package, {})[version] = None
    for package, kinds in versions.items():
        yield package, ", ".join(kinds)


def write_sweep_of(settings: SweepSettings) -> list[Path]:
    """Write the page that a sweep's settings ask for; raises as `write_sweep`."""
    file = Path(settings.search_settings(settings.table[0]).bounds)
    automatic = settings.report in (None, AUTO)
    page = file.with_suffix(".html") if automatic else Path(str(settings.report))
    return write_sweep(file, Path(settings.run_dir), page, settings.common.get("storage"))


def write_sweep(file: Path, run_dir: Path, page: Path, storage: str | None = None) -> list[Path]:
    """Write a sweep's page, and a page for each configuration whose run folder exists.

    Raises:
        ConfigurationError: They cannot be written, or nothing was explored.
        LoadError: The file of bounds cannot be read.
    """
    explored = read_bounds(file)
    folder = page.with_name(f"{page.stem}_files")
    links: dict[Configuration, str] = {}
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for one in explored:
            own_page = _page_of(run_dir, one.configuration, one.entry, storage)
            if own_page is not None:
                own = folder / f"{one.configuration.slug}.html"
                own.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(own, own_page)
                links[one.configuration] = f"{folder.name}/{own.name}"
        write_atomically(page, sweep_page(explored, links))
    except OSError as error:
        raise ConfigurationError(f"--report {page}: {error.strerror}") from error
    return [page]


def _page_of(
    run_dir: Path,
    configuration: Configuration,
    entry: BoundEntry | None,
    storage: str | None,
) -> str | None:
    """Return the page of a configuration's own run; None where that is missing or corrupt."""
    folder = run_dir / configuration.slug
    if entry is None or (storage is None and not folder.is_dir()):
        return None
    study = None if storage is None else entry.evidence.study
    try:
        return search_page(read_run(folder, study, storage=storage))
    except AccelSearchError:
        # One corrupt run must not fail the report of a hundred.
        return None
