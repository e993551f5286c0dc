"""`speedup_bounds.json`: how fast each configuration can be, and which configurations failed.

A key names a pipeline class, and SD1.5 and SD2.1 share one. So a value holds an entry a model
under `by_model`, and its flat fields are those of the entry that bounds them all: of those that
were scored, if there are any, the one with the largest bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel_search.core.candidate import Candidate
from accel_search.core.outcome import Outcome, SpeedBound
from accel_search.core.secrets import without_secrets
from accel_search.core.workload import Provenance, SpaceSummary
from accel_search.settings import AFFECTING, Settings
from accel_search.storage.json_files import are_numbers, as_object, is_interval, update_json
from accel_search.storage.search_results import rounded

FAILED = "failed_configs"
"""Key of the object of failures."""
MARGIN = 1.1
"""`max_speedup` over the largest measured speedup."""
MAX_MESSAGE = 1000
"""Characters of a failure's message."""


def label_of(model: str, latency_only: bool) -> str:
    """Return what tells a model's entry from others under one key."""
    return f"{model} (latency only)" if latency_only else model


def asked(settings: Settings) -> dict[str, Any]:
    """Return the options that a result depends on, as plain JSON types."""
    values = {
        name: getattr(settings, name)
        for name, affected in AFFECTING.items()
        if affected == "timing" or not settings.latency_only
    }
    space = {
        target: {name: list(each) for name, each in settings.space[target].items()}
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
    winner: Mapping[str, Any] | None,
    no_gain: str | None,
) -> dict[str, Any]:
    """Return the entry of one explored configuration.

    Args:
        settings: What was asked.
        space: What was explored.
        provenance: Where and with what.
        study: Name of the trials' study.
        bound: The fastest candidate.
        outcome: What the search found; None where nothing was scored.
        winner: Its winner's entry in `search_params.json`; None without one.
        no_gain: What is to be said of targets that gain nothing, from `explain.of_bound`.
    """
    trials = () if outcome is None else outcome.trials
    size = bound.measurement.batch_size
    calls = bound.baseline.seconds_per_image
    return {
        "max_speedup": round(MARGIN * bound.speedup.value, 2),
        "measured_max_speedup": rounded(bound.speedup.value),
        "measured_max": {
            "speedup_interval": [rounded(end) for end in bound.speedup.as_list()],
            "is_gain": bound.is_gain,
            "params": bound.candidate.flat(),
            "settings": bound.candidate.as_dict(),
        },
        "no_gain": no_gain,
        "best_feasible": None if winner is None else _feasible(winner),
        "model": settings.pipe,
        "latency_only": settings.latency_only,
        "asked": asked(settings),
        "evidence": {
            "noise_floor": rounded(bound.noise_floor),
            "baseline_seconds_per_image": rounded(sum(calls) / len(calls)),
            "space_points": space.points,
            "space_distinct": space.distinct,
            "trials_measured": bound.timed,
            "trials_failed": bound.failed,
            "speed_settled": bound.settled,
            "search_settled": None if outcome is None else outcome.settled,
            "search_stopped": None if outcome is None else outcome.stopped,
            "trials_scored": sum(each.assessment is not None for each in trials),
            "peak_memory_bytes": bound.measurement.peak_memory_bytes,
            "seconds": round(max(bound.seconds, outcome.seconds if outcome else 0.0), 1),
            "study": study,
        },
        "provenance": None if provenance is None else provenance.as_dict() | {"batch_size": size},
    }


def _feasible(winner: Mapping[str, Any]) -> dict[str, Any]:
    evidence = winner["evidence"]
    return {
        "speedup": winner["speedup"],
        "speedup_interval": evidence["speedup_interval"],
        "score_loss": winner["score_loss"],
        "score_loss_interval": evidence["score_loss_interval"],
        "verdict": evidence["verdict"],
        "params": Candidate(winner["settings"]).flat(),
        "settings": winner["settings"],
        "held_out": evidence["held_out"],
    }


def save(
    path: Path, key: str, label: str, entry: Mapping[str, Any], failed: str | None = None
) -> None:
    """Write an entry; a failure that is recorded of the same configuration goes.

    Args:
        path: The file.
        key: The configuration's key.
        label: From `label_of`.
        entry: From `entry_of`.
        failed: The configuration's key among the failures.
    """

    def change(content: dict[str, Any]) -> None:
        # Whatever else stands there is kept, readable or not.
        models = as_object(as_object(content.get(key)).get("by_model")) | {label: dict(entry)}
        widest = max(
            (each for each in models.values() if _is_bound(each)),
            key=lambda each: (not each["latency_only"], each["max_speedup"]),
        )
        content[key] = widest | {"by_model": models}
        failures = as_object(content.pop(FAILED, None))
        if failed is not None:
            failures.pop(failed, None)
        content[FAILED] = failures  # Last, where a reader of the file expects it.

    update_json(path, change)


def save_failure(path: Path, failed: str, failure: Mapping[str, Any]) -> None:
    """Write how a configuration failed; an earlier result of it stays."""
    message = without_secrets(str(failure["message"]))[:MAX_MESSAGE]

    def change(content: dict[str, Any]) -> None:
        failures = as_object(content.pop(FAILED, None))
        failures[failed] = dict(failure) | {"message": message}
        content[FAILED] = failures

    update_json(path, change)


def failures(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return everything that is stored of configurations that failed, by its key."""
    return {
        key: value
        for key, value in as_object(content.get(FAILED)).items()
        if isinstance(value, dict)
    }


def by_label(value: Any) -> dict[str, dict[str, Any]]:
    """Return label -> entry; what is none, edited or of another version, is passed over."""
    models = as_object(as_object(value).get("by_model"))
    return {label: each for label, each in models.items() if _is_entry(each)}


def _is_bound(value: Any) -> bool:
    entry = as_object(value)
    return isinstance(entry.get("latency_only"), bool) and are_numbers(entry.get("max_speedup"))


def _is_entry(value: Any) -> bool:
    """Tell whether a value is an entry as `entry_of` makes it, as far as it is read again."""
    entry = as_object(value)
    fastest = as_object(entry.get("measured_max"))
    feasible, evidence = entry.get("best_feasible"), entry.get("evidence")
    return (
        _is_bound(entry)
        and are_numbers(entry.get("measured_max_speedup"))
        and is_interval(fastest.get("speedup_interval"))
        and (feasible is None or _is_feasible(feasible))
        and isinstance(evidence, dict)
        and are_numbers(evidence.get("seconds", 0.0))
        and isinstance(entry.get("provenance") or {}, dict)
    )


def _is_feasible(value: Any) -> bool:
    feasible = as_object(value)
    return are_numbers(feasible.get("speedup"), feasible.get("score_loss")) and all(
        is_interval(feasible.get(name)) for name in ("speedup_interval", "score_loss_interval")
    )
