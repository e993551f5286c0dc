"""`search_params.json`: what a finished search writes and a later one is answered from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accel_search.core.assessment import Assessment
from accel_search.core.candidate import Value
from accel_search.core.intervals import Estimate, Verdict, prompts_needed
from accel_search.core.outcome import Outcome
from accel_search.core.workload import Provenance, SpaceSummary, Workload
from accel_search.settings import AFFECTING, UPPER_BOUND, Settings
from accel_search.storage.json_files import (
    are_numbers,
    as_object,
    is_interval,
    part_of,
    update_json,
)
from accel_search.storage.keys import parse_key, search_key

Values = Mapping[str, Mapping[str, Sequence[Value]]]
"""Accelerator -> parameter -> values searched, as plain JSON types."""


def entry_of(
    outcome: Outcome,
    settings: Settings,
    space: SpaceSummary,
    provenance: Provenance | None,
    study: str,
    no_gain: str | None,
) -> dict[str, Any]:
    """Return the value that stands in the result file for a search that found a winner.

    Args:
        outcome: What it found.
        settings: What was asked.
        space: What was searched.
        provenance: Where and with what; None of recorded trials.
        study: Name of the trials' study.
        no_gain: What is to be said of targets that gain nothing, from `explain.of_search`.
    """
    winner = outcome.winner
    assert winner is not None and winner.assessment is not None and winner.trial.measurement
    assessment = winner.assessment
    rivals = [
        {
            "steps": rival.steps,
            **figures(rival.assessment),
            "does_as_well": rival.rivals(winner, outcome.held_out),
        }
        for rival in outcome.rivals
    ]
    evidence: dict[str, Any] = {
        "goal": settings.goal_key,
        "req_score_loss": settings.req_score_loss,
        **_intervals(assessment),
        "held_out": None if outcome.held_out is None else figures(outcome.held_out),
        "noise_floor": rounded(assessment.noise_floor),
        "fewer_steps": rivals,
        "without": {
            each.target: {
                "speedup": rounded(each.assessment.speedup.value),
                "speedup_interval": interval_of(each.assessment.speedup),
            }
            for each in outcome.ablations
        },
        "baseline_score": rounded(sum(outcome.baseline.scores) / len(outcome.baseline.scores)),
        "refuted_on_held_out": [each.as_dict() for each in outcome.refuted],
        "strategy": settings.strategy,
        "search": search_identity(settings, space.values),
        "space_points": space.points,
        "space_distinct": space.distinct,
        "trials_measured": sum(each.assessment is not None for each in outcome.trials),
        "trials_failed": sum(each.assessment is None for each in outcome.trials),
        "trials_resumed": outcome.resumed,
        "settled": outcome.settled,
        "could_win": outcome.could_win,
        "stopped": outcome.stopped,
        "seconds": round(outcome.seconds, 1),
        "peak_memory_bytes": winner.trial.measurement.peak_memory_bytes,
        "study": study,
    }
    if assessment.verdict is Verdict.INCONCLUSIVE:
        evidence["prompts_needed"] = prompts_needed(
            outcome.baseline.scores, winner.trial.measurement.scores, settings.req_score_loss
        )
    return {
        "speedup": rounded(assessment.speedup.value),
        "score_loss": rounded(assessment.score_loss.value),
        **winner.trial.candidate.flat(),
        "settings": winner.trial.candidate.as_dict(),
        "no_gain": no_gain,
        "evidence": evidence,
        "provenance": None
        if provenance is None
        # A batch that did not fit was halved, and will be again: what was asked for tells whether
        # a later search is the same.
        else provenance.as_dict()
        | {
            "batch_size": settings.batch_size,
            "measured_batch_size": winner.trial.measurement.batch_size,
        },
    }


def save(path: Path, workload: Workload, settings: Settings, entry: Mapping[str, Any]) -> list[str]:
    """Write a finished search's entry under its keys, and return them.

    A search for the upper bound is written under that goal and under the speedup reached; one
    for a required speedup stopped early, so it is written under the speedup reached alone.
    """
    key = search_key(workload, UPPER_BOUND, settings.req_score_loss, settings.targets)
    if settings.req_speedup is None:
        return save_winner(path, key, entry)
    return _write(path, [_at_speedup(key, entry)], entry)


def save_winner(path: Path, key: str, entry: Mapping[str, Any]) -> list[str]:
    """Write the entry of a search for the upper bound under its two keys, and return them.

    What earlier searches of the same left under the speedups they reached is taken out: it is
    no result any more, and where it claims more it would be taken in this one's place. That of
    another device stays, since it is another result.

    Args:
        path: The file.
        key: The search's key, its goal `UPPER_BOUND`.
        entry: From `entry_of`.
    """
    return _write(path, [key, _at_speedup(key, entry)], entry, replaced=key)


def _at_speedup(key: str, entry: Mapping[str, Any]) -> str:
    """Return a search's key with the speedup reached in place of its goal."""
    parts = parse_key(key)
    assert parts is not None
    return str((*parts[:3], round(float(entry["speedup"]), 2), *parts[4:]))


