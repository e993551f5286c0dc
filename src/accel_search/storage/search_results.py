"""`search_params.json`: the results of searches, which answer later ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import UNSET

from accel_search.accelerators.computation import step_table
from accel_search.core.candidate import Value
from accel_search.core.intervals import Verdict
from accel_search.core.outcome import Outcome
from accel_search.core.workload import Provenance, SpaceSummary, Workload
from accel_search.settings import AFFECTING, UPPER_BOUND, Settings
from accel_search.storage import entries
from accel_search.storage.entries import SearchEntry, interval_of, rounded
from accel_search.storage.json_files import as_object, readable, update_json
from accel_search.storage.keys import parse_key, search_key

Values = Mapping[str, Mapping[str, Sequence[Value]]]
"""Accelerator -> parameter -> values searched, as plain JSON types."""


def entry_of(
    outcome: Outcome,
    settings: Settings,
    space: SpaceSummary,
    workload: Workload,
    provenance: Provenance | None,
    study: str,
    no_gain: str | None,
) -> SearchEntry:
    """Return the entry of a search that found a winner.

    Args:
        outcome: Of the search.
        settings: The options.
        space: The space searched.
        workload: What was to be made faster.
        provenance: Where and with what it was measured; None for recorded trials.
        study: Name of the trials' study.
        no_gain: Explains targets that gain nothing, from `explain.of_search`.
    """
    winner, headline = outcome.winner, outcome.headline
    assert winner is not None and winner.assessment is not None and winner.trial.measurement
    assert headline is not None
    measurement = winner.trial.measurement
    where = None
    if provenance is not None:
        known = provenance.as_dict() | {"batch_size": settings.batch_size}
        where = entries.SearchProvenance(**known, measured_batch_size=measurement.batch_size)
    measured = entries.figures(headline)
    needed = measured.pop("prompts_needed")
    return SearchEntry(
        speedup=measured.pop("speedup"),
        score_loss=measured.pop("score_loss"),
        settings=winner.trial.candidate.as_dict(),
        no_gain=no_gain,
        evidence=entries.SearchEvidence(
            goal=settings.goal_key,
            req_score_loss=settings.req_score_loss,
            **measured,
            held_out=None if outcome.held_out is None else entries.Figures.of(outcome.held_out),
            chance_within_bound=None if outcome.chance is None else rounded(outcome.chance),
            in_search=entries.Figures.of(winner.assessment),
            noise_floor=rounded(headline.noise_floor),
            noise_note=outcome.noise_note,
            fewer_steps=entries.fewer_steps(outcome, settings.goal),
            without=_without(outcome),
            step_table=step_table(measurement, winner.trial.candidate, workload),
            baseline_score=_mean(outcome.baseline.scores),
            shuffled_score=_mean(outcome.baseline.shuffled_scores),
            refuted_on_held_out=tuple(candidate.as_dict() for candidate in outcome.refuted),
            strategy=settings.strategy,
            search=search_identity(settings, space.values),
            space_points=space.points,
            space_distinct=space.distinct,
            trials_measured=sum(trial.assessment is not None for trial in outcome.trials),
            trials_failed=sum(trial.assessment is None for trial in outcome.trials),
            trials_resumed=outcome.resumed,
            settled=outcome.settled,
            could_win=outcome.could_win,
            stopped=outcome.stopped,
            seconds=round(outcome.seconds, 1),
            peak_memory_bytes=measurement.peak_memory_bytes,
            study=study,
            prompts_needed=needed if headline.verdict is Verdict.INCONCLUSIVE else UNSET,
        ),
        provenance=where,
    )


def _without(outcome: Outcome) -> dict[str, entries.Without]:
    """Return the winner's speedup without each of its targets, where that was timed."""
    return {
        ablation.target: entries.Without(
            speedup=rounded(ablation.assessment.speedup.value),
            speedup_interval=interval_of(ablation.assessment.speedup),
        )
        for ablation in outcome.ablations
    }


