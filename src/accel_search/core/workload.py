"""What is measured, where, with what, and on which prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from accel_search.core.candidate import Value
from accel_search.core.loras import Lora
from accel_search.core.tasks import TEXT, task_of

IMPLEMENTATIONS = ("own", "package")
"""What computes the accelerators: this project, or the packages of their authors."""
PACKAGE_OF = {"deepcache": "deepcache", "tgate": "tgate", "tome": "tomesd"}
"""Accelerator -> package, whose version counts only where it was used."""
IN_MEMORY = "memory:"
"""Begins the digest of weights of a pipeline in memory, which that of files cannot equal."""


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
    """UNet calls that one pipeline call makes: without an image `len(scheduler.timesteps)`, which
    is `steps` for DDIM, DPM-Solver++ and UniPC and more for schedulers of second order."""
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
    call: tuple[tuple[str, bool | int | float | str], ...] = ()
    """Further arguments of every pipeline call, with values: `negative_prompt`, `clip_skip`,
    `strength`, and in Python any other; of pictures and the like a digest."""

    @property
    def task(self) -> str:
        """Return what pictures are made of, one of `tasks.TASKS`."""
        return task_of(self.pipeline_class)

    @property
    def strength(self) -> float:
        """Return the share of the steps that are made, from an image on; 1 without one."""
        share = dict(self.call).get("strength")  # A file may hold anything.
        return float(share) if isinstance(share, int | float) and 0 < share <= 1 else 1.0

    @property
    def has_guidance(self) -> bool:
        """Return whether each UNet call carries an unconditional half."""
        return self.guidance_scale > 1.0


@dataclass(frozen=True)
class Provenance:
    """Where and with what a result was measured."""

    device_name: str
    """GPU model, or the processor's for a CPU run."""
    driver: str | None
    """GPU driver version; None on a CPU or where it cannot be read."""
    threads: int | None
    """CPU threads torch used; of a GPU's run those asked for, or None."""
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
    """First 16 hex digits of the SHA-256 of the search and held-out prompts, their seeds, and what
    else their rows say."""
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
    memory_limit: float | None = None
    """GiB of the GPU's memory that were used, as on a smaller one; None is all there is."""
    implementation: str = "own"
    """What computed the accelerators, one of `IMPLEMENTATIONS`."""
    further_prompts_hash: str | None = None
    """As `prompt_set_hash`, of the further held-out prompts; None where there are none."""
    weights: str | None = None
    """First 16 hex digits of a digest of the weights and configurations that were loaded; after
    `IN_MEMORY` of those in memory. None of random weights, and of results of earlier versions."""
    controlnet: str | None = None
    """The ControlNets, each as its name, a digest of what was loaded, and its scale; None without
    any."""
    ip_adapter: str | None = None
    """The same of an IP-Adapter, of which the digest is with its image encoder; None without."""
    scheduler: Mapping[str, Any] | None = None
    """Options of the scheduler that are not its class's defaults; None of results of earlier
    versions."""
    call: Mapping[str, Any] | None = None
    """Further arguments of every pipeline call; None without any."""
    loras: tuple[Lora, ...] | None = None
    """LoRAs that were active, in the order in which they are added; None without any."""

    def __post_init__(self) -> None:
        if self.loras is not None:  # They may have been plain JSON types in between.
            loras = tuple(one if isinstance(one, Lora) else Lora(**one) for one in self.loras)
            object.__setattr__(self, "loras", loras)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Name each field in which a stored provenance differs from this one."""
        return differences(self.as_dict(), other)

    def identity(self) -> dict[str, Any]:
        """Return all but the fields that may differ between two runs that measure the same.

        Defaults are left out too, so that trials stored before a field was added still match.
        """
        defaults = {field.name: field.default for field in fields(self)}
        return {
            key: value
            for key, value in self.as_dict().items()
            if key != "date" and value != defaults[key]
        }

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        copies = {
            name: None if value is None else dict(value)
            for name in ("versions", "scheduler", "call")
            for value in [getattr(self, name)]
        }
        loras = None if self.loras is None else [asdict(lora) for lora in self.loras]
        return asdict(self) | copies | {"loras": loras}


FIELDS = {
    "device_name": "device",
    "threads": "number of CPU threads",
    "versions": "library versions",
    "dtype": "precision",
    "attention_backend": "attention kernel",
    "model_id": "model",
    "prompt_set_hash": "prompts or seed",
    "clip_model": "CLIP model",
    "scheduler": "scheduler options",
    "call": "call arguments",
    "vae": "VAE",
    "loras": "LoRAs",
    "controlnet": "ControlNets",
    "ip_adapter": "IP-Adapter",
}
"""Field of a provenance -> its name in messages, where it is not the field's own."""


