"""Results as pandas tables, for notebooks: one row a trial, or one row a stored result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate
from accel_search.errors import ConfigurationError, LoadError
from accel_search.storage.keys import Configuration, parse_key
from accel_search.storage.run import DAMAGED, DEFAULT_BOUND, Row, Run, damaged
from accel_search.storage.run_reader import read_run
from accel_search.storage.speedup_bounds import FAILED

if TYPE_CHECKING:
    import pandas as pd

_KEY = ("pipeline_class", "scheduler_class", "steps", "goal", "req_score_loss", "targets")


def load_trials(
    source: str | Path = "accel_search_runs",
    study: str | None = None,
    *,
    req_score_loss: float = DEFAULT_BOUND,
) -> pd.DataFrame:
    """Return a search's trials as a table, finished or not, with the figures of its report.

    Args:
        source: A run folder, its `trials.db`, a file that `--trials_out` wrote, or an Optuna
            storage URL such as `postgresql://host/searches`.
        study: Which study of a folder or storage; None is the one that ended last.
        req_score_loss: Loss of score that is allowed, a fraction, where the run does not say.

    Returns:
        One row a distinct candidate, in the order of measuring: a column a parameter, named
        `deepcache.cache_interval` and so on; `speedup` and `score_loss` (a fraction) with their
        95 % intervals in `…_low` and `…_high`; `verdict` (`pass`, `fail`, `inconclusive`; `open`
        or `dropped` at an early look; `timed`; `failed`); `is_winner`; `prompts`; seconds an image,
        mean likeness, memory, the seconds it took, and `failure`. What is not known is missing
        (NA). `attrs` holds the workload, the bound and where it was read from.

    Raises:
        ConfigurationError: There is no such study, or nothing in it.
        LoadError: It cannot be read as what it should be.
    """
    text = str(source)
    if "://" in text:
        run = read_run(Path(), study, req_score_loss, text)
    else:
        path = Path(source)
        # The database is the folder's; its story lies beside it.
        is_database = path.suffix == ".db" and path.is_file()
        storage = f"sqlite:///{path}" if is_database else None
        if not path.exists():
            raise ConfigurationError(
                f"{path}: no such file or folder; give the --run_dir of a search, a --trials_out "
                "file, or an Optuna storage URL"
            )
        run = read_run(path.parent if is_database else path, study, req_score_loss, storage)
    try:
        return _table(run)
    except DAMAGED as error:
        raise damaged(run, error) from error


def load_results(path: str | Path = "search_params.json") -> pd.DataFrame:
    """Return what a result file holds as a table: of `search_params.json` or `speedup_bounds.json`.

    Args:
        path: The file.

    Returns:
        One row a stored result: the parts of its key, `model`, `speedup` and `score_loss` with
        their 95 % intervals, the settings' parameters, `device`, `date`. Of a file of bounds
        `speedup` is that of the best settings within the bound on the loss, with
        `measured_max_speedup` and `max_speedup` beside it; a failed configuration has a row with
        `failure`.

    Raises:
        ConfigurationError: There is no such file, or nothing in it.
        LoadError: It cannot be read as what it should be.
    """
    import pandas as pd

    file = Path(path)
    if not file.exists():
        raise ConfigurationError(f"{path}: no such file; accel-search and accel-explore write it")
    try:
        rows = list(_results(json.loads(file.read_bytes())))
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError
    ) as error:  # fmt: skip
        raise LoadError(f"{path}: cannot be read as a result file: {error!r}") from error
    if not rows:
        raise ConfigurationError(f"{path}: holds no result; run accel-search or accel-explore")
    return pd.DataFrame(rows).convert_dtypes()


def _table(run: Run) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame([_row(each, run) for each in run.rows])
    # Whole numbers stay whole where a parameter is of another accelerator, and missing.
    table = table.convert_dtypes()
    table.attrs = {
        "origin": run.origin,
        "study": run.story.get("study"),
        "workload": dict(run.workload),
        "req_score_loss": run.goal.max_score_loss,
        "is_confirmed": run.is_confirmed,
    }
    return table


def _row(row: Row, run: Run) -> dict[str, Any]:
    measured = row.measurement
    own = () if measured is None else measured.seconds_per_image
    return {
        **_params(row.candidate),
        **_ends("speedup", _figures(row.speedup)),
        **_ends("score_loss", _figures(row.score_loss)),
        "verdict": row.state,
        "is_winner": run.winner is not None and row.candidate == run.winner.candidate,
        "prompts": row.prompts,
        "seconds_per_image": _mean(own),
        "baseline_seconds_per_image": _mean(
            () if measured is None else measured.baseline_seconds_per_image
        ),
        "pairs": 0 if measured is None else len(measured.baseline_seconds_per_image),
        "batch_size": None if measured is None else measured.batch_size,
        "psnr": None if measured is None else _mean(measured.psnr),
        "ssim": None if measured is None else _mean(measured.ssim),
        "peak_memory_bytes": None if measured is None else measured.peak_memory_bytes,
        "seconds": row.seconds,
        "failure": row.failure,
    }


def _results(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for text, value in content.items():
        key = parse_key(text)
        if key is None:
            continue
        parts: dict[str, Any] = dict(zip(_KEY, key, strict=True))
        parts |= {"steps": int(key[2]), "goal": str(key[3]), "targets": "+".join(key[5])}
        for entry in (value.get("by_model") or {"": value}).values():
            yield parts | (_bound(entry) if "max_speedup" in entry else _found(entry))
    for name, failure in (content.get(FAILED) or {}).items():
        configuration = Configuration.from_failed_key(name)
        if configuration is None:
            continue
        yield {
            "model": configuration.model,
            "scheduler": configuration.sched,
            "steps": configuration.steps,
            "targets": configuration.method,
            "failure": f"{failure['error']}: {failure.get('message', '')}",
            "date": failure.get("timestamp"),
        }


def _found(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an entry of `search_params.json`."""
    evidence = entry.get("evidence") or {}
    held_out = evidence.get("held_out") or {}
    return {
        **_where(entry),
        **_best(entry, evidence),
        "held_out_speedup": held_out.get("speedup"),
        "held_out_score_loss": held_out.get("score_loss"),
        "seconds": evidence.get("seconds"),
    }