def _mean(scores: Sequence[float]) -> float | None:
    return rounded(sum(scores) / len(scores)) if scores else None


def save(path: Path, workload: Workload, settings: Settings, entry: SearchEntry) -> list[str]:
    """Write a finished search's entry under its keys, and return them.

    A search for the upper bound is written under that goal and under the speedup reached, one for a
    required speedup, which stopped early, under the speedup reached only.
    """
    key = search_key(workload, UPPER_BOUND, settings.req_score_loss, settings.targets)
    if settings.req_speedup is None:
        return save_winner(path, key, entry)
    return _write(path, [_at_speedup(key, entry)], entry)


def save_winner(path: Path, key: str, entry: SearchEntry) -> list[str]:
    """Write the entry of a search for the upper bound under its two keys, and return them.

    Entries that earlier searches of the same left under the speedups they reached are removed:
    they are outdated, and a faster one would be taken in place of this one. Those of another device
    are kept.
    """
    return _write(path, [key, _at_speedup(key, entry)], entry, replaced=key)


def _at_speedup(text: str, entry: SearchEntry) -> str:
    """Return a search's key with the speedup reached as its goal."""
    key = parse_key(text)
    assert key is not None
    return str(key._replace(goal=round(float(entry.speedup), 2)))


def _write(
    path: Path, keys: list[str], entry: SearchEntry, replaced: str | None = None
) -> list[str]:
    written = entry.as_dict()

    def change(content: dict[str, Any]) -> None:
        if replaced is not None:
            _remove_predecessors(content, replaced, entry)
        for key in keys:
            models = _stored_under(content.get(key)) | {entry.model_id: written}
            content[key] = _value(written, models)

    update_json(path, change)
    return keys


def _value(flat: Mapping[str, Any], models: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value of the file; SD1.5 and SD2.1 share a pipeline class, and so a key."""
    return dict(flat) | ({"by_model": dict(models)} if len(models) > 1 else {})


def _remove_predecessors(content: dict[str, Any], key: str, entry: SearchEntry) -> None:
    """Remove the entries of earlier searches for an upper bound that an entry of it replaces."""
    parts = parse_key(key)
    assert parts is not None
    for text in [other for other in content if other != key]:
        other = parse_key(text)
        if other is None or other._replace(goal=parts.goal) != parts:
            continue
        models = _stored_under(content[text])
        typed = readable(models, SearchEntry)
        gone = {name for name, stored in typed.items() if _is_predecessor(stored, entry)}
        left = {name: kept for name, kept in models.items() if name not in gone}
        sound = [name for name in typed if name not in gone]
        if gone and sound:
            content[text] = _value(left[sound[-1]], left)
        elif models and not left:
            del content[text]


def _is_predecessor(stored: SearchEntry, entry: SearchEntry) -> bool:
    """Return whether an entry is of an earlier search for the same bound, on the same device."""
    return stored.evidence.goal == UPPER_BOUND and (stored.model_id, stored.device) == (
        entry.model_id,
        entry.device,
    )


def _stored_under(value: Any) -> dict[str, Any]:
    """Return the entries of a value, by model; under `by_model` unreadable ones, too."""
    models = as_object(as_object(value).get("by_model"))
    return dict(models) or dict.fromkeys(by_model(value), value)


def by_model(value: Any, *, strict: bool = False) -> dict[str, SearchEntry]:
    """Return the entries of a value of the file, by model.

    Raises:
        Unreadable: With `strict`, an entry is corrupt; otherwise it is skipped.
    """
    models = as_object(as_object(value).get("by_model")) or {"": value}
    typed = readable(models, SearchEntry, strict=strict).values()
    return {entry.model_id: entry for entry in typed}


def search_identity(settings: Settings, values: Values) -> dict[str, Any]:
    """Return what was searched and how far, in which two equal upper bounds agree."""
    searched = [name for name, affected in AFFECTING.items() if affected == "search"]
    return {
        "values": values,
        "timing_pairs": settings.timing_pairs,
        **{name: getattr(settings, name) for name in searched},
    }
