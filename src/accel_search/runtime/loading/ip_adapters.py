"""Find and load the IP-Adapter of `--ip_adapter` and its image encoder: safetensors alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accel_search.core.paths import PICKLES, local_file, local_folder
from accel_search.errors import LoadError, first_line
from accel_search.runtime.loading.components import load_model
from accel_search.runtime.loading.config_files import read_object, refuse_code
from accel_search.runtime.loading.hub import Repository, fetch
from accel_search.runtime.loading.pipeline_folder import component_files
from accel_search.runtime.loading.weight_files import check_weights
from accel_search.runtime.memory import is_out_of_memory
from accel_search.storage.digests import digest_of

BESIDE = "image_encoder"
"""Folder of the image encoder beside an adapter."""
ELSEWHERE = "models/image_encoder"
"""The same in the folder above, where the hub's SDXL adapters of ViT-H have it."""
PARTS = ("image_proj.", "ip_adapter.")
"""Beginnings of the names of an adapter's tensors."""


class IPAdapter(NamedTuple):
    """An IP-Adapter's file and its image encoder's folder, checked and complete."""

    given: str
    """Option and value, for messages."""
    path: Path
    encoder: Path
    name: str
    """Its file or hub id, with a digest of what is loaded."""


def find_ip_adapter(text: str, half: bool, log: logging.Logger) -> IPAdapter:
    """Return the checked files of `--ip_adapter`.

    Args:
        text: A file, a folder with one file, or `owner/name/FILE.safetensors` of the hub.
        half: Whether half-precision files are preferred where both exist.
        log: Gets what is fetched.

    Raises:
        LoadError: They cannot be found, fetched or safely loaded.
    """
    given = f"--ip_adapter {text}"
    folder, path = local_folder(text), local_file(text)
    if folder is not None:
        files = sorted(file for file in folder.glob("*.safetensors"))
        if len(files) != 1:
            names = ", ".join(file.name for file in files[:4]) or "none"
            raise LoadError(
                f"{given}: expected one .safetensors file in the folder, and there are {names}: "
                "give the file"
            )
        path = files[0]
    if path is not None:
        return _checked(given, path, path.name, half)
    owner, _, rest = text.partition("/")
    name, _, file = rest.partition("/")
    if text.lower().endswith(PICKLES) or not (owner and name and file.endswith(".safetensors")):
        raise LoadError(
            f"{given}: no such file or folder; give a .safetensors file, a folder with one, or one "
            "of the hub (owner/name/FILE.safetensors)"
        )

    def choose(_: Path, files: Sequence[str]) -> list[str]:
        needed = [file]
        for place in _places(Path(file)):
            inside = place.as_posix()
            if f"{inside}/config.json" in files:
                needed += component_files(given, inside, files, half)
        return needed

    repository = Repository(given, f"{owner}/{name}", None, file, "an IP-Adapter")

    return fetch(
        repository, choose, lambda snapshot: _checked(given, snapshot / file, text, half), log
    )


def _places(file: Path) -> list[Path]:
    """Return where an adapter's image encoder may be, its own first."""
    return [file.parent / BESIDE, file.parent.parent / ELSEWHERE]


def _checked(given: str, path: Path, name: str, half: bool) -> IPAdapter:
    from safetensors import SafetensorError, safe_open

    if path.suffix.lower() != ".safetensors":
        raise LoadError(f"{given}: only .safetensors files are loaded: give one")
    try:
        with safe_open(path, framework="np") as opened:
            shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise LoadError(
            f"{given}: {path} is truncated or corrupt ({first_line(error, 120)}): fetch it again"
        ) from error
    if not shapes or not all(key.startswith(PARTS) for key in shapes):
        raise LoadError(f"{given}: {path} holds no IP-Adapter: its tensors are named otherwise")
    wanted = _width(given, shapes)
    for place in _places(path):
        if (place / "config.json").is_file():
            config = read_object(given, place / "config.json")
            if config.get(wanted[0]) == wanted[1]:
                refuse_code(given, place)
                files = [path, place / "config.json", *check_weights(given, place, half)]
                other = "" if place == _places(path)[0] else f" ({ELSEWHERE})"
                return IPAdapter(given, path, place, f"{name}{other}@{digest_of(files)}")
    raise LoadError(
        f"{given}: an image encoder of {wanted[0]} {wanted[1]} is neither in "
        f"{' nor in '.join(map(str, _places(path)))}: put it there"
    )


def _width(given: str, shapes: dict[str, tuple[int, ...]]) -> tuple[str, int]:
    """Return what the encoder's configuration has to say, by the adapter's tensors."""
    for name, axis, option in (
        ("proj.weight", 1, "projection_dim"),
        ("proj_in.weight", 1, "hidden_size"),
        ("proj.0.weight", 0, "hidden_size"),
    ):
        shape = shapes.get(f"image_proj.{name}")
        is_face = "image_proj.norm.weight" in shapes and name == "proj.0.weight"
        is_face = is_face and "image_proj.proj.3.weight" not in shapes
        if shape is not None and len(shape) == 2 and not is_face:
            return option, shape[axis]
    raise LoadError(
        f"{given}: is of a kind that takes no image (FaceID), or unknown; only adapters with an "
        "image encoder are loaded"
    )


def load_ip_adapter(pipe: Any, adapter: IPAdapter, scale: float, half: bool, dtype: Any) -> None:
    """Load an adapter and its image encoder into a pipeline.

    Args:
        pipe: The pipeline, in main memory.
        adapter: The files.
        scale: How strongly it acts.
        half: As in `find_ip_adapter`.
        dtype: Of its weights.

    Raises:
        LoadError: It cannot be loaded, or is for another UNet.
    """
    import transformers
    from safetensors.torch import load_file

    cls = transformers.CLIPVisionModelWithProjection
    encoder = load_model(adapter.given, adapter.encoder, cls, half, dtype)
    tensors: dict[str, dict[str, Any]] = {part.removesuffix("."): {} for part in PARTS}
    for key, tensor in load_file(adapter.path).items():
        part, _, name = key.partition(".")
        tensors[part][name] = tensor
    widths = {tensor.shape[-1] for name, tensor in tensors["ip_adapter"].items() if "_ip" in name}
    if widths != {pipe.unet.config.cross_attention_dim}:
        raise LoadError(
            f"{adapter.given}: it makes images of width {', '.join(map(str, sorted(widths)))}, the "
            f"UNet takes {pipe.unet.config.cross_attention_dim}: it is for another model"
        )
    pipe.register_modules(image_encoder=encoder)
    try:
        pipe.load_ip_adapter(tensors, subfolder="", weight_name="", image_encoder_folder=None)
    except Exception as error:  # Tensors of other shapes raise many classes.
        if is_out_of_memory(error):
            raise
        raise LoadError(
            f"{adapter.given}: {adapter.path} could not be loaded ({first_line(error)}): it is for "
            "another model"
        ) from error
    pipe.set_ip_adapter_scale(scale)