def _bound(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an entry of `speedup_bounds.json`."""
    best = entry.get("best_feasible")
    return {
        **_where(entry),
        "model": entry.get("model"),
        "latency_only": entry.get("latency_only"),
        "max_speedup": entry["max_speedup"],
        **_ends(
            "measured_max_speedup",
            [entry["measured_max_speedup"], *entry["measured_max"]["speedup_interval"]],
        ),
        **({} if best is None else _best(best, best)),
        "seconds": (entry.get("evidence") or {}).get("seconds"),
    }


def _where(entry: Mapping[str, Any]) -> dict[str, Any]:
    where = entry.get("provenance") or {}
    return {
        "model": where.get("model_id"),
        "device": where.get("device_name"),
        "date": where.get("date"),
    }


def _best(entry: Mapping[str, Any], intervals: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("speedup", "score_loss"):
        interval = intervals.get(f"{name}_interval") or [None, None]
        found |= _ends(name, [entry[name], *interval])
    return found | {"verdict": intervals.get("verdict")} | _params(Candidate(entry["settings"]))


def _params(candidate: Candidate) -> dict[str, Any]:
    return {
        f"{name}.{key}": value
        for name, values in candidate.items()
        for key, value in values.items()
    }


def _ends(name: str, figures: list[Any] | None) -> dict[str, Any]:
    value, low, high = figures or (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _figures(estimate: Estimate | None) -> list[Any] | None:
    if estimate is None:
        return None
    return [estimate.value, *(estimate.as_list() if estimate.is_bounded else (None, None))]


def _mean(values: tuple[float, ...]) -> float | None:
    return sum(values) / len(values) if values else None