def in_words(names: Iterable[str]) -> str:
    """Return fields of a provenance as a message names them."""
    return ", ".join(FIELDS.get(name, name.replace("_", " ")) for name in names)


def differences(wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Name each field in which a stored provenance differs from one wanted.

    Neither the date counts, nor the prompts that a result may have needed none of. A field that it
    lacks counts as its default, if it has one.
    """
    defaults = {field.name: field.default for field in fields(Provenance)}
    kept, asked = dict(stored), dict(wanted)
    if "versions" in asked:
        kept["versions"], asked["versions"] = counting_versions(kept, asked["versions"])
    return [
        name
        for name, value in asked.items()
        if name not in ("date", "further_prompts_hash")
        and value != kept.get(name, defaults.get(name))
    ]


def counting_versions(
    stored: Mapping[str, Any], here: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the versions that count in a stored provenance, and those of `here`.

    The accelerators' packages count where the stored result used them. Those measured by our own
    implementation may list them, too: earlier versions recorded all that were installed.
    """
    before = dict(stored.get("versions") or {})
    is_used = stored.get("implementation", "own") == "package"
    unused = {name for name in PACKAGE_OF.values() if not (is_used and name in before)}
    if "peft" not in here:  # It counts where there are LoRAs, which a machine alone has none of.
        unused.add("peft")
    return (
        {name: version for name, version in before.items() if name not in unused},
        {name: version for name, version in here.items() if name not in unused},
    )


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
class ImageFile:
    """An image of a case."""

    path: str
    digest: str
    """First 16 hex digits of the SHA-256 of the file's content."""


Input = str | int | float | ImageFile


@dataclass(frozen=True)
class Prompt:
    """A prompt with the seed of its noise, and what else its picture is made of."""

    text: str
    seed: int
    inputs: tuple[tuple[str, Input], ...] = ()
    """Column of the prompts file -> what it gives this picture's call."""

    @property
    def identity(self) -> list[Any]:
        """Return all that the picture depends on, as plain JSON types."""
        # Of a file only what is in it counts, wherever it lies.
        inputs = [
            [name, value.digest if isinstance(value, ImageFile) else value]
            for name, value in self.inputs
        ]
        return [self.text, self.seed, *([inputs] if inputs else [])]


@dataclass(frozen=True)
class PromptSet:
    """Prompts that the search scores on, and disjoint ones that only the winner sees."""

    source: str
    """`builtin`, `coco` or the file they were read from."""
    search: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    further: tuple[Prompt, ...] = ()
    """More held-out prompts, for a candidate that the first do not settle."""
    task: str = TEXT
    """What pictures are made of, one of `tasks.TASKS`."""
    size: tuple[int, int] | None = None
    """Height and width of its images in pixels; None where it has none."""
    strength: float | None = None
    """How much of an image is made anew, above 0 and at most 1; None is the pipeline's default."""

    @property
    def columns(self) -> frozenset[str]:
        """Return what its rows say beside prompt and seed, as columns of the prompts file."""
        return frozenset(name for name, _ in self.search[0].inputs) if self.search else frozenset()

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of every prompt but the further ones, and its seed."""
        return _digest(self.search, self.held_out)

    @property
    def further_digest(self) -> str | None:
        """The same of the further ones; None without any."""
        return _digest(self.further) if self.further else None


def _digest(*parts: Sequence[Prompt]) -> str:
    text = json.dumps([[prompt.identity for prompt in part] for part in parts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
