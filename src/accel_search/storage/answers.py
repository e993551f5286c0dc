"""The queries of a search, a sweep and `--verify` to stored entries, by the rule of `lookup`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accel_search.core.workload import Provenance, Workload
from accel_search.settings import AFFECTING, UPPER_BOUND, Settings
from accel_search.storage import speedup_bounds
from accel_search.storage.entries import BoundEntry, SearchEntry
from accel_search.storage.json_files import read_json
from accel_search.storage.lookup import HOW_FAR, Reason, Result, Wanted, bounds, matching, why_not
from accel_search.storage.search_results import Values, search_identity


def measured_as(
    settings: Settings, workload: Workload, values: Values, provenance: Provenance | None
) -> dict[str, Any]:
    """Return all that a sample depends on: searches that agree in it share their trials."""
    searched = search_identity(settings, values)
    return {
        "workload": asdict(workload),
        "provenance": None if provenance is None else provenance.identity(),
        **{name: value for name, value in searched.items() if AFFECTING.get(name) != "search"},
    }


def stored_answer(
    path: Path,
    workload: Workload,
    settings: Settings,
    values: Values,
    provenance: Provenance | None,
) -> tuple[SearchEntry | None, list[str]]:
    """Return the entry of a finished search that answers this one.

    A required speedup is answered by any result that reached it, the fastest first.

    Returns:
        The entry, or None; and the fields in which the most alike of other provenance differs.
    """
    options = search_identity(settings, values)
    if settings.req_speedup is not None:  # Met by any search within the same bounds.
        options = {n: value for n, value in options.items() if n not in ("values", *HOW_FAR)}
    passed_over: list[list[str]] = []
    key = _key_of(settings, workload)
    for stored in _in_order(read_json(path), key):
        if provenance is None or stored.entry.provenance is None:
            continue
        reasons = why_not(stored, replace(key, options=options, provenance=provenance.as_dict()))
        if not reasons:
            return stored.entry, []
        elsewhere = [reason.name for reason in reasons if reason.part == "provenance"]
        passed_over += [elsewhere] if elsewhere else []
    return None, min(passed_over, key=len, default=[])


def answering(
    content: Mapping[str, Any], settings: Settings, workload: Workload | None
) -> Sequence[SearchEntry | BoundEntry]:
    """Return the entries with this search's key that reach its goal.

    Those for an upper bound are in order of their dates, the latest first; others by speed.
    With `latency_only` the content is of a file of bounds. Without a workload, before a pipeline
    is loaded, any pipeline class is accepted.
    """
    key = _key_of(settings, workload)
    if settings.latency_only:
        return [stored.entry for stored in bounds(content) if not why_not(stored, key)]
    return [stored.entry for stored in _in_order(content, key)]


def stored_bound(
    content: Mapping[str, Any], settings: Settings, machine: Mapping[str, Any] | None
) -> tuple[BoundEntry | None, list[Reason]]:
    """Return the stored bound that answers a configuration, or the last one, and why it does not.

    Its provenance must have the fields of this machine; None accepts any machine.
    """
    label = speedup_bounds.label_of(settings.pipe, settings.latency_only)
    # What is measured by another implementation is a reason, given by the options.
    key = replace(_key_of(settings, None), goal=UPPER_BOUND, label=label, provenance={})
    query = replace(key, options=speedup_bounds.asked(settings), provenance=machine or {})
    last: tuple[BoundEntry | None, list[Reason]] = None, []
    for stored in bounds(content):
        if not why_not(stored, key):
            last = stored.entry, why_not(stored, query)
            if not last[1]:
                break
    return last


def _key_of(settings: Settings, workload: Workload | None) -> Wanted:
    return Wanted(
        pipeline_class=None if workload is None else workload.pipeline_class,
        scheduler_class=settings.scheduler_class if workload is None else workload.scheduler_class,
        steps=settings.steps if workload is None else workload.steps,
        targets=settings.targets,
        req_score_loss=settings.req_score_loss,
        label=speedup_bounds.label_of(settings.pipe, True) if settings.latency_only else None,
        goal=UPPER_BOUND if settings.latency_only else settings.goal_key,
        provenance={"implementation": settings.implementation},
    )


def _in_order(content: Mapping[str, Any], query: Wanted) -> list[Result]:
    """Return the results that fit: of upper bounds the latest first, else the fastest."""
    latest = sorted(matching(content, query), key=_date)[::-1]  # Of one date the last written.
    if query.goal == UPPER_BOUND:
        return latest
    return sorted(latest, key=lambda stored: -stored.entry.speedup)


def _date(stored: Result) -> str:
    return stored.entry.where.date
