"""Load a pipeline from one file, through diffusers' `from_single_file`.

diffusers reports no missing tensors here either, and would fetch its configurations; so the file
is compared with what its configurations ask for, and those are derived from it.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from accel_search.core.tasks import TEXT
from accel_search.errors import LoadError
from accel_search.runtime.loading.pipeline_folder import VaeFolder, check_name, find_vae
from accel_search.runtime.loading.single_file.config import configs, scheduler_config, vae_prefix
from accel_search.runtime.loading.single_file.header import (
    Header,
    architecture,
    prediction,
    read_header,
)
from accel_search.runtime.loading.single_file.names import (
    TEXT_ENCODERS,
    Place,
    text_places,
    unet_name,
    unet_places,
    vae_places,
)
from accel_search.runtime.loading.single_file.vocabulary import PADS, clip_tokenizer
from accel_search.settings import Settings

SHOWN = 3
"""Tensors that a message names."""


@dataclass(frozen=True)
class PipelineFile:
    """A pipeline in one file, its header checked."""

    path: Path
    architecture: str
    """`SD1.5`, `SD2.1` or `SDXL`."""
    header: Header
    configs: Mapping[str, Mapping[str, Any]]
    """Component with weights -> its configuration; its own VAE's too where `vae` replaces it."""
    scheduler: Mapping[str, Any]
    """As in a folder's `scheduler_config.json`, with its class."""
    vae: VaeFolder | None = None
    """Replaces the file's own VAE."""
    adapters: Mapping[str, Any] | None = None
    """As of a folder."""
    revision: ClassVar[None] = None
    has_safety_checker: ClassVar[bool] = False

    @property
    def pipeline_class(self) -> str:
        """Return the diffusers class of the pipeline."""
        return f"StableDiffusion{'XL' if self.architecture == 'SDXL' else ''}Pipeline"

    @property
    def files(self) -> tuple[Path, ...]:
        """Return all that is loaded."""
        return (self.path,)

    @property
    def half_parts(self) -> tuple[str, ...]:
        """Return the components whose weights are in half precision."""
        parts = [part for part in self.configs if part != "vae" or self.vae is None]
        return tuple(part for part in parts if self._dtype(part) != "F32")

    def _dtype(self, part: str) -> str:
        """Return the most frequent dtype of a component's tensors."""
        prefixes = {name: prefix for name, (_, prefix) in TEXT_ENCODERS[self.architecture].items()}
        prefix = prefixes | {"unet": "model.diffusion_model."}
        own = prefix[part] if part != "vae" else vae_prefix(self.header)
        dtypes = [
            tensor.dtype for name, tensor in self.header.tensors.items() if name.startswith(own)
        ]
        return max(set(dtypes), key=dtypes.count)

    @property
    def scaling_factor(self) -> float:
        """Return the scaling factor of the latents that the UNet was trained on."""
        return 0.13025 if self.architecture == "SDXL" else 0.18215

    @property
    def pixels_per_latent(self) -> int:
        """Return the pixels per side of a latent by its own VAE, else 8."""
        own = self.configs.get("vae")
        return 8 if own is None else int(2 ** (len(own["block_out_channels"]) - 1))


def check_file(settings: Settings, task: str = TEXT) -> None:
    """Raise the error of a `--pipe` that is no name, or a file that cannot be loaded.

    Before torch is imported, which takes seconds.

    Raises:
        LoadError: It is not there, or no whole model that can be searched; the message says what
            it is.
        ConfigurationError: It needs `--prediction_type`.
    """
    if settings.replay is None:
        check_name(settings.pipe)
    if settings.pipe_file is not None:
        _opened(settings, settings.pipe_file, task)


def open_file(
    settings: Settings, half: bool, log: logging.Logger, task: str = TEXT
) -> PipelineFile | None:
    """Return the checked file of `--pipe`; None where that is no file.

    Args:
        settings: Give `pipe`, `prediction_type` and `vae`.
        half: Whether a VAE's half-precision files are preferred.
        log: Gets what is fetched.
        task: What pictures are made of.

    Raises:
        LoadError: It is no whole model that can be searched; the message says what it is.
        ConfigurationError: It needs `--prediction_type`.
    """
    if settings.pipe_file is None:
        return None
    header, name, parts, scheduler = _opened(settings, settings.pipe_file, task)
    # Before gigabytes are read: a mistake there shows first.
    vae = None if settings.vae is None else find_vae(settings.vae, half, log)
    return PipelineFile(header.path, name, header, parts, scheduler, vae)


def _opened(
    settings: Settings, path: Path, task: str
) -> tuple[Header, str, dict[str, dict[str, Any]], dict[str, Any]]:
    given = f"--pipe {settings.pipe}"
    header = read_header(given, path)
    name = architecture(given, header, task)
    trained = prediction(given, header, name, settings.prediction_type)
    parts = configs(given, header, name, trained)
    if "vae" not in parts and settings.vae is None:
        raise LoadError(f"{given}: holds no VAE: give one with --vae")
    return header, name, parts, scheduler_config(name, trained)


