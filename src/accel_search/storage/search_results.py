"""`search_params.json`: the results of searches, which answer later ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_search.accelerators.computation import step_table
from accel_search.core.candidate import Value
from accel_search.core.workload import Provenance, SpaceSummary, Workload
from accel_search.settings import AFFECTING, UPPER_BOUND, Settings
from accel_search.storage import entries
from accel_search.storage.entries import SearchEntry, interval_of, rounded
from accel_search.storage.json_files import readable, update_json
from accel_search.storage.keys import parse_key, search_key
from accel_search.storage.typed import UNSET
from accel_search.storage.workloads import held, value_of, with_result

if TYPE_CHECKING:  # It loads SciPy, which applying a result does without.
    from accel_search.core.outcome import Outcome

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
            prompts_needed=needed if headline.verdict == "inconclusive" else UNSET,
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

    The entry of an earlier search of the very same is removed under the speedup that it reached: it
    is outdated, and a faster one would be taken in place of this one. All others are kept.
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
    written, identity = entry.as_dict(), _identity(entry)

    def is_replaced(stored: Any) -> bool:
        typed = entries_of(stored)
        return bool(typed) and _identity(typed[0]) == identity

    def change(content: dict[str, Any]) -> None:
        if replaced is not None:
            _remove_predecessors(content, replaced, is_replaced)
        for key in keys:
            content[key] = with_result(content.get(key), written, is_replaced)

    update_json(path, change)
    return keys


def _remove_predecessors(
    content: dict[str, Any], key: str, is_replaced: Callable[[Any], bool]
) -> None:
    """Remove the results of earlier searches for an upper bound that another takes the place of."""
    parts = parse_key(key)
    assert parts is not None
    for text in [other for other in content if other != key]:
        other = parse_key(text)
        if other is None or other._replace(goal=parts.goal) != parts:
            continue
        several = held(content[text])
        left = [each for each in several if not is_replaced(each)]
        if not left:
            del content[text]
        elif len(left) < len(several) and isinstance(left[-1], dict):
            content[text] = value_of(left)


def _identity(entry: SearchEntry) -> str:
    """Return all that an entry's figures depend on: two of one key that agree in it replace."""
    evidence = entry.evidence
    where = entry.where.identity()
    where.pop("measured_batch_size", None)  # A batch may be halved once, and not again.
    return json.dumps([where, evidence.goal, evidence.strategy, evidence.search], sort_keys=True)


def entries_of(value: Any, *, strict: bool = False) -> list[SearchEntry]:
    """Return the entries of a value of the file, the one that was written last at the end.

    Raises:
        Unreadable: With `strict`, an entry is corrupt; otherwise it is skipped.
    """
    return list(readable(dict(enumerate(held(value))), SearchEntry, strict=strict).values())


def search_identity(settings: Settings, values: Values) -> dict[str, Any]:
    """Return what was searched and how far, in which two equal upper bounds agree."""
    searched = [name for name, affected in AFFECTING.items() if affected == "search"]
    return {
        "values": values,
        "timing_pairs": settings.timing_pairs,
        **{name: getattr(settings, name) for name in searched},
    }
