"""What a result file holds, for `--list`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accel_search.cli.program import in_one_line
from accel_search.core.secrets import without_secrets
from accel_search.errors import ConfigurationError
from accel_search.report.format import counted, short
from accel_search.storage.json_files import Unreadable, as_type, load_json
from accel_search.storage.lookup import Result, expected, measured_of, results

SAMPLER = ("timestep_spacing", "prediction_type", "algorithm_type", "rescale_betas_zero_snr")
"""Options of a scheduler that are shown, and those that begin with `use_`."""


def stored_in(path: Path) -> list[Result]:
    """Return the results of a file, each once, in the order in which they were written.

    Raises:
        ConfigurationError: There is no such file, or it is corrupt.
    """
    if not path.exists():
        raise ConfigurationError(
            f"--list: {path}: no such file; accel-search writes it, and --output names another"
        )
    try:
        stored = list(results(as_type(load_json(path), dict[str, Any])))
    except Unreadable as error:
        raise ConfigurationError(f"--list: {path}: cannot be read: {error}") from error
    # A search for the fastest is under two keys: its own, and that of the speed reached.
    once = {f"{one.key._replace(goal='')} {one.entry}": one for one in reversed(stored)}
    return list(once.values())[::-1]


def listing(stored: Sequence[Result], path: Path) -> str:
    """Return a text with the results of each workload below what was measured."""
    workloads: dict[str, list[Result]] = {}
    for one in stored:
        workloads.setdefault(_workload(one), []).append(one)
    lines = [f"{path}: {counted(len(stored), 'result')}"]
    for workload, several in workloads.items():
        lines += ["", workload, *(f"  {line}" for one in several for line in _result(one))]
    return "\n".join(in_one_line(without_secrets(line)) for line in lines)


def as_json(stored: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the results as plain JSON types: the parts of the key, and the entry."""
    return [one.key._asdict() | one.entry.as_dict() for one in stored]


def _workload(stored: Result) -> str:
    where = stored.entry.where
    parts = [
        *measured_of(stored),
        f"guidance {where.guidance_scale:g}",
        where.dtype,
        *_sampler(where.scheduler or {}),
        f"weights {where.weights}" if where.weights else "",
        where.device_name,
    ]
    return ", ".join(part for part in parts if part)


def _sampler(options: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}={value}"
        for name, value in options.items()
        if name in SAMPLER or name.startswith("use_")
    ]


def _result(stored: Result) -> list[str]:
    key, entry = stored.key, stored.entry
    goal = entry.evidence.goal
    required = f", {goal:g}x required" if isinstance(goal, float | int) else ""
    return [
        f"{short(entry.candidate)}: {expected(stored)}",
        f"  of {', '.join(key.targets)} within {100 * key.req_score_loss:g} %{required}; "
        f"{entry.where.date[:10] or 'date unknown'}",
    ]
