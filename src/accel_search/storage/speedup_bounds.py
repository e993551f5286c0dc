"""`speedup_bounds.json`: how fast each configuration can be, and which configurations failed.

A key names a pipeline class, and SD1.5 and SD2.1 share one. So a value holds an entry per model
under `by_model`, which holds those of other workloads, too; and its flat fields are those of the
entry with the largest bound, of the scored ones if there are any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_search.core.secrets import without_secrets
from accel_search.core.workload import Provenance, SpaceSummary
from accel_search.settings import AFFECTING, Settings
from accel_search.storage import entries
from accel_search.storage.entries import BoundEntry, FailedEntry, SearchEntry, rounded
from accel_search.storage.json_files import as_object, readable, update_json
from accel_search.storage.keys import Configuration
from accel_search.storage.typed import to_builtins
from accel_search.storage.workloads import held, with_result

if TYPE_CHECKING:  # It loads SciPy, which applying a result does without.
    from accel_search.core.outcome import Outcome, SpeedBound

FAILED = "failed_configs"
"""Key of the object of failures."""
MARGIN = 1.1
"""`max_speedup` over the largest measured speedup."""
MAX_MESSAGE = 1000
"""Characters of a failure's message."""


def label_of(model: str, latency_only: bool) -> str:
    """Return the name of a model's entry among those of one key."""
    return f"{model} (latency only)" if latency_only else model


def asked(settings: Settings) -> dict[str, Any]:
    """Return the options that a result depends on, as plain JSON types."""
    values = {
        name: list(value) if isinstance(value, tuple) else value
        for name, affected in AFFECTING.items()
        for value in [getattr(settings, name)]
        if affected == "timing" or name == "max_trials" or not settings.latency_only
    }
    space = {
        target: {name: list(searched) for name, searched in settings.space[target].items()}
        for target in settings.targets
        if target in settings.space
    }
    return values | {"space": space}


def entry_of(
    settings: Settings,
    space: SpaceSummary,
    provenance: Provenance | None,
    study: str,
    bound: SpeedBound,
    outcome: Outcome | None,
    winner: SearchEntry | None,
    no_gain: str | None,
) -> BoundEntry:
    """Return the entry of one explored configuration, of its fastest candidate and its search.

    Outcome and winner are None where nothing was scored; others as in `search_results.entry_of`.
    """
    trials = () if outcome is None else outcome.trials
    size = bound.measurement.batch_size
    calls = bound.baseline.seconds_per_image
    where = None
    if provenance is not None:
        where = entries.StoredProvenance(**provenance.as_dict() | {"batch_size": size})
    return BoundEntry(
        max_speedup=round(MARGIN * bound.speedup.value, 2),
        measured_max_speedup=rounded(bound.speedup.value),
        measured_max=entries.Fastest(
            speedup_interval=(rounded(bound.speedup.low), rounded(bound.speedup.high)),
            is_gain=bound.is_gain,
            params=bound.candidate.flat(),
            settings=bound.candidate.as_dict(),
        ),
        no_gain=no_gain,
        best_feasible=None if winner is None else _feasible(winner),
        model=settings.pipe,
        latency_only=settings.latency_only,
        asked=asked(settings),
        evidence=entries.BoundEvidence(
            noise_floor=rounded(bound.noise_floor),
            noise_note=bound.noise_note,
            baseline_seconds_per_image=rounded(sum(calls) / len(calls)),
            space_points=space.points,
            space_distinct=space.distinct,
            trials_measured=bound.timed,
            trials_failed=bound.failed,
            speed_settled=bound.settled,
            search_settled=None if outcome is None else outcome.settled,
            search_stopped=None if outcome is None else outcome.stopped,
            trials_scored=sum(trial.assessment is not None for trial in trials),
            peak_memory_bytes=bound.measurement.peak_memory_bytes,
            seconds=round(max(bound.seconds, outcome.seconds if outcome else 0.0), 1),
            study=study,
        ),
        provenance=where,
    )


