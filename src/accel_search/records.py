"""The values that flow through a search: what was asked, what was measured, what went wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

Value = int | float
"""Value of one parameter of an accelerator."""

Params = Mapping[str, Value]
"""Parameter name -> value: one point of one accelerator's space."""


class Candidate(Mapping[str, Params]):
    """One point of the joint space: accelerator name -> parameters. Immutable and hashable.

    The empty candidate is the baseline. Accelerators are kept in alphabetical order, so equal
    settings are equal candidates however they were written.
    """

    __slots__ = ("_items",)

    def __init__(self, settings: Mapping[str, Params] | None = None) -> None:
        self._items: tuple[tuple[str, tuple[tuple[str, Value], ...]], ...] = tuple(
            (name, tuple(params.items())) for name, params in sorted((settings or {}).items())
        )

    def __getitem__(self, name: str) -> dict[str, Value]:
        for key, params in self._items:
            if key == name:
                return dict(params)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self._items])

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple((name, frozenset(params)) for name, params in self._items))

    def __str__(self) -> str:
        return (
            " + ".join(
                f"{name}({', '.join(f'{key}={value}' for key, value in params)})"
                for name, params in self._items
            )
            or "baseline"
        )

    def __repr__(self) -> str:
        return f"Candidate({self.as_dict()})"

    def without(self, name: str) -> Candidate:
        """Return the same with one accelerator less."""
        return Candidate({each: params for each, params in self.items() if each != name})

    def as_dict(self) -> dict[str, dict[str, Value]]:
        """Return plain JSON types: `{"deepcache": {"cache_interval": 2, ...}}`."""
        return {name: dict(params) for name, params in self._items}

    def flat(self) -> dict[str, Value]:
        """Return every parameter by its own name, as the result file lists them."""
        return {key: value for _, params in self._items for key, value in params}


@dataclass(frozen=True)
class Workload:
    """What is to be made faster, and the facts about it that decide which candidates coincide."""

    pipeline: str
    """What the user named: `demo`, `SDXL`, a folder or a hub id."""
    pipeline_class: str
    """Class name of the diffusers pipeline, e.g. `StableDiffusionPipeline`."""
    scheduler_class: str
    """Class name of the scheduler, e.g. `DDIMScheduler`."""
    steps: int
    """Inference steps asked of the scheduler."""
    unet_calls: int
    """UNet calls that one pipeline call makes: `len(scheduler.timesteps)`, which is `steps`
    for DDIM, DPM-Solver++ and UniPC and more for schedulers of second order."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    batch_size: int
    """Images a pipeline call."""
    guidance_scale: float
    """Classifier-free guidance scale; 1 or less runs without guidance."""
    dtype: str
    """`float32`, `float16` or `bfloat16`."""
    device: str
    """`cpu` or `cuda:0`."""
    latent_height: int
    """Height of the UNet's input."""
    latent_width: int
    """Width of the UNet's input."""
    attention_downsamples: tuple[int, ...]
    """Downsampling factors at which the UNet has transformer blocks, its middle included,
    ascending, e.g. (1, 2, 4, 8)."""

    @property
    def has_guidance(self) -> bool:
        """Tell whether each UNet call carries an unconditional half."""
        return self.guidance_scale > 1.0


@dataclass(frozen=True)
class Provenance:
    """Where and with what a result was measured."""

    device_name: str
    """GPU model, or the processor's for a CPU run."""
    driver: str | None
    """GPU driver version; None on a CPU or where it cannot be read."""
    threads: int | None
    """CPU threads torch used; None on a GPU."""
    versions: Mapping[str, str]
    """Package -> version, of every package that can change a picture or a timing."""
    dtype: str
    height: int
    width: int
    batch_size: int
    """Images a call at which the speedup was measured."""
    guidance_scale: float
    attention_backend: str
    """`native` is torch's scaled_dot_product_attention; its kernel in brackets where known."""
    model_id: str
    revision: str | None
    prompt_set_hash: str
    """First 16 hex digits of the SHA-256 of the search and held-out prompts and their seeds."""
    clip_model: str | None
    """None where nothing was scored."""
    date: str
    """ISO 8601, UTC."""
    compiled: bool = False
    """Whether the UNet's blocks were compiled, of baseline and candidates alike."""
    vae: str | None = None
    """What replaces the pipeline's own VAE, with its commit or a digest; None is its own."""
    offload: str | None = None
    """`model` if parts wait in main memory until they are called, which every timing includes;
    None if all are on the device."""

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Name each field in which a stored provenance differs from this one.

        Args:
            other: A provenance as read from a result file; fields that it lacks differ, but
                for those that came later and have their default.
        """
        defaults = {each.name: each.default for each in fields(self)}
        return [
            name
            for name, mine in self.as_dict().items()
            if name != "date" and mine != other.get(name, defaults[name])
        ]

    def identity(self) -> dict[str, Any]:
        """Return all but the fields that may differ between two runs that measure the same.

        Defaults are left out too, so that a field added later forgets no trial of before.
        """
        defaults = {each.name: each.default for each in fields(self)}
        return {
            key: value
            for key, value in self.as_dict().items()
            if key != "date" and value != defaults[key]
        }

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self) | {"versions": dict(self.versions)}


@dataclass(frozen=True)
class SpaceSummary:
    """What was searched, as far as files hold it."""

    targets: tuple[str, ...]
    """Names of the accelerators, sorted."""
    values: Mapping[str, Mapping[str, Sequence[Value]]]
    """Accelerator -> parameter -> values, as plain JSON types."""
    points: int
    """Points of the space, coinciding ones counted each."""
    distinct: int
    """Distinct computations among them, the baseline not counted."""


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
    """Likeness of each image to the baseline's of the same prompt and noise, in dB, at most 100;
    empty for the baseline itself and where it was not measured."""
    ssim: tuple[float, ...] = ()
    """Structural similarity of the same pairs, at most 1."""

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
    """Return the first failure of the kind that most are of; of equals, of the earlier kind."""
    kinds = [each.kind for each in failures]
    kind = max(kinds, key=kinds.count)
    return next(each for each in failures if each.kind == kind)


def said_of(failures: Sequence[Failure]) -> str:
    """Return in a line how many failed, and why most of them did."""
    most = commonest(failures)
    like_it = sum(each.kind == most.kind for each in failures)
    share = "" if like_it == len(failures) else f", {like_it:,} of them"
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
        found = self.measurement or self.failure
        assert found is not None
        return found.seconds


@dataclass(frozen=True)
class Goal:
    """What is looked for."""

    max_score_loss: float
    """Largest loss of score allowed, a fraction."""
    min_speedup: float | None = None
    """Requirement mode: stop at the first candidate this fast. None: find the fastest."""
    min_psnr: float | None = None
    """Least mean likeness to the baseline's images, in dB; None is no bound."""
    min_ssim: float | None = None
    """Least mean structural similarity to the baseline's images; None is no bound."""


@dataclass(frozen=True)
class Prompt:
    """A prompt with the seed of its initial noise."""

    text: str
    seed: int


@dataclass(frozen=True)
class PromptSet:
    """Prompts that the search scores on, and disjoint ones that only the winner sees."""

    source: str
    """`builtin`, `coco` or the file they were read from."""
    search: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of every prompt, its seed and its part."""
        text = json.dumps(
            [[[p.text, p.seed] for p in part] for part in (self.search, self.held_out)]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]
