"""Read what a file says of itself, and refuse what is no whole Stable Diffusion model.

Nothing here reads a weight or loads torch: a mistake shows at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from accel_search.core.tasks import TEXT
from accel_search.errors import ConfigurationError, LoadError, first_line
from accel_search.runtime.loading.single_file.names import TEXT_ENCODERS, UNET, VAES

CONV_IN = f"{UNET}input_blocks.0.0.weight"
CONV_OUT = f"{UNET}out.2.weight"
PIXELS_OF_SD2 = {"epsilon": 512, "v_prediction": 768}
"""What a model predicts -> the size it was trained for, of Stability AI's two SD2.1."""

_PREDICTIONS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction"}
"""`modelspec.prediction_type` -> what diffusers calls it."""
_V_ARCHITECTURE, _EPSILON_ARCHITECTURE = "stable-diffusion-v2-768-v", "stable-diffusion-v2-512"
_SCALES = (".scale_weight", ".weight_scale", ".quant_state.bitsandbytes__nf4")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


class Tensor(NamedTuple):
    """A tensor as the header describes it."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it, e.g. `F16`."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    def has(self, *beginnings: str) -> bool:
        """Return whether the name of any tensor begins so."""
        return any(name.startswith(beginnings) for name in self.tensors)


def read_header(given: str, path: Path) -> Header:
    """Return the header of a .safetensors file.

    Args:
        given: Option and value, for messages.
        path: The file.

    Raises:
        LoadError: It is truncated, corrupt or of another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            tensors = {
                name: Tensor(tuple(part.get_shape()), str(part.get_dtype()))
                for name, part in parts.items()
            }
            return Header(path, tensors, dict(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError) as error:
        raise LoadError(f"{given}: {_why_unreadable(path, error)}") from error


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as unreadable:
        return f"cannot be read ({first_line(unreadable, 120)}): make it readable, or copy it again"
    if start.startswith((_ZIP, _PICKLE)):
        return (
            "is a pickle under the name of a .safetensors file, and a pickle can run code: rename "
            "it to .ckpt and give that, and the line will say how to convert it"
        )
    if start.startswith(b"vers"):  # Of a pointer of Git LFS.
        return "is a pointer of Git LFS and not the file itself: fetch it with git lfs pull"
    if path.suffix.lower() != ".safetensors":
        return (
            f"is no .safetensors file ({first_line(error, 120)}): give one, a pipeline folder or a "
            "hub id"
        )
    return f"is truncated or corrupt ({first_line(error, 120)}): remove it, and fetch it again"


def architecture(given: str, header: Header, task: str = TEXT) -> str:
    """Return which of `SD1.5`, `SD2.1` and `SDXL` a file holds, for a task.

    Raises:
        LoadError: None of them, or not one that draws from text alone; the message says what.
    """
    if CONV_IN not in header.tensors:
        raise LoadError(f"{given}: {_what_else(header)}")
    if CONV_OUT not in header.tensors:
        raise LoadError(f"{given}: lacks {CONV_OUT}, so it is incomplete: fetch it again")
    if any(len(header.tensors[name].shape) != 4 for name in (CONV_IN, CONV_OUT)):
        raise LoadError(
            f"{given}: the ends of its UNet are no convolutions, so it is of another architecture "
            "than SD1.5, SD2.1 and SDXL: give one of theirs"
        )
    taken, made = header.tensors[CONV_IN].shape[1], header.tensors[CONV_OUT].shape[0]
    if taken != made and not (task == "inpaint" and taken == 2 * made + 1):
        kind = {9: "an inpainting model", 8: "an editing model", 5: "a depth model"}.get(taken)
        raise LoadError(
            f"{given}: is {kind or 'an upscaling model or the like'}, whose UNet takes {taken} "
            f"channels and makes {made}; "
            + (
                "give images and masks in the prompts file (--pipe_class inpaint)"
                if kind == "an inpainting model"
                else "only models that draw from text alone can be searched: give the base model"
            )
        )
    refused = {
        "conditioner.embedders.0.model.": "is SDXL's refiner, which does not draw from text alone: "
        "give the base model",
        "edm_": "was trained with another noise than Stable Diffusion's (EDM), which DDIM, "
        "DPM-Solver++ and UniPC cannot remove: it cannot be searched",
        f"{UNET}label_emb.weight": "draws classes, as upscaling models do; only models that draw "
        "from text alone can be searched: give the base model",
        "control_model.": "is a ControlNet: give the model that it is for",
    }
    for beginning, what in refused.items():
        if header.has(beginning):
            raise LoadError(f"{given}: {what}")
    if _is_quantised(header):
        raise LoadError(
            f"{given}: its weights are quantised, and mean nothing without their scales: give the "
            "same model in half or single precision"
        )
    for name, encoders in TEXT_ENCODERS.items():
        if all(header.has(prefix) for _, prefix in encoders.values()):
            return name
    raise LoadError(
        f"{given}: holds a UNet but not the text encoders of SD1.5, SD2.1 or SDXL, so it is no "
        "whole model: give the whole checkpoint, or a pipeline folder"
    )


def _is_quantised(header: Header) -> bool:
    """Return whether weights of the UNet are whole numbers, or have scales beside them.

    diffusers would take such numbers as they are.
    """
    return any(
        name.startswith(UNET) and (tensor.dtype.startswith(("I", "U")) or name.endswith(_SCALES))
        for name, tensor in header.tensors.items()
    )


def _what_else(header: Header) -> str:
    """Return what a file without Stable Diffusion's UNet is, and what to do."""
    is_lora = any(re.search(r"(^|\.)(lora|hada_|lokr_)", name) for name in header.tensors)
    if is_lora:
        return _LORA
    for beginnings, what in _OTHERS.items():
        if header.has(*beginnings):
            return what
    shown = ", ".join(list(header.tensors)[:2]) or "nothing"
    return (
        f"is no checkpoint of Stable Diffusion (it holds {shown[:120]}): give one of SD1.5, SD2.1 "
        "or SDXL, or a pipeline folder"
    )


_LORA = "is a LoRA and not a whole model: give it to --lora, and the model that it is for to --pipe"
_WHOLE = "give the whole checkpoint, or a pipeline folder"
_TRANSFORMERS = ("joint_blocks.", "double_blocks.", "transformer_blocks.")
_OTHERS = {
    (
        *_TRANSFORMERS,
        *(UNET + blocks for blocks in _TRANSFORMERS),
    ): "is a diffusion transformer, as "
    "Stable Diffusion 3 and Flux are; only SD1.5, SD2.1 and SDXL can be searched: give one of "
    "theirs",
    ("control_model.", "controlnet_"): "is a ControlNet: give the model that it is for",
    (UNET,): "is of an architecture other than SD1.5's, SD2.1's and SDXL's, which alone can be "
    "searched: give one of theirs",
    ("down_blocks.", "input_blocks."): f"is a UNet alone, without VAE and text encoders: {_WHOLE}",
    ("encoder.down", "decoder.up", *VAES): "is a VAE alone and not a whole model: give the model "
    "to --pipe, and the VAE as a folder to --vae",
    ("emb_params", "clip_l", "clip_g"): "is a textual inversion: give the model that it is for",
    (
        "text_model.",
        "cond_stage_model.",
        "conditioner.",
    ): f"is a text encoder alone: {_WHOLE}",
}
"""Beginnings of tensors' names -> what the file is, and what to do; the first that fits counts."""


class Prediction(NamedTuple):
    """What a model was trained to predict."""

    type: str
    """`epsilon` or `v_prediction`."""
    is_zero_snr: bool
    """Whether its last timestep is noise alone (zero terminal signal-to-noise ratio)."""


def prediction(given: str, header: Header, name: str, told: str | None) -> Prediction:
    """Return what a model predicts: as the user says, else as the file does.

    Args:
        given: Option and value, for messages.
        header: The file's.
        name: Its architecture.
        told: Value of `--prediction_type`, if any.

    Raises:
        ConfigurationError: Neither says it, and the architecture is published with both.
    """
    kind = told or _stated(header)
    if kind is None and name == "SD2.1":
        raise ConfigurationError(
            f"{given}: is of SD2.x, of which there are two kinds, and the file does not say which: "
            "give --prediction_type v_prediction (models of 768 pixels) or epsilon (of 512)"
        )
    kind = kind or "epsilon"
    return Prediction(kind, kind == "v_prediction" and "ztsnr" in header.tensors)


def _stated(header: Header) -> str | None:
    """Return what a file says that it predicts; None where it says nothing."""
    if "v_pred" in header.tensors:
        return "v_prediction"
    stated = header.metadata.get("modelspec.prediction_type", "").lower()
    if stated in _PREDICTIONS:
        return _PREDICTIONS[stated]
    named = header.metadata.get("modelspec.architecture", "").lower()
    if named.startswith(_V_ARCHITECTURE):
        return "v_prediction"
    return "epsilon" if named.startswith(_EPSILON_ARCHITECTURE) else None
