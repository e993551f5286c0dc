"""The report of a sweep: a table of configurations and methods as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from accel_search.core.candidate import Candidate
from accel_search.core.schedulers import SCHEDULERS
from accel_search.errors import AccelSearchError, ConfigurationError, LoadError, first_line
from accel_search.report.format import short
from accel_search.report.html.page import search_page
from accel_search.report.html.render import render
from accel_search.report.html.write import AUTO
from accel_search.storage.json_files import parse_json, write_atomically
from accel_search.storage.keys import Configuration, parse_key
from accel_search.storage.run_reader import read_run
from accel_search.storage.speedup_bounds import FAILED
from accel_search.sweep.settings import SweepSettings

_SHORT = {class_name: name for name, class_name in SCHEDULERS.items()}


@dataclass(frozen=True)
class Explored:
    """One configuration and what became of it: an entry or a failure."""

    configuration: Configuration
    entry: Mapping[str, Any] | None = None
    failure: Mapping[str, Any] | None = None


def read_bounds(path: Path) -> list[Explored]:
    """Read a file of bounds.

    Raises:
        LoadError: It is none.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        found = list(_explored(content))
        if found:
            sweep_page(found, {})  # Everything that is shown is looked at here.
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError,
        OverflowError, TemplateError,
    ) as error:  # fmt: skip
        raise LoadError(
            f"{path}: cannot be read as a file of bounds: {first_line(error)}"
        ) from error
    if not found:
        raise ConfigurationError(f"{path}: holds no configuration; run accel-explore first")
    return found


def _explored(content: Mapping[str, Any]) -> Iterator[Explored]:
    for text, value in content.items():
        key = parse_key(text)
        if key is None:
            continue
        for entry in (value.get("by_model") or {"": value}).values():
            sched = _SHORT.get(key[1], str(key[1]))
            model = str(entry.get("model", key[0]))
            configuration = Configuration(model, sched, int(key[2]), "+".join(key[5]))
            yield Explored(configuration, entry=entry)
    for name, failure in (content.get(FAILED) or {}).items():
        failed = Configuration.from_failed_key(name)
        if failed is not None:
            yield Explored(failed, failure=dict(failure))


