"""Find or fetch the files of `--lora`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accel_search.core.loras import FILE_NAME, AskedLora, Lora
from accel_search.core.paths import local_file, local_folder, local_path
from accel_search.errors import ConfigurationError
from accel_search.runtime.loading.hub import Repository, fetch
from accel_search.runtime.loading.lora.fit import check_fits, header_model
from accel_search.runtime.loading.lora.header import Layers, read_layers
from accel_search.settings import Settings
from accel_search.storage.digests import digest_of

ENDING = ".safetensors"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA's file, its header checked."""

    given: str
    """Option and value, for messages."""
    path: Path
    layers: Layers
    scale: float
    name: str
    """As in `Lora.file`."""
    revision: str | None = None

    def record(self) -> Lora:
        """Return what a result says of it; reads the whole file, where it has not been read yet."""
        digest = digest_of([self.path], by_folder=False)
        assert digest is not None
        return Lora(self.name, digest, self.scale, self.revision)


def check_loras(settings: Settings) -> None:
    """Raise the error of a LoRA on this machine that cannot be loaded; no torch is needed.

    Raises:
        ConfigurationError: It is not there, no LoRA, or none of the model of `--pipe`, where files
            of that are here to compare.
    """
    if settings.replay is not None:
        return
    local = [found for asked in settings.loras if (found := _local(asked)) is not None]
    model = header_model(settings) if local else None
    for lora in local:
        if model is not None:
            check_fits(lora.given, settings.pipe, lora.layers, model)


def find_loras(settings: Settings, log: logging.Logger) -> tuple[LoraFile, ...]:
    """Return the checked files of `--lora`, in order; `log` gets what is fetched.

    Raises:
        ConfigurationError: One is not there, or no LoRA that can be loaded.
        LoadError: One cannot be fetched.
    """
    return tuple(_local(asked) or _fetched(asked, log) for asked in settings.loras)


def _local(asked: AskedLora) -> LoraFile | None:
    """Return the LoRA of a file or a folder; None for what may be on the hub."""
    given = f"--lora {asked.name}"
    path = local_file(asked.name)
    folder = local_folder(asked.name)
    if folder is not None:
        path = _in_folder(given, folder)
    if path is None:
        parts = asked.name.split("/")
        is_id = len(parts) > 1 and all(parts) and not asked.name.startswith((".", "~"))
        is_file = asked.name.lower().endswith(ENDING)
        # `owner/name`, or a file in such a repository.
        if not is_id or (len(parts) > 2) is not is_file or local_path(parts[0]).is_dir():
            raise ConfigurationError(
                f"{given}: no such file; give a {ENDING} file, a folder with one, or a hub id "
                "(owner/name, or owner/name/file.safetensors)"
            )
        return None
    if path.suffix.lower() != ENDING:
        raise ConfigurationError(f"{given}: is no {ENDING} file: give one")
    return LoraFile(given, path, read_layers(given, path), asked.scale, str(path))


def _in_folder(given: str, folder: Path) -> Path:
    """Return the LoRA in a folder: the only one, or the one of the usual name."""
    files = sorted(each for each in folder.iterdir() if each.suffix.lower() == ENDING)
    usual = [file for file in files if file.name == FILE_NAME]
    if len(usual or files) != 1:
        there = ", ".join(file.name for file in files[:3]) or f"no {ENDING} file"
        raise ConfigurationError(f"{given}: holds {there}: give the path of one file")
    return (usual or files)[0]


def _fetched(asked: AskedLora, log: logging.Logger) -> LoraFile:
    """Return the LoRA of a hub repository, fetched where it is not in the cache."""
    given = f"--lora {asked.name}"
    owner, name, *rest = asked.name.split("/")
    file = "/".join(rest) or FILE_NAME
    repository = Repository(given, f"{owner}/{name}", None, file, "a LoRA of that name")

    def choose(folder: Path, files: Sequence[str]) -> list[str]:
        return [file]

    def check(folder: Path) -> LoraFile:
        path = folder / file
        layers = read_layers(given, path)
        where = f"{owner}/{name}/{file}"
        return LoraFile(given, path, layers, asked.scale, where, _commit(path, file))

    return fetch(repository, choose, check, log)


def _commit(path: Path, file: str) -> str:
    """Return the commit by which a file in the hub's cache was fetched."""
    return path.parents[file.count("/")].name
