"""Measure a stored result again on this machine, for `accel-search --verify`.

CI can guard a deployment with it: a new driver, library, GPU or model revision may slow an
accelerator down or change its images. Nothing is written.

Two questions are answered `pass`, `fail` or `inconclusive`:

- the loss of score, against the stored bound, as a search judges it;
- the speedup. With `--req_speedup X` it passes if the whole interval is at X or above, and fails if
  it is below X. Without it, it fails if the whole interval is below the stored one, and passes if
  it is a gain beyond the noise and its value is not below the stored interval, which spans the
  winner's timings in the search and on held-out prompts: the first alone is optimistic, because the
  winner was chosen by it.

Comparing the lower ends of the two intervals would fail half of all equal timings.
`scripts/benchmarks/bench_intervals.py` prints how often an unchanged machine passes, and how often
a slower one is detected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_search.core import verdicts
from accel_search.core.assessment import assess
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate, Verdict
from accel_search.core.timing_noise import TimingNoise, speedup
from accel_search.core.trial import Goal
from accel_search.core.workload import Provenance, Workload, counting_versions
from accel_search.errors import ConfigurationError
from accel_search.search.evaluator import Evaluator
from accel_search.search.stored_evaluator import StoredEvaluator
from accel_search.settings import Settings
from accel_search.storage.answers import answering
from accel_search.storage.entries import BoundEntry, Interval, SearchEntry
from accel_search.storage.json_files import Unreadable, as_type, load_json


@dataclass(frozen=True)
class Stored:
    """A stored result that is compared with what is measured here."""

    file: str
    candidate: Candidate
    speedup: Estimate
    """The stored figure; its interval spans those of all its timings."""
    score_loss: Estimate | None
    """None where nothing was scored."""
    provenance: Mapping[str, Any]
    """Empty where none was stored."""
    goal: Goal
    """The stored bounds, overridden by the options; without `min_speedup`, the stored speedup is
    required."""


@dataclass(frozen=True)
class Difference:
    """One difference between this machine and the one that stored a result."""

    name: str
    stored: Any
    here: Any


@dataclass(frozen=True)
class Verification:
    """The result of measuring a stored result again."""

    stored: Stored
    speedup: Estimate | None
    """None where the candidate failed."""
    speedup_verdict: Verdict
    score_loss: Estimate | None
    """None where the candidate failed or nothing is scored."""
    score_verdict: Verdict | None
    """None where nothing is scored; includes the bounds on similarity and worst prompts, if any."""
    psnr: float | None
    ssim: float | None
    tail_loss: float | None
    prompts: int
    noise_floor: float
    """Relative difference that two copies of the baseline pipeline may show here."""
    baseline_seconds_per_image: float
    candidate_seconds_per_image: float | None
    prompts_needed: int | None
    """Approximate number of prompts that would settle the score's verdict; None if settled."""
    failure: str | None
    """Why the candidate failed."""
    differences: tuple[Difference, ...]
    provenance: Provenance | None

    @property
    def verdict(self) -> Verdict:
        """Return `fail` if either question fails, `pass` if both pass."""
        known = (self.speedup_verdict, self.score_verdict)
        return verdicts.overall(verdict for verdict in known if verdict is not None)


def check_stored(settings: Settings) -> None:
    """Check, before a model is loaded, that there may be something to verify.

    Raises:
        ConfigurationError: The file is missing or invalid, or has no result of these steps,
            scheduler, targets and bound.
    """
    content = _read(settings)
    if settings.replay is None and not answering(content, settings, None):
        raise _nothing(settings)


def find_stored(settings: Settings, workload: Workload, provenance: Provenance | None) -> Stored:
    """Return the stored result of these options.

    Args:
        settings: Give the file and, with the workload, the key.
        workload: What is measured here.
        provenance: Selects the model, where the file has results of several.

    Raises:
        ConfigurationError: There is none, or only those of other models.
    """
    entries = answering(_read(settings), settings, workload)
    if not entries:
        raise _nothing(settings)
    models = sorted({entry.model_id for entry in entries})
    here = None if provenance is None else provenance.model_id
    if here in models:
        entries = [entry for entry in entries if entry.model_id == here]
    elif len(models) > 1:
        raise ConfigurationError(
            f"{_file(settings)} holds results of {', '.join(models)}, but not of "
            f"{here or 'a recorded file'}: verify the model that was searched"
        )
    if provenance is not None:  # The most alike one, of several workloads.
        entries = sorted(entries, key=lambda entry: len(provenance.differences(_where(entry))))
    return _stored_of(entries[0], settings)