def sweep_page(explored: Sequence[Explored], links: Mapping[Configuration, str]) -> str:
    """Return the page of a sweep.

    Args:
        explored: From `read_bounds`.
        links: Address of each configuration's own report, of those that have one.
    """
    methods = list(dict.fromkeys(each.configuration.method for each in explored))
    done = [each for each in explored if each.entry is not None]
    widest = max((each.entry["measured_max_speedup"] for each in done if each.entry), default=1.0)
    widest = max(1.0, widest)
    places: dict[tuple[str, str, int], dict[str, Explored]] = {}
    for each in explored:
        where = each.configuration
        cells = places.setdefault((where.model, where.sched, where.steps), {})
        # One that succeeded long ago and failed since is shown with what was measured.
        if where.method not in cells or each.entry is not None:
            cells[where.method] = each
    rows = [
        {
            "model": model,
            "sched": sched,
            "steps": steps,
            "kind": "failed" if any(each.failure for each in cells.values()) else "done",
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
        fastest=_top(done, lambda entry: entry["measured_max_speedup"]),
        feasible=_top(done, lambda entry: (entry.get("best_feasible") or {}).get("speedup")),
        no_gain=sum(not each.entry["measured_max"]["is_gain"] for each in done if each.entry),
        whys=_whys(done),
        scored=any(not each.entry.get("latency_only") for each in done if each.entry),
        failures=[_failure(each) for each in explored if each.failure is not None],
        provenance=list(_provenance(done)),
    )


def _cell(each: Explored, widest: float, link: str | None) -> dict[str, Any]:
    if each.entry is None:
        assert each.failure is not None
        return {"error": str(each.failure.get("error")), "value": ""}
    entry = each.entry
    feasible = entry.get("best_feasible")
    fastest = float(entry["measured_max_speedup"])
    low, high = entry["measured_max"]["speedup_interval"]
    large = f"{fastest:.2f} ×"
    if not entry.get("latency_only"):
        large = "–" if feasible is None else f"{feasible['speedup']:.2f} ×"
    shown = (entry["measured_max"] if feasible is None else feasible)["settings"]
    return {
        "error": None,
        "value": fastest if feasible is None else feasible["speedup"],
        "large": large,
        "measured": f"measured {fastest:.2f} [{low:.2f}, {high:.2f}]"
        if not entry.get("latency_only")
        else f"95 %: {low:.2f} to {high:.2f}",
        "bound": f"{entry['max_speedup']:.2f}",
        "bar": f"{100 * fastest / widest:.1f}",
        "feasible_bar": None if feasible is None else f"{100 * feasible['speedup'] / widest:.1f}",
        "settings": short(Candidate(shown)),
        "is_gain": entry["measured_max"]["is_gain"],
        "link": link,
    }


def _whys(done: Sequence[Explored]) -> dict[str, list[str]]:
    """Return what entries say of no gain -> the configurations that it is said of."""
    found: dict[str, list[str]] = {}
    for each in done:
        # Entries of before do not say.
        if each.entry is not None and each.entry.get("no_gain"):
            found.setdefault(str(each.entry["no_gain"]), []).append(str(each.configuration))
    return found


def _top(done: Sequence[Explored], value: Any) -> dict[str, str] | None:
    known = [(value(each.entry), each) for each in done if value(each.entry) is not None]
    if not known:
        return None
    speedup, each = max(known, key=lambda pair: pair[0])
    return {"speedup": f"{speedup:.2f}", "said": str(each.configuration)}


def _failure(each: Explored) -> dict[str, str]:
    failure = each.failure or {}
    names = {"exit_code": "exit code", "batch_sizes_tried": "batch sizes", "seconds": "seconds"}
    facts = [f"{said} {failure[name]}" for name, said in names.items() if failure.get(name)]
    return {
        "name": str(each.configuration),
        "error": str(failure.get("error")),
        "facts": ", ".join(facts),
        "message": str(failure.get("message", "")),
    }


def _provenance(done: Sequence[Explored]) -> Iterator[tuple[str, str]]:
    """Yield what the entries were measured with; where they differ, each value."""
    names = {
        "device_name": "Device", "driver": "Driver", "dtype": "Precision", "threads": "CPU threads",
        "batch_size": "Batch size", "guidance_scale": "Guidance scale",
        "attention_backend": "Attention", "clip_model": "Scored by", "prompt_set_hash": "Prompts",
    }  # fmt: skip
    found = [each.entry.get("provenance") or {} for each in done if each.entry is not None]
    for name, said in names.items():
        values = dict.fromkeys(str(one[name]) for one in found if one.get(name) is not None)
        if values:
            yield said, ", ".join(values)
    dates = sorted(str(one["date"]) for one in found if one.get("date"))
    if dates:
        yield "Measured", " to ".join(dict.fromkeys((dates[0][:10], dates[-1][:10])))
    versions: dict[str, dict[str, None]] = {}
    for one in found:
        for package, version in (one.get("versions") or {}).items():
            versions.setdefault(str(package), {})[str(version)] = None
    for package, kinds in versions.items():
        yield package, ", ".join(kinds)


def write_sweep_of(settings: SweepSettings) -> list[Path]:
    """Write the page that a sweep's settings ask for; raises as `write_sweep`."""
    bounds = Path(settings.search_settings(settings.table[0]).bounds)
    automatic = settings.report in (None, AUTO)
    page = bounds.with_suffix(".html") if automatic else Path(str(settings.report))
    return write_sweep(bounds, Path(settings.run_dir), page, settings.common.get("storage"))


def write_sweep(bounds: Path, run_dir: Path, page: Path, storage: str | None = None) -> list[Path]:
    """Write a sweep's page, and a page for each configuration whose run is there.

    Args:
        bounds: What was explored.
        run_dir: Holds the configurations' own run folders.
        page: Is written.
        storage: Optuna storage URL that their trials are in, if not in those folders.

    Raises:
        ConfigurationError: They cannot be written, or nothing was explored.
        LoadError: The file of bounds is none.
    """
    explored = read_bounds(bounds)
    folder = page.with_name(f"{page.stem}_files")
    links: dict[Configuration, str] = {}
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for each in explored:
            own_page = _page_of(run_dir, each.configuration, each.entry, storage)
            if own_page is not None:
                own = folder / f"{each.configuration.slug}.html"
                own.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(own, own_page)
                links[each.configuration] = f"{folder.name}/{own.name}"
        write_atomically(page, sweep_page(explored, links))
    except OSError as error:
        raise ConfigurationError(f"--report {page}: {error.strerror}") from error
    return [page]


def _page_of(
    run_dir: Path,
    configuration: Configuration,
    entry: Mapping[str, Any] | None,
    storage: str | None,
) -> str | None:
    """Return the page of a configuration's own run; None where that is not at hand or damaged."""
    folder = run_dir / configuration.slug
    if entry is None or (storage is None and not folder.is_dir()):
        return None
    study = None if storage is None else (entry.get("evidence") or {}).get("study", "")
    try:
        return search_page(read_run(folder, study, storage=storage))
    except AccelSearchError:
        # A sweep's report must not fail for one of its hundred runs.
        return None
