"""Every trial with its raw samples in one JSON file: `accel-search-trials/1`.

What `--trials_out` writes and `--replay` reads. Beside the format's own fields it holds what
a replay needs to be exact (`baseline_seconds_per_image`, `seconds`, …); a file without them
is read all the same.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from accel_search.errors import ConfigurationError
from accel_search.records import Candidate, Failure, Measurement, Trial, Workload
from accel_search.result_files import write_atomically
from accel_search.space import JointSpace

FORMAT = "accel-search-trials/1"


@dataclass(frozen=True)
class TrialsFile:
    """What such a file holds."""

    workload: Workload | None
    """None where the file does not give every field; then no two points are taken as one."""
    workload_fields: Mapping[str, Any]
    """The workload as written."""
    baseline: Measurement
    held_out_baseline: Measurement | None
    trials: tuple[Trial, ...]
    held_out: Mapping[Candidate, Measurement]
    """Confirmations on held-out prompts."""
    rivals: Mapping[int, Measurement]
    """Step count -> the bare pipeline with so many steps."""


def write_trials(
    path: Path,
    space: JointSpace,
    workload: Workload,
    baseline: Measurement,
    trials: Sequence[Trial],
    recall: Mapping[str, Measurement],
) -> None:
    """Write every trial with its raw samples.

    Args:
        path: The file; replaced at once. Compressed if its name ends in `.gz`.
        space: Names the points that coincide with each measured one.
        workload: What was measured.
        baseline: The bare pipeline's samples.
        trials: Measured and failed ones, in the order they were stored.
        recall: What the store remembers beside the trials, by name.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    content = {
        "format": FORMAT,
        "workload": asdict(workload),
        "baseline": asdict(baseline),
        "trials": [_written(trial, space) for trial in trials],
        "beside": {name: asdict(measurement) for name, measurement in recall.items()},
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        # Without the time of writing: the same trials make the same file.
        compressed = path.suffix == ".gz"
        write_atomically(path, gzip.compress(text.encode(), mtime=0) if compressed else text)
    except OSError as error:
        raise ConfigurationError(f"--trials_out {path}: {error.strerror}") from error


def _written(trial: Trial, space: JointSpace) -> dict[str, Any]:
    measured = asdict(trial.measurement) if trial.measurement else {}
    also = [point for point in space.coinciding(trial.candidate) if point != trial.candidate]
    return {
        "candidate": trial.candidate.as_dict(),
        "seconds_per_image": measured.pop("seconds_per_image", []),
        "scores": measured.pop("scores", []),
        "failure": asdict(trial.failure) if trial.failure else None,
        **measured,
        "coinciding": [point.as_dict() for point in also],
    }


def read_trials(path: Path) -> TrialsFile:
    """Read a file of trials.

    Raises:
        ConfigurationError: It cannot be read, is of another format, or lacks a field.
    """
    try:
        content = json.loads(
            gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        )
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise ConfigurationError(f"--replay {path}: cannot be read: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ConfigurationError(f"--replay {path}: format is {found!r}, expected {FORMAT!r}")
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"--replay {path}: not a valid {FORMAT} file: {type(error).__name__}: {error}"
        ) from error


def _parse(content: Mapping[str, Any]) -> TrialsFile:
    given = content["workload"]
    names = {each.name for each in fields(Workload)}
    workload = None
    if names <= set(given):
        values = {name: given[name] for name in names}
        values["attention_downsamples"] = tuple(values["attention_downsamples"])
        workload = Workload(**values)
    baseline = _baseline(content["baseline"], given)
    beside = content.get("beside", {})
    held_out = [each for name, each in beside.items() if name.startswith("baseline:held_out")]
    trials = tuple(_trial(each, baseline) for each in content["trials"])
    by_text = {str(trial.candidate): trial.candidate for trial in trials}
    prefixed = {
        name.partition(":")[::2]: Measurement.from_dict(value) for name, value in beside.items()
    }
    return TrialsFile(
        workload=workload,
        workload_fields=given,
        baseline=baseline,
        held_out_baseline=Measurement.from_dict(held_out[-1]) if held_out else None,
        trials=trials,
        held_out={
            by_text[text]: measurement
            for (kind, text), measurement in prefixed.items()
            if kind == "held_out" and text in by_text
        },
        rivals={
            int(text): measurement
            for (kind, text), measurement in prefixed.items()
            if kind == "steps"
        },
    )


def _baseline(given: Mapping[str, Any], workload: Mapping[str, Any]) -> Measurement:
    """Return the baseline; without pairs of its own, neighbouring samples are paired."""
    seconds = [float(each) for each in given["seconds_per_image"]]
    if not seconds or not given["scores"]:
        raise ValueError("the baseline has no samples")
    batch_size = int(given.get("batch_size", workload.get("batch_size", 1)))
    beside = given.get("baseline_seconds_per_image")
    if beside is None:
        # Sample 0 beside 1, 2 beside 3, …; of a single one it is only known that it is itself.
        half = len(seconds) // 2
        seconds, beside = (seconds[: 2 * half : 2], seconds[1::2]) if half else (seconds, seconds)
    charged = given.get("seconds", sum(given["seconds_per_image"]) * batch_size)
    return Measurement.from_dict(
        {
            **given,
            "seconds_per_image": seconds,
            "baseline_seconds_per_image": beside,
            "batch_size": batch_size,
            "seconds": charged,
        }
    )


def _trial(given: Mapping[str, Any], baseline: Measurement) -> Trial:
    """Return a trial; without a baseline of its own it is paired with the file's."""
    candidate = Candidate(given["candidate"])
    failure = given.get("failure")
    if failure is not None:
        kind = str(failure["kind"]) if isinstance(failure, dict) else str(failure)
        details = failure if isinstance(failure, dict) else {}
        message, seconds = details.get("message", kind), details.get("seconds", 0.0)
        return Trial(candidate, None, Failure(kind, str(message), float(seconds)))
    own = given["seconds_per_image"]
    beside = given.get("baseline_seconds_per_image")
    if beside is None:
        beside = baseline.seconds_per_image[: len(own)]
    charged = given.get("seconds", sum(own) * baseline.batch_size)
    measurement = Measurement.from_dict(
        {
            "batch_size": baseline.batch_size,
            **given,
            "baseline_seconds_per_image": beside,
            "seconds": charged,
        }
    )
    if not measurement.baseline_seconds_per_image or min(measurement.seconds_per_image) <= 0:
        raise ValueError(f"{candidate}: seconds_per_image holds no positive samples")
    # A race that was given up has fewer.
    if not 0 < len(measurement.scores) <= len(baseline.scores):
        raise ValueError(
            f"{candidate}: {len(measurement.scores)} scores, the baseline has "
            f"{len(baseline.scores)}"
        )
    return Trial(candidate, measurement)
