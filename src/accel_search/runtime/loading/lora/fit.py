"""Whether a LoRA is for a model: each of its layers must be there, in its shape.

A UNet's own header shows that before anything is loaded; where there is none yet, it is compared
once the model is loaded. diffusers itself leaves out, in silence, what it finds no layer for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from accel_search.core.paths import local_folder
from accel_search.errors import ConfigurationError, LoadError
from accel_search.runtime.demo import demo_part
from accel_search.runtime.loading.lora.header import UNET, Layers, flat
from accel_search.runtime.loading.single_file.header import read_header
from accel_search.runtime.loading.single_file.load import unet_shapes
from accel_search.runtime.loading.single_file.names import UNET as ORIGINAL
from accel_search.runtime.loading.single_file.names import unet_places
from accel_search.settings import Settings


class Weights(NamedTuple):
    """The weights of a layer of a model."""

    name: str
    shape: tuple[int, ...]


Model = Mapping[str, Mapping[str, Weights]]
"""Component -> flat name of each of its layers -> its weights."""
Shapes = Mapping[str, Sequence[int]]
"""Name of a tensor, as diffusers or transformers has it -> its shape."""


def model_of(parts: Mapping[str, Shapes]) -> Model:
    """Return the layers of a model's components, those of a UNet by their original names too."""
    return {part: _layers_of(part, shapes) for part, shapes in parts.items()}


def _layers_of(part: str, shapes: Shapes) -> dict[str, Weights]:
    layers = {
        name.removesuffix(".weight"): Weights(name.removesuffix(".weight"), tuple(shape))
        for name, shape in shapes.items()
        if name.endswith(".weight")
    }
    found = {flat(name): weights for name, weights in layers.items()}
    if part == UNET:
        try:
            places = unet_places([f"{name}.weight" for name in layers])
        except ValueError:  # Of another architecture, which has no original.
            return found
        for name, place in places.items():
            original = place.name.removeprefix(ORIGINAL).removesuffix(".weight")
            found.setdefault(flat(original), layers[name.removesuffix(".weight")])
    return found


def header_model(settings: Settings) -> Model | None:
    """Return the layers of the UNet of `--pipe` by its header; None where none is here to read."""
    try:
        if settings.pipe_file is not None:
            return model_of({UNET: unet_shapes(settings, settings.pipe_file)})
        folder = demo_part("pipeline") if settings.pipe == "demo" else local_folder(settings.pipe)
        shapes = None if folder is None else _shapes_in(folder / UNET)
    except (LoadError, ConfigurationError):  # It is said where the pipeline is loaded.
        return None
    return model_of({UNET: shapes}) if shapes else None


def _shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a component's folder; its variants have the same ones."""
    return {
        name: tensor.shape
        for file in folder.glob("*.safetensors")
        for name, tensor in read_header("", file).tensors.items()
    }


def check_fits(given: str, pipe: str, layers: Layers, model: Model) -> None:
    """Raise ConfigurationError for a LoRA of another model.

    Args:
        given: Option and value, for messages.
        pipe: Value of `--pipe`, for messages.
        layers: What the LoRA changes.
        model: The components that are known; a LoRA's layers of others are not compared.
    """
    lacking = []
    for (part, name), layer in layers.items():
        if part not in model:
            continue
        weights = model[part].get(name)
        if weights is None:
            lacking.append((part, layer))
        elif weights.shape != layer.fits:
            raise ConfigurationError(
                f"{given}: is not for --pipe {pipe}: its {layer.name} is for a layer of "
                f"{list(layer.fits)}, and that model's {weights.name} in its {part} has "
                f"{list(weights.shape)}: give a LoRA of that model"
            )
    if lacking:
        part, layer = lacking[0]
        raise ConfigurationError(
            f"{given}: is not for --pipe {pipe}: its {layer.name}, for a layer of "
            f"{list(layer.fits)}, is for none that the model's {part} has ({len(lacking)} of "
            f"{len(layers)} are for none): give a LoRA of that model"
        )