def unet_shapes(settings: Settings, path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a file's UNet, by its name in diffusers.

    Raises:
        LoadError: It is no whole model that can be searched.
        ConfigurationError: It needs `--prediction_type`.
    """
    header, _, parts, _ = _opened(settings, path, TEXT)
    names = {name: unet_name(name, parts["unet"]["layers_per_block"]) for name in header.tensors}
    return {ours: header.tensors[name].shape for name, ours in names.items() if ours is not None}


def load_file(given: str, file: PipelineFile, dtype: Any, scheduler: Any, vae: Any) -> Any:
    """Return the pipeline of a file, on the CPU.

    Args:
        given: Option and value, for messages.
        file: The file.
        dtype: torch's dtype of all weights.
        scheduler: The pipeline's.
        vae: Replaces its own VAE; None keeps that.

    Raises:
        LoadError: It lacks tensors, or they are of other shapes than a part needs.
    """
    import diffusers

    own = {part: config for part, config in file.configs.items() if part != "vae" or vae is None}
    for part, config in own.items():
        _check_complete(given, file, part, config)
    tokenizers = {name: clip_tokenizer(pad) for name, pad in PADS[file.architecture].items()}
    is_xl = file.architecture == "SDXL"
    with tempfile.TemporaryDirectory(prefix="accel-search-") as folder:
        _write_configs(Path(folder), file, [*own, *tokenizers, *(["vae"] if vae else [])])
        return getattr(diffusers, file.pipeline_class).from_single_file(
            str(file.path),
            config=folder,
            local_files_only=True,
            torch_dtype=dtype,
            scheduler=scheduler,
            **tokenizers,
            **({} if vae is None else {"vae": vae}),
            **({"add_watermarker": False} if is_xl else {"safety_checker": None}),
        )


def _write_configs(folder: Path, file: PipelineFile, parts: list[str]) -> None:
    """Write the folder of configurations that `from_single_file` reads."""
    index: dict[str, Any] = {
        "_class_name": file.pipeline_class,
        "scheduler": ["diffusers", file.scheduler["_class_name"]],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    if file.architecture == "SDXL":
        index["force_zeros_for_empty_prompt"] = True
    else:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    for part in parts:
        config = file.configs.get(part, {})
        if part.startswith("tokenizer"):
            index[part] = ["transformers", "CLIPTokenizer"]
        elif part.startswith("text_encoder"):
            index[part] = ["transformers", config["architectures"][0]]
        else:
            index[part] = ["diffusers", config.get("_class_name", "AutoencoderKL")]
        if config:
            (folder / part).mkdir()
            (folder / part / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def _check_complete(given: str, file: PipelineFile, part: str, config: Mapping[str, Any]) -> None:
    """Raise LoadError for tensors of a component that the file lacks or has in other shapes."""
    wanted = {name: tuple(tensor.shape) for name, tensor in empty_model(part, config).items()}
    lacking, others = [], []
    for name, place in places(file.architecture, part, wanted, file.header).items():
        tensor = file.header.tensors.get(place.name)
        if tensor is None:
            lacking.append(place.name)
        elif not _fits(tensor.shape, wanted[name], place):
            others.append(f"{place.name} {list(tensor.shape)}")
    for tensors, what in (
        (lacking, "lacks {} of the tensors that its {} needs"),
        (others, "has {} tensors of other shapes than its {} needs"),
    ):
        if tensors:
            shown = sorted(set(tensors))
            more = ", …" if len(shown) > SHOWN else ""
            raise LoadError(
                f"{given}: {what.format(len(shown), part)} ({', '.join(shown[:SHOWN])}{more}): "
                "fetch it again, or give a pipeline folder"
            )


def places(
    name: str, part: str, tensors: Mapping[str, Any], header: Header | None = None
) -> dict[str, Place]:
    """Return where each tensor of a component is in the file.

    Args:
        name: Architecture.
        part: Component.
        tensors: Those of the component, by their names in diffusers or transformers.
        header: Says which prefix a VAE's tensors have.
    """
    if part == "unet":
        return unet_places(tensors)
    if part == "vae":
        return vae_places(tensors) if header is None else vae_places(tensors, vae_prefix(header))
    return text_places(tensors, *TEXT_ENCODERS[name][part])


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...], place: Place) -> bool:
    if place.is_transposed:
        shape = shape[::-1]
    if place.third is not None:
        return len(shape) == len(wanted) and shape == (3 * wanted[0], *wanted[1:])
    # A VAE's attention is a convolution of one pixel in the original, a matrix in diffusers.
    return shape == wanted or (shape[: len(wanted)] == wanted and set(shape[len(wanted) :]) == {1})


def empty_model(part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of a component of a configuration, without memory for them."""
    import diffusers
    import torch
    import transformers

    with torch.device("meta"):
        if part.startswith("text_encoder"):
            cls = getattr(transformers, config["architectures"][0])
            model = cls(transformers.CLIPTextConfig(**config))
        else:
            cls = getattr(diffusers, config["_class_name"])
            model = cls.from_config(dict(config))
    return dict(model.state_dict())