def _feasible(winner: SearchEntry) -> entries.Feasible:
    evidence = winner.evidence
    assert winner.score_loss is not None
    return entries.Feasible(
        speedup=winner.speedup,
        speedup_interval=evidence.speedup_interval,
        score_loss=winner.score_loss,
        score_loss_interval=evidence.score_loss_interval,
        verdict=evidence.verdict,
        tail_loss=evidence.tail_loss,
        range_loss=evidence.range_loss,
        params=winner.candidate.flat(),
        settings=winner.settings,
        held_out=evidence.held_out,
        chance_within_bound=evidence.chance_within_bound,
        in_search=evidence.in_search,
    )


@dataclass(frozen=True)
class _Bound:
    """The fields of an entry that decide which one of a key has the largest bound."""

    latency_only: bool
    max_speedup: entries.Number


def save(path: Path, key: str, label: str, entry: BoundEntry, failed: str | None = None) -> None:
    """Write an entry under its key and label, and remove the failure of a key, if there is one."""
    identity = _identity(entry)

    def is_replaced(stored: Any) -> bool:
        typed = readable({0: stored}, BoundEntry)
        return bool(typed) and _identity(typed[0]) == identity

    def change(content: dict[str, Any]) -> None:
        # Everything else is kept, readable or not.
        models = dict(as_object(as_object(content.get(key)).get("by_model")))
        models[label] = with_result(models.get(label), entry.as_dict(), is_replaced)
        bounds = readable(models, _Bound)
        widest = max(
            bounds, key=lambda name: (not bounds[name].latency_only, bounds[name].max_speedup)
        )
        content[key] = models[widest] | {"by_model": models}
        failures = as_object(content.pop(FAILED, None))
        if failed is not None:
            failures.pop(failed, None)
        content[FAILED] = failures  # Last, where readers of the file expect it.

    update_json(path, change)


def _identity(entry: BoundEntry) -> str:
    """Return all that an entry's figures depend on: two of one label that agree in it replace."""
    where = entry.where.identity()
    where.pop("batch_size", None)  # The one that fitted; the one asked for is an option.
    return json.dumps([where, entry.asked], sort_keys=True)


def save_failure(path: Path, failed: str, failure: FailedEntry) -> None:
    """Write how a configuration failed; an earlier entry of it is kept."""
    message = without_secrets(failure.message)[:MAX_MESSAGE]

    def change(content: dict[str, Any]) -> None:
        failures = as_object(content.pop(FAILED, None))
        failures[failed] = to_builtins(replace(failure, message=message))
        content[FAILED] = failures

    update_json(path, change)


def failures(
    content: Mapping[str, Any], *, strict: bool = False
) -> dict[Configuration, FailedEntry]:
    """Return the stored failures; raises as `by_label`."""
    stored = as_object(content.get(FAILED)).items()
    named = ((Configuration.from_failed_key(key), value) for key, value in stored)
    known = {configuration: value for configuration, value in named if configuration is not None}
    return readable(known, FailedEntry, strict=strict)


def is_bounds(content: Any) -> bool:
    """Return whether a JSON document is a file of bounds rather than of results or trials."""
    content = as_object(content)
    return FAILED in content or any("max_speedup" in as_object(v) for v in content.values())


def by_label(value: Any, *, strict: bool = False) -> list[tuple[str, BoundEntry]]:
    """Return the entries that a value of the file holds, with their labels.

    Those of one label are in the order in which they were written.

    Raises:
        Unreadable: With `strict`, an entry is corrupt; otherwise it is skipped.
    """
    models = as_object(as_object(value).get("by_model"))
    several = {
        (label, place): each
        for label, stored in models.items()
        for place, each in enumerate(held(stored))
    }
    typed = readable(several, BoundEntry, strict=strict)
    return [(label, entry) for (label, _), entry in typed.items()]