def verify(stored: Stored, evaluator: Evaluator, measuring: StoredEvaluator) -> Verification:
    """Measure a stored result again, on every prompt of the search's part.

    Args:
        stored: The result.
        evaluator: Measures candidates.
        measuring: Wraps the evaluator, without a store.

    Raises:
        AccelSearchError: As `Evaluator.measure`; a failure of the candidate alone is a verdict.
    """
    baseline = measuring.baseline()
    trial = measuring.trial(stored.candidate, range(evaluator.prompt_count))
    measured = trial.measurement
    if measured is not None:
        baseline = measuring.baseline(beside=measured)  # The batch may be halved by now.
    measuring.check()
    noise = TimingNoise([baseline], [] if measured is None else [measured])
    floor = noise.floor(max(1, len(baseline.baseline_seconds_per_image)))
    is_scored = bool(baseline.scores)
    new_speedup: Estimate | None = None
    loss: Estimate | None = None
    psnr = ssim = tail_loss = None
    speed_verdict, needed = Verdict.FAIL, None
    score_verdict = Verdict.FAIL if is_scored else None
    if measured is not None:
        new_speedup = speedup(measured, noise)
        speed_verdict = judge_speedup(new_speedup, floor, stored)
        if is_scored:
            assessment = assess(measured, baseline, stored.goal.max_score_loss, noise)
            loss, tail_loss = assessment.score_loss, assessment.tail_loss
            psnr, ssim = assessment.psnr, assessment.ssim
            score_verdict = verdicts.judge_quality(assessment, stored.goal)
            if score_verdict is Verdict.INCONCLUSIVE:
                needed = assessment.prompts_needed
    return Verification(
        stored=stored,
        speedup=new_speedup,
        speedup_verdict=speed_verdict,
        score_loss=loss,
        score_verdict=score_verdict,
        psnr=psnr,
        ssim=ssim,
        tail_loss=tail_loss,
        prompts=len(baseline.scores),
        noise_floor=floor,
        baseline_seconds_per_image=_mean(baseline.seconds_per_image),
        candidate_seconds_per_image=None if measured is None else _mean(measured.seconds_per_image),
        prompts_needed=needed,
        failure=None if trial.failure is None else f"{trial.failure.kind}: {trial.failure.message}",
        differences=differences(stored.provenance, evaluator.provenance),
        provenance=evaluator.provenance,
    )


def judge_speedup(measured: Estimate, floor: float, stored: Stored) -> Verdict:
    """Compare a speedup with the required one or, without one, with the stored one.

    Args:
        measured: The speedup measured here.
        floor: Relative difference that two copies of the baseline pipeline may show by chance.
        stored: The result to compare with.
    """
    return verdicts.judge_speedup(measured, floor, stored.goal.min_speedup, stored.speedup.low)


def differences(stored: Mapping[str, Any], here: Provenance | None) -> tuple[Difference, ...]:
    """Return the differences of a stored provenance from this machine's, one per version."""
    if here is None or not stored:
        return ()
    own = here.as_dict()
    changes: list[Difference] = []
    for name in here.differences(stored):
        if name != "versions":
            changes.append(Difference(name, stored.get(name), own[name]))
            continue
        before, now = counting_versions(stored, own[name])
        changes += [
            Difference(package, before.get(package), now.get(package))
            for package in sorted({*before, *now})
            if before.get(package) != now.get(package)
        ]
    return tuple(changes)


def _file(settings: Settings) -> str:
    return settings.bounds if settings.latency_only else settings.output


def _read(settings: Settings) -> dict[str, Any]:
    """Return the result file's object; unlike in a search, an invalid file stays in place."""
    path = Path(_file(settings))
    if not path.exists():
        raise ConfigurationError(
            f"--verify: {path}: no such file; run accel-search without --verify to write it"
        )
    try:
        return as_type(load_json(path), dict[str, Any])
    except Unreadable as error:
        raise ConfigurationError(f"--verify: {path}: cannot be read: {error}") from error


def _nothing(settings: Settings) -> ConfigurationError:
    reached = "" if settings.req_speedup is None else f" that reached {settings.req_speedup:g}x"
    return ConfigurationError(
        f"--verify: {_file(settings)} holds no result{reached} for --pipe {settings.pipe} --sched "
        f"{settings.sched} --steps {settings.steps} --targets {','.join(settings.targets)} "
        f"--req_score_loss {settings.req_score_loss:g}; leave --verify out to search for one"
    )


def _stored_of(entry: SearchEntry | BoundEntry, settings: Settings) -> Stored:
    searched: Mapping[str, Any] = {}
    if isinstance(entry, BoundEntry):
        fastest, value, loss = entry.measured_max.settings, entry.measured_max_speedup, None
        timings: list[Interval | None] = [entry.measured_max.speedup_interval]
    else:
        evidence, held_out = entry.evidence, entry.evidence.held_out
        fastest, value, searched = entry.settings, entry.speedup, evidence.search
        parts = [part.speedup_interval for part in (evidence.in_search, held_out) if part]
        timings = [evidence.speedup_interval, *parts]
        if entry.score_loss is None:
            raise ConfigurationError(
                f"{_file(settings)}: its entry does not say what is lost: search again with --force"
            )
        loss = _spanned(entry.score_loss, [evidence.score_loss_interval])
    return Stored(
        file=_file(settings),
        candidate=Candidate(fastest),
        speedup=_spanned(value, timings),
        score_loss=loss,
        provenance=_where(entry),
        goal=Goal(
            settings.req_score_loss,
            settings.req_speedup,
            *(
                searched.get(name) if getattr(settings, name) is None else getattr(settings, name)
                for name in ("min_psnr", "min_ssim", "max_tail_loss")
            ),
        ),
    )


def _where(entry: SearchEntry | BoundEntry) -> dict[str, Any]:
    where = {} if entry.provenance is None else entry.provenance.as_dict()
    if where.get("measured_batch_size") is not None:  # It may be halved here, too.
        where["batch_size"] = where["measured_batch_size"]
    return where


def _spanned(value: float, intervals: Sequence[Interval | None]) -> Estimate:
    ends = [end for interval in intervals if interval for end in interval]
    return Estimate(value, min([value, *ends]), max([value, *ends]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
