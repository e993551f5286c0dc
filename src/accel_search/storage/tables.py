"""Results as pandas tables for notebooks: one row per trial, or per stored entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_search.core.candidate import Candidate
from accel_search.core.packages import check_packages
from accel_search.core.workload import Provenance
from accel_search.errors import ConfigurationError, LoadError
from accel_search.settings import Settings
from accel_search.storage.entries import (
    BoundEntry,
    Feasible,
    SearchEntry,
    SearchEvidence,
    estimate_of,
)
from accel_search.storage.json_files import Unreadable, as_type, load_json
from accel_search.storage.keys import Key
from accel_search.storage.lookup import bounds, results
from accel_search.storage.speedup_bounds import failures, is_bounds

if TYPE_CHECKING:
    import pandas as pd

    from accel_search.core.intervals import Estimate
    from accel_search.storage.run import Row, Run


def load_trials(
    source: str | Path = "accel_search_runs",
    study: str | None = None,
    *,
    req_score_loss: float = Settings.req_score_loss,
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
        mean similarity, the loss over the worst tenth of prompts (`tail_loss`), memory, the
        seconds it took, and `failure`. What is not known is missing (NA). `attrs` holds the
        workload, the bound and where it was read from.

    Raises:
        ConfigurationError: There is no such study, or nothing in it.
        LoadError: It cannot be read as what it should be.
    """
    check_packages("load_trials")
    from accel_search.storage.run_reader import read_run

    text = str(source)
    if "://" in text:
        run = read_run(Path(), study, req_score_loss, text)
    else:
        path = Path(source)
        # The database is the folder's; the record of the run lies beside it.
        is_database = path.suffix == ".db" and path.is_file()
        storage = f"sqlite:///{path}" if is_database else None
        if not path.exists():
            raise ConfigurationError(
                f"{path}: no such file or folder; give the --run_dir of a search, a --trials_out "
                "file, or an Optuna storage URL"
            )
        run = read_run(path.parent if is_database else path, study, req_score_loss, storage)
    return _table(run)


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
    check_packages("load_results", "pandas")
    import pandas as pd

    file = Path(path)
    if not file.exists():
        raise ConfigurationError(f"{path}: no such file; accel-search and accel-explore write it")
    try:
        content = as_type(load_json(file), dict[str, Any])
        rows = [*_results(content, is_bounds(content))]
    except Unreadable as error:
        raise LoadError(f"{path}: cannot be read as a result file: {error}") from error
    if not rows:
        raise ConfigurationError(f"{path}: holds no result; run accel-search or accel-explore")
    return pd.DataFrame(rows).convert_dtypes()


def _table(run: Run) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame([_row(row, run) for row in run.rows])
    # Whole numbers stay whole where a parameter is of another accelerator, and missing.
    table = table.convert_dtypes()
    table.attrs = {
        "origin": run.origin,
        "study": run.record.study or None,
        "workload": run.record.workload.known(),
        "req_score_loss": run.goal.max_score_loss,
        "is_confirmed": run.is_confirmed,
    }
    return table


def _row(row: Row, run: Run) -> dict[str, Any]:
    measured = row.measurement
    own = () if measured is None else measured.seconds_per_image
    return {
        **_params(row.candidate),
        **_ends("speedup", row.speedup),
        **_ends("score_loss", row.score_loss),
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
        "tail_loss": row.tail_loss,
        "peak_memory_bytes": None if measured is None else measured.peak_memory_bytes,
        "seconds": row.seconds,
        "failure": row.failure,
    }


def _results(content: Mapping[str, Any], of_bounds: bool) -> Iterator[dict[str, Any]]:
    if not of_bounds:
        for stored in results(content, strict=True):
            yield _key(stored.key) | _search_row(stored.entry)
        return
    for bound in bounds(content, strict=True):
        yield _key(bound.key) | _bound_row(bound.entry)
    for configuration, failure in failures(content, strict=True).items():
        yield {
            "model": configuration.model,
            "scheduler": configuration.sched,
            "steps": configuration.steps,
            "targets": configuration.method,
            "failure": f"{failure.error}: {failure.message}",
            "date": failure.timestamp,
        }


def _key(key: Key) -> dict[str, Any]:
    parts = {"steps": int(key.steps), "goal": str(key.goal), "targets": "+".join(key.targets)}
    return key._asdict() | parts


def _search_row(entry: SearchEntry) -> dict[str, Any]:
    evidence = entry.evidence
    held_out, in_search = evidence.held_out, evidence.in_search
    return {
        **_where(entry.where),
        **_best(entry, evidence),
        "held_out_speedup": held_out and held_out.speedup,
        "held_out_score_loss": held_out and held_out.score_loss,
        "in_search_speedup": in_search and in_search.speedup,
        "in_search_score_loss": in_search and in_search.score_loss,
        "seconds": evidence.seconds,
    }


def _bound_row(entry: BoundEntry) -> dict[str, Any]:
    best, fastest = entry.best_feasible, entry.measured_max_speedup
    return {
        **_where(entry.where),
        "model": entry.model,
        "latency_only": entry.latency_only,
        "max_speedup": entry.max_speedup,
        **_ends("measured_max_speedup", estimate_of(fastest, entry.measured_max.speedup_interval)),
        **({} if best is None else _best(best, best)),
        "seconds": entry.evidence.seconds,
    }


def _where(where: Provenance) -> dict[str, Any]:
    return {
        "model": where.model_id or None,
        "device": where.device_name or None,
        "date": where.date or None,
    }


def _best(entry: SearchEntry | Feasible, evidence: SearchEvidence | Feasible) -> dict[str, Any]:
    return {
        **_ends("speedup", estimate_of(entry.speedup, evidence.speedup_interval)),
        **_ends("score_loss", estimate_of(entry.score_loss, evidence.score_loss_interval)),
        "tail_loss": evidence.tail_loss,
        "range_loss": evidence.range_loss,
        "verdict": evidence.verdict or None,
        **_params(Candidate(entry.settings)),
    }


def _params(candidate: Candidate) -> dict[str, Any]:
    return {
        f"{name}.{key}": value
        for name, values in candidate.items()
        for key, value in values.items()
    }


def _ends(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    ends = estimate.as_list() if estimate is not None and estimate.is_bounded else (None, None)
    return {
        name: estimate.value if estimate else None,
        f"{name}_low": ends[0],
        f"{name}_high": ends[1],
    }


def _mean(values: tuple[float, ...]) -> float | None:
    return sum(values) / len(values) if values else None
