"""What was asked of a search, what was measured, and what went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accel_search.core.candidate import Candidate
from accel_search.core.machine_health import Health
from accel_search.core.step_times import StepTimes

SURE = 0.9
"""Probability of being within the bound at which a candidate is validated."""
HOPELESS = 0.3
"""Probability below which no further prompts are spent on a candidate."""


@dataclass(frozen=True)
class Measurement:
    """Raw samples of one candidate, or of the baseline; statistics are derived elsewhere."""

    seconds_per_image: tuple[float, ...]
    """One sample a pipeline call, in the order of the calls."""
    baseline_seconds_per_image: tuple[float, ...]
    """Baseline calls timed beside the first calls of `seconds_per_image`, on the same prompts
    and at the same batch size: sample i of one was timed next to sample i of the other."""
    scores: tuple[float, ...]
    """CLIP score of each image, in prompt order; higher is better."""
    batch_size: int
    """Images a call."""
    peak_memory_bytes: int | None = None
    """Most bytes allocated on the device during the calls; None where it cannot be read."""
    seconds: float = 0.0
    """Wall seconds that measuring took, scoring and baseline included."""
    psnr: tuple[float, ...] = ()
    """PSNR of each image to the baseline's of the same prompt and noise, in dB, at most 100; empty
    for the baseline itself and where it was not measured."""
    ssim: tuple[float, ...] = ()
    """Structural similarity of the same pairs, at most 1."""
    shuffled_scores: tuple[float, ...] = ()
    """Scores of a baseline's images against another prompt of the set each, in prompt order: what
    a score is worth that says nothing of the image. Empty where they were not taken."""
    step_times: tuple[StepTimes, ...] = ()
    """Of the calls whose UNet calls were timed one by one, in the order of the calls; empty where
    none were."""
    health: tuple[Health, ...] = ()
    """The machine at each call, the baseline's included, in the order of the calls; empty where it
    was not sampled."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """Return the measurement that `dataclasses.asdict` was written from.

        Raises:
            KeyError, TypeError, ValueError: A field is missing or of another type.
        """
        return cls(
            seconds_per_image=tuple(float(x) for x in data["seconds_per_image"]),
            baseline_seconds_per_image=tuple(float(x) for x in data["baseline_seconds_per_image"]),
            scores=tuple(float(x) for x in data["scores"]),
            batch_size=int(data["batch_size"]),
            peak_memory_bytes=data.get("peak_memory_bytes"),
            seconds=float(data.get("seconds", 0.0)),
            psnr=tuple(float(x) for x in data.get("psnr", ())),
            ssim=tuple(float(x) for x in data.get("ssim", ())),
            shuffled_scores=tuple(float(x) for x in data.get("shuffled_scores", ())),
            step_times=tuple(StepTimes.from_dict(times) for times in data.get("step_times", ())),
            health=tuple(Health.from_dict(sample) for sample in data.get("health", ())),
        )

    def joined(self, further: Measurement) -> Measurement:
        """Return this measurement with that of the prompts that follow it.

        Raises:
            ValueError: They were made at two batch sizes.
        """
        if further.batch_size != self.batch_size:
            raise ValueError("samples of two batch sizes cannot be compared")
        pairs = len(self.baseline_seconds_per_image)
        # Sample i of one side lies beside sample i of the other: unpaired ones go last.
        own, more = self.seconds_per_image, further.seconds_per_image
        new = len(further.baseline_seconds_per_image)
        peaks = (self.peak_memory_bytes, further.peak_memory_bytes)
        known = [peak for peak in peaks if peak is not None]
        return Measurement(
            seconds_per_image=own[:pairs] + more[:new] + own[pairs:] + more[new:],
            baseline_seconds_per_image=(
                self.baseline_seconds_per_image + further.baseline_seconds_per_image
            ),
            scores=self.scores + further.scores,
            batch_size=self.batch_size,
            peak_memory_bytes=max(known, default=None),
            seconds=self.seconds + further.seconds,
            psnr=self.psnr + further.psnr,
            ssim=self.ssim + further.ssim,
            shuffled_scores=self.shuffled_scores + further.shuffled_scores,
            step_times=self.step_times + further.step_times,
            health=self.health + further.health,
        )


@dataclass(frozen=True)
class Failure:
    """How a trial failed."""

    kind: str
    """`cuda_oom`, `timeout`, `model_load`, `invalid_image`, `subprocess_error`, `unknown_error`."""
    message: str
    """At most 1,000 characters."""
    seconds: float
    """Wall seconds until it failed."""


def commonest(failures: Sequence[Failure]) -> Failure:
    """Return the first failure of the commonest kind; of equally common ones, the earlier."""
    kinds = [failure.kind for failure in failures]
    kind = max(kinds, key=kinds.count)
    return next(failure for failure in failures if failure.kind == kind)


def describe_failures(failures: Sequence[Failure]) -> str:
    """Return in one line how many failed, and why most of them did."""
    most = commonest(failures)
    count = sum(failure.kind == most.kind for failure in failures)
    share = "" if count == len(failures) else f", {count:,} of them"
    return f"{len(failures):,} failed{share or ':'} {most.kind}: {most.message}"


@dataclass(frozen=True)
class Trial:
    """One candidate with what was measured, or with the failure it ended in."""

    candidate: Candidate
    measurement: Measurement | None
    failure: Failure | None = None

    def __post_init__(self) -> None:
        if (self.measurement is None) == (self.failure is None):
            raise ValueError("a trial holds either a measurement or a failure")

    @property
    def seconds(self) -> float:
        """Return the wall seconds that it took, a failed one until it failed."""
        result = self.measurement or self.failure
        assert result is not None
        return result.seconds


@dataclass(frozen=True)
class Goal:
    """What a search looks for."""

    max_score_loss: float
    """Largest loss of score allowed, a fraction."""
    min_speedup: float | None = None
    """Requirement mode: stop at the first candidate this fast. None: find the fastest."""
    min_psnr: float | None = None
    """Least mean PSNR to the baseline's images, in dB; None is no bound."""
    min_ssim: float | None = None
    """Least mean structural similarity to the baseline's images; None is no bound."""
    max_tail_loss: float | None = None
    """Largest mean loss of score over the worst tenth of prompts, a fraction; None is no bound."""


def is_sure(chance: float | None) -> bool:
    """Return whether a winner is validated, and not only likely to be within the bound.

    Args:
        chance: Probability that it is within, by held-out prompts; None without any.
    """
    return chance is None or chance >= SURE
