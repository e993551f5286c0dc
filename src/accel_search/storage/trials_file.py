"""Every trial with its raw samples in one JSON file: `accel-search-trials/1`.

What `--trials_out` writes and `--replay` reads. Beside the format's own fields it holds what
a replay needs to be exact (`baseline_seconds_per_image`, `seconds`, …); a file without them
is read all the same.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from accel_search.accelerators import all_accelerators
from accel_search.accelerators.compose import check_params
from accel_search.core import extras
from accel_search.core.candidate import Candidate
from accel_search.core.trial import Failure, Measurement, Trial
from accel_search.core.workload import Workload
from accel_search.errors import ConfigurationError, first_line
from accel_search.storage.entries import Params, StoredWorkload
from accel_search.storage.json_files import Unreadable, as_type, load_json, write_atomically

FORMAT = "accel-search-trials/1"


@dataclass(frozen=True)
class TrialsFile:
    """What such a file holds."""

    workload: Workload | None
    """None where the file does not give every field; then no two points are taken as one."""
    given: StoredWorkload
    """The workload as far as the file gives it."""
    baseline: Measurement
    held_out_baseline: Measurement | None
    trials: tuple[Trial, ...]
    held_out: Mapping[Candidate, Measurement]
    """Confirmations on held-out prompts."""
    rivals: Mapping[int, Measurement]
    """Step count -> the bare pipeline with so many steps."""


def write_trials(
    path: Path,
    coinciding: Callable[[Candidate], Sequence[Candidate]],
    workload: Workload,
    baseline: Measurement,
    trials: Sequence[Trial],
    recall: Mapping[str, Measurement],
) -> None:
    """Write every trial with its raw samples.

    Args:
        path: The file; replaced at once. Compressed if its name ends in `.gz`.
        coinciding: Returns every point that is the same computation as a measured one.
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
        "trials": [_written(trial, coinciding) for trial in trials],
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


def _written(
    trial: Trial, coinciding: Callable[[Candidate], Sequence[Candidate]]
) -> dict[str, Any]:
    measured = asdict(trial.measurement) if trial.measurement else {}
    also = [point for point in coinciding(trial.candidate) if point != trial.candidate]
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
        content = load_json(path)
    except Unreadable as error:
        raise ConfigurationError(f"--replay {path}: cannot be read: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ConfigurationError(f"--replay {path}: format is {found!r}, expected {FORMAT!r}")
    try:
        return _parse(content)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        ConfigurationError,
    ) as error:
        raise ConfigurationError(
            f"--replay {path}: not a valid {FORMAT} file: {first_line(error)}"
        ) from error


def _parse(content: Mapping[str, Any]) -> TrialsFile:
    given = as_type(content["workload"], StoredWorkload)
    is_whole = {option.name for option in fields(Workload)} <= set(content["workload"])
    baseline = _baseline(content["baseline"], given)
    beside = content.get("beside", {})
    held_out = [each for name, each in beside.items() if extras.is_baseline(name, "held_out")]
    trials = tuple(_trial(each, baseline) for each in content["trials"])
    by_text = {str(trial.candidate): trial.candidate for trial in trials}
    prefixed = {
        extras.parse(name): _checked(
            Measurement.from_dict(value), name, is_paired=not extras.is_baseline(name)
        )
        for name, value in beside.items()
        if value["scores"]  # A part without prompts has no samples.
    }
    return TrialsFile(
        workload=given if is_whole else None,
        given=given,
        baseline=baseline,
        held_out_baseline=_checked(Measurement.from_dict(held_out[-1]), "held out", is_paired=False)
        if held_out and held_out[-1]["scores"]
        else None,
        trials=trials,
        held_out={
            by_text[text]: measurement
            for (kind, text), measurement in prefixed.items()
            if kind == extras.Kind.HELD_OUT and text in by_text
        },
        rivals={
            int(text): measurement
            for (kind, text), measurement in prefixed.items()
            if kind == extras.Kind.STEPS
        },
    )


def _checked(measured: Measurement, name: object, *, is_paired: bool = True) -> Measurement:
    """Return a measurement that every figure can be computed from.

    Args:
        measured: As it was read.
        name: What it is of.
        is_paired: Whether nothing can be said of it without pairs; of a baseline only the noise.

    Raises:
        ValueError: A sample is no number, or samples that are pairs are not.
    """
    own, beside = measured.seconds_per_image, measured.baseline_seconds_per_image
    if not own or (is_paired and not beside):
        raise ValueError(f"{name}: seconds_per_image holds no positive samples")
    if not all(0 < each < 1e9 for each in (*own, *beside)):
        raise ValueError(f"{name}: seconds_per_image holds no positive samples, or others beside")
    if len(beside) > len(own):
        raise ValueError(f"{name}: {len(beside)} baseline samples beside {len(own)}")
    if not all(abs(value) < 1e300 for value in (*measured.scores, *measured.psnr, *measured.ssim)):
        raise ValueError(f"{name}: a score is no number")
    if not 0 < measured.batch_size <= 100_000 or not 0 <= measured.seconds < 1e12:
        raise ValueError(f"{name}: batch_size or seconds is out of range")
    return measured


def _candidate(given: Any) -> Candidate:
    """Return a candidate of a file; raises Unreadable or ConfigurationError where it is none."""
    settings = as_type(given, Params)
    known = all_accelerators()
    for name, params in settings.items():
        if name in known:  # A report can be made of what a plug-in did that is not here.
            check_params(known[name], params)
    return Candidate(settings)


def _baseline(given: Mapping[str, Any], workload: Workload) -> Measurement:
    """Return the baseline; without pairs of its own, neighbouring samples are paired."""
    seconds = [float(each) for each in given["seconds_per_image"]]
    if not seconds or not given["scores"]:
        raise ValueError("the baseline has no samples")
    batch_size = int(given.get("batch_size", workload.batch_size or 1))
    beside = given.get("baseline_seconds_per_image")
    if beside is None:
        # Sample 0 beside 1, 2 beside 3, …; a single one tells nothing of the noise.
        half = len(seconds) // 2
        seconds, beside = (seconds[: 2 * half : 2], seconds[1::2]) if half else (seconds, [])
    charged = given.get("seconds", sum(given["seconds_per_image"]) * batch_size)
    measured = Measurement.from_dict(
        {
            **given,
            "seconds_per_image": seconds,
            "baseline_seconds_per_image": beside,
            "batch_size": batch_size,
            "seconds": charged,
        }
    )
    return _checked(measured, "baseline", is_paired=False)


def _trial(given: Mapping[str, Any], baseline: Measurement) -> Trial:
    """Return a trial; without a baseline of its own it is paired with the file's."""
    candidate = _candidate(given["candidate"])
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
    _checked(measurement, candidate)
    # A race that was given up has fewer.
    if not 0 < len(measurement.scores) <= len(baseline.scores):
        raise ValueError(
            f"{candidate}: {len(measurement.scores)} scores, the baseline has "
            f"{len(baseline.scores)}"
        )
    return Trial(candidate, measurement)
