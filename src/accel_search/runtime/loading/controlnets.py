"""Find and load the ControlNets of `--controlnet`: safetensors alone, as a pipeline's parts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accel_search.core.paths import local_folder
from accel_search.core.tasks import with_scale
from accel_search.errors import LoadError
from accel_search.runtime.loading.components import load_model
from accel_search.runtime.loading.config_files import read_object, refuse_code
from accel_search.runtime.loading.hub import Repository, fetch
from accel_search.runtime.loading.pipeline_folder import component_files, is_hub_id
from accel_search.runtime.loading.weight_files import check_weights
from accel_search.storage.digests import digest_of

CLASS = "ControlNetModel"


class ControlNet(NamedTuple):
    """A ControlNet's folder, checked and complete."""

    given: str
    """Option and value, for messages."""
    path: Path
    name: str
    """Its folder or hub id, with a digest of what is loaded."""
    scale: float
    """How strongly it acts."""

    def __str__(self) -> str:
        return f"{self.name} × {self.scale:g}"


def find_controlnet(text: str, half: bool, log: logging.Logger) -> ControlNet:
    """Return the checked folder of one `--controlnet`.

    Args:
        text: A folder, or a hub id with `@revision` if need be; `:SCALE` may follow.
        half: Whether half-precision files are preferred where both exist.
        log: Gets what is fetched.

    Raises:
        LoadError: It cannot be found, fetched or safely loaded.
    """
    name, scale = with_scale(text)
    given = f"--controlnet {name}"
    path = local_folder(name)
    if path is not None:
        return _checked(given, path, path.resolve().name, scale, half)
    hub_id, _, revision = name.partition("@")
    if not is_hub_id(hub_id):
        raise LoadError(
            f"{given}: no such folder; give a folder of a {CLASS} or a hub id (owner/name, or "
            "owner/name@revision)"
        )

    def choose(folder: Path, files: Sequence[str]) -> list[str]:
        _check_class(given, folder)
        return component_files(given, "", files, half)

    repository = Repository(given, hub_id, revision or None, "config.json", f"a {CLASS}")
    return fetch(
        repository, choose, lambda folder: _checked(given, folder, hub_id, scale, half), log
    )


def _checked(given: str, path: Path, name: str, scale: float, half: bool) -> ControlNet:
    if not (path / "config.json").is_file():
        raise LoadError(
            f"{given}: {path / 'config.json'} is missing; give a folder that save_pretrained of "
            f"a {CLASS} wrote"
        )
    _check_class(given, path)
    refuse_code(given, path)
    digest = digest_of([path / "config.json", *check_weights(given, path, half)])
    return ControlNet(given, path, f"{name}@{digest}", scale)


def _check_class(given: str, path: Path) -> None:
    class_name = read_object(given, path / "config.json").get("_class_name")
    if class_name != CLASS:
        raise LoadError(
            f"{given}: its config.json names the class {class_name!r}; only {CLASS} is loaded"
        )


def load_controlnets(nets: Sequence[ControlNet], unet: Any, half: bool, dtype: Any) -> Any:
    """Return what a pipeline takes: a model, or a list of several.

    Raises:
        LoadError: One cannot be loaded, or is for another UNet.
    """
    import diffusers

    models = []
    for net in nets:
        model = load_model(net.given, net.path, diffusers.ControlNetModel, half, dtype)
        own = model.config
        for name in ("cross_attention_dim", "block_out_channels", "addition_embed_type"):
            wanted, has = unet.config.get(name), own.get(name)
            if _plain(wanted) != _plain(has):
                raise LoadError(
                    f"{net.given}: its {name} is {has}, the UNet's {wanted}: it is for another "
                    "model; give one for this"
                )
        models.append(model)
    return models[0] if len(models) == 1 else models


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