def _write(
    path: Path, keys: list[str], entry: Mapping[str, Any], replaced: str | None = None
) -> list[str]:
    def change(content: dict[str, Any]) -> None:
        if replaced is not None:
            _take_out_predecessors(content, replaced, entry)
        for key in keys:
            models = _stored_under(content.get(key)) | {model_of(entry): dict(entry)}
            content[key] = _value(entry, models)

    update_json(path, change)
    return keys


def _value(flat: Mapping[str, Any], models: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value of the file: a key names a pipeline class, and SD1.5 and SD2.1 share one."""
    return dict(flat) | ({"by_model": dict(models)} if len(models) > 1 else {})


def _take_out_predecessors(content: dict[str, Any], key: str, entry: Mapping[str, Any]) -> None:
    """Take out what earlier searches for an upper bound found that an entry of it replaces."""
    parts = parse_key(key)
    assert parts is not None
    for text in [each for each in content if each != key and _is_same_but_goal(each, parts)]:
        models = _stored_under(content[text])
        left = {model: each for model, each in models.items() if not _is_predecessor(each, entry)}
        readable = [each for each in left.values() if _is_entry(each)]
        if readable and len(left) < len(models):
            content[text] = _value(readable[-1], left)
        elif models and not left:
            del content[text]


def _is_same_but_goal(text: str, parts: tuple[Any, ...]) -> bool:
    key = parse_key(text)
    return key is not None and (key[:3], key[4:]) == (parts[:3], parts[4:])


def _is_predecessor(value: Any, entry: Mapping[str, Any]) -> bool:
    """Tell whether an entry is of an earlier search for the same upper bound, on this device."""
    return (
        _is_entry(value)
        and part_of(value, "evidence").get("goal") == UPPER_BOUND
        and model_of(value) == model_of(entry)
        and device_of(value) == device_of(entry)
    )


def _stored_under(value: Any) -> dict[str, Any]:
    """Return what a value of the file holds, by model; what is unreadable is kept, too."""
    models = as_object(as_object(value).get("by_model"))
    return dict(models) or ({model_of(value): value} if _is_entry(value) else {})


def by_model(value: Any) -> dict[str, dict[str, Any]]:
    """Return the entries that a value of the file holds, by the model that each is of.

    What is none, since it was edited or is of another version, is passed over.
    """
    value = as_object(value)
    models = as_object(value.get("by_model")) or {"": value}
    entries = [each for each in models.values() if _is_entry(each)]
    return {model_of(each): each for each in entries}


def _is_entry(value: Any) -> bool:
    """Tell whether a value is an entry as `entry_of` makes it, as far as it is read again."""
    entry = as_object(value)
    settings, evidence = as_object(entry.get("settings")), entry.get("evidence", {})
    return (
        are_numbers(entry.get("speedup"), entry.get("score_loss", 0.0))
        and entry["speedup"] > 0
        and bool(settings)
        and all(
            isinstance(params, dict) and are_numbers(*params.values())
            for params in settings.values()
        )
        and isinstance(evidence, dict)
        and isinstance(evidence.get("search", {}), dict)
        and is_interval(evidence.get("score_loss_interval", [0, 0]))
        and isinstance(entry.get("provenance") or {}, dict)
    )


def model_of(entry: Mapping[str, Any]) -> str:
    """Return the hub id or folder that an entry is of; empty where it does not say."""
    return str(part_of(entry, "provenance").get("model_id", ""))


def device_of(entry: Mapping[str, Any]) -> str:
    """Return the device that an entry was measured on; empty where it does not say."""
    return str(part_of(entry, "provenance").get("device_name", ""))


def search_identity(settings: Settings, values: Values) -> dict[str, Any]:
    """Return what was searched and how far: two upper bounds that differ in it are not one."""
    searched = [name for name, affected in AFFECTING.items() if affected == "search"]
    return {
        "values": values,
        "timing_pairs": settings.timing_pairs,
        **{name: getattr(settings, name) for name in searched},
    }


def figures(assessment: Assessment) -> dict[str, Any]:
    """Return an assessment as the result files hold it."""
    return {
        "speedup": rounded(assessment.speedup.value),
        "score_loss": rounded(assessment.score_loss.value),
        **_intervals(assessment),
    }


def _intervals(assessment: Assessment) -> dict[str, Any]:
    return {
        "speedup_interval": interval_of(assessment.speedup),
        "score_loss_interval": interval_of(assessment.score_loss),
        "verdict": str(assessment.verdict),
        "prompts": assessment.prompts,
    }


def interval_of(estimate: Estimate) -> list[float] | None:
    """Return `[low, high]` as the result files hold it; None where it is unknown."""
    return [rounded(end) for end in estimate.as_list()] if estimate.is_bounded else None


def rounded(value: float) -> float:
    """Round to five places: more than any interval here is worth, and short to read."""
    return round(float(value), 5)
