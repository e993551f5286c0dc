"""Every trial with its raw samples in one JSON file: `accel-search-trials/1`.

What `--trials_out` writes and `--replay` reads. Beside the format's own fields it holds what
a replay needs to be exact (`baseline_seconds_per_image`, `seconds`, …); a file without them
is read all the same.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from accel_search.accelerators import all_accelerators
from accel_search.accelerators.base import check_params
from accel_search.core import extras
from accel_search.core.candidate import Candidate
from accel_search.core.machine_health import Health
from accel_search.core.step_times import StepTimes
from accel_search.core.timing_noise import is_timed
from accel_search.core.trial import Failure, Measurement, Trial
from accel_search.core.workload import Workload
from accel_search.errors import ConfigurationError, first_line
from accel_search.storage.entries import Number, Params, StoredWorkload
from accel_search.storage.json_files import Unreadable, as_type, load_json, write_atomically
from accel_search.storage.typed import Meta

FORMAT = "accel-search-trials/1"


@dataclass(frozen=True)
class TrialsFile:
    """What such a file holds, ready to be used."""

    workload: Workload | None
    """None where the file does not give every field; then no two points are taken as one."""
    given: StoredWorkload
    """The workload as far as the file gives it."""
    baseline: Measurement
    held_out_baseline: Measurement | None
    trials: tuple[Trial, ...]
    held_out: Mapping[Candidate, Measurement]
    """What was measured on held-out prompts."""
    rivals: Mapping[int, Measurement]
    """Step count -> the baseline pipeline with that many steps."""


def write_trials(
    path: Path,
    coinciding: Callable[[Candidate], Sequence[Candidate]],
    workload: Workload,
    baseline: Measurement,
    trials: Sequence[Trial],
    beside: Mapping[str, Measurement],
) -> None:
    """Write every trial with its raw samples.

    Args:
        path: The file, compressed if its name ends in `.gz`.
        coinciding: Returns every point that is the same computation as a measured one.
        workload: The workload.
        baseline: Its baseline.
        trials: Measured and failed ones, in the order they were stored.
        beside: Measurements that are no trials, by name.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    content = {
        "format": FORMAT,
        "workload": asdict(workload),
        "baseline": asdict(baseline),
        "trials": [_written(trial, coinciding) for trial in trials],
        "beside": {name: asdict(measurement) for name, measurement in beside.items()},
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
    stated = content.get("format") if isinstance(content, dict) else None
    if stated != FORMAT:
        raise ConfigurationError(f"--replay {path}: format is {stated!r}, expected {FORMAT!r}")
    try:
        return _trials_of(as_type(content, _Document), content["workload"])
    except (ValueError, ConfigurationError) as error:
        raise ConfigurationError(
            f"--replay {path}: not a valid {FORMAT} file: {first_line(error)}"
        ) from error


Seconds = Annotated[float, Meta(gt=0, lt=1e9)]
StepSeconds = Annotated[float, Meta(ge=1e-9, lt=1e9)]
Count = Annotated[int, Meta(ge=0, le=100_000)]


@dataclass(frozen=True, kw_only=True)
class _StepTimes:
    """The UNet calls of one pipeline call as a file gives them."""

    call: StepSeconds
    seconds: tuple[StepSeconds, ...]
    kinds: tuple[Count, ...]
    baseline_calls: Annotated[int, Meta(gt=0, le=100_000)]
    probes: tuple[tuple[Count, StepSeconds], ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """A measurement as a file gives it."""

    seconds_per_image: tuple[Seconds, ...] = ()
    baseline_seconds_per_image: tuple[Seconds, ...] | None = None
    scores: tuple[Number, ...] = ()
    batch_size: Annotated[int, Meta(gt=0, le=100_000)] | None = None
    peak_memory_bytes: int | None = None
    seconds: Annotated[float, Meta(ge=0, lt=1e12)] | None = None
    psnr: tuple[Number, ...] = ()
    ssim: tuple[Number, ...] = ()
    shuffled_scores: tuple[Number, ...] = ()
    step_times: tuple[_StepTimes, ...] = ()
    health: tuple[Health, ...] = ()

    def measurement(
        self, name: object, batch_size: int = 1, pairs: tuple[float, ...] | None = None
    ) -> Measurement:
        """Return the measurement, with a batch size and baseline samples where the file has none.

        A baseline, whose own pairs only show the noise, needs none: its `pairs` are None.

        Raises:
            Unreadable: It lacks samples, or the samples are not pairs.
        """
        own, beside = self.seconds_per_image, self.baseline_seconds_per_image
        beside = pairs or () if beside is None else beside
        if not own or not (beside or self.step_times or pairs is None):
            raise Unreadable(f"{name}: seconds_per_image holds no samples, or the baseline's none")
        if len(beside) > len(own):
            raise Unreadable(f"{name}: {len(beside)} baseline samples beside {len(own)}")
        measurement = Measurement(
            own,
            beside,
            self.scores,
            self.batch_size or batch_size,
            self.peak_memory_bytes,
            sum(own) * batch_size if self.seconds is None else self.seconds,
            self.psnr,
            self.ssim,
            self.shuffled_scores,
            tuple(StepTimes(**asdict(times)) for times in self.step_times),
            self.health,
        )
        if pairs is not None and not is_timed(measurement):
            raise Unreadable(
                f"{name}: holds no baseline samples, and step_times that tell no speedup"
            )
        return measurement


@dataclass(frozen=True, kw_only=True)
class _Failure:
    kind: str
    message: str = ""
    seconds: Number = 0.0


@dataclass(frozen=True, kw_only=True)
class _Trial(_Samples):
    """A trial as a file gives it: samples, or how it failed."""

    candidate: Params
    failure: _Failure | str | None = None


@dataclass(frozen=True, kw_only=True)
class _Document:
    """What such a file holds, as it is written."""

    workload: StoredWorkload
    baseline: _Samples
    trials: tuple[_Trial, ...]
    beside: dict[str, _Samples] = field(default_factory=dict)


def _trials_of(document: _Document, workload: Collection[str]) -> TrialsFile:
    """Return the content of a document, with these fields of its workload."""
    given = document.workload
    # Fields with a default were added later.
    needed = {option.name for option in fields(Workload) if option.default is MISSING}
    is_whole = needed <= set(workload)
    baseline = _baseline(document.baseline, given)
    trials = tuple(_trial(trial, baseline) for trial in document.trials)
    every = [*document.trials, *document.beside.values()]
    calls = {times.baseline_calls for samples in every for times in samples.step_times}
    if given.unet_calls and calls - {given.unet_calls}:
        raise Unreadable(
            f"step_times: baseline_calls is {min(calls - {given.unet_calls})}, but unet_calls of "
            f"the workload {given.unet_calls}"
        )
    by_text = {str(trial.candidate): trial.candidate for trial in trials}
    held_out_baseline = None
    held_out: dict[Candidate, Measurement] = {}
    rivals: dict[int, Measurement] = {}
    for name, samples in document.beside.items():
        kind, text = extras.parse(name)
        if not samples.scores:
            continue  # A part without prompts has no samples.
        if extras.is_baseline(name, "held_out"):
            held_out_baseline = samples.measurement(name)
        elif kind == extras.Kind.HELD_OUT and text in by_text:
            held_out[by_text[text]] = samples.measurement(name, pairs=())
        elif kind == extras.Kind.STEPS:
            rivals[int(text)] = samples.measurement(name, pairs=())
    return TrialsFile(
        workload=given if is_whole else None,
        given=given,
        baseline=baseline,
        held_out_baseline=held_out_baseline,
        trials=trials,
        held_out=held_out,
        rivals=rivals,
    )


def _baseline(samples: _Samples, workload: Workload) -> Measurement:
    """Return the baseline; without pairs of its own, neighbouring samples are paired."""
    if not samples.seconds_per_image or not samples.scores:
        raise Unreadable("the baseline has no samples")
    measured = samples.measurement("baseline", workload.batch_size or 1)
    half = len(measured.seconds_per_image) // 2
    if samples.baseline_seconds_per_image is not None or not half:
        return measured
    # Sample 0 beside 1, 2 beside 3, …; a single one tells nothing of the noise.
    calls = measured.seconds_per_image
    own, beside = calls[: 2 * half : 2], calls[1::2]
    return replace(measured, seconds_per_image=own, baseline_seconds_per_image=beside)


def _trial(trial: _Trial, baseline: Measurement) -> Trial:
    """Return a trial; without a baseline of its own it is paired with the file's."""
    known = all_accelerators()
    for name, params in trial.candidate.items():
        if name in known:  # A report can be made of what a plug-in did that is not here.
            check_params(known[name], params)
    candidate, failure = Candidate(trial.candidate), trial.failure
    if isinstance(failure, str):
        return Trial(candidate, None, Failure(failure, failure, 0.0))
    if failure is not None:
        message = failure.message or failure.kind
        return Trial(candidate, None, Failure(failure.kind, message, failure.seconds))
    pairs = baseline.seconds_per_image[: len(trial.seconds_per_image)]
    measurement = trial.measurement(candidate, baseline.batch_size, pairs)
    # A candidate that was given up at an early stage has fewer.
    if not 0 < len(measurement.scores) <= len(baseline.scores):
        raise Unreadable(
            f"{candidate}: {len(measurement.scores)} scores, the baseline has "
            f"{len(baseline.scores)}"
        )
    return Trial(candidate, measurement)
