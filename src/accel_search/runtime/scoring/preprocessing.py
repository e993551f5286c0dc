"""open_clip's own preprocessing, applied to batches of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torchvision.transforms import (  # type: ignore[import-untyped]
    CenterCrop,
    Normalize,
    Resize,
)
from torchvision.transforms.functional import resize  # type: ignore[import-untyped]

from accel_search.errors import LoadError

CHOICES = {
    "mode": ("RGB",),
    "resize_mode": ("shortest", "longest", "squash"),
    "interpolation": ("bicubic", "bilinear", "random"),
}
"""Values in a scorer's `preprocess_cfg` that open_clip 3.3 supports."""

Step = Callable[[torch.Tensor], torch.Tensor]
"""Takes and returns images `[B, 3, H, W]`, float32; 0..1 until they are normalised."""


def check_preprocessing(config: Any, given: str) -> None:
    """Raise LoadError for a `preprocess_cfg` that open_clip does not support; it only asserts.

    Args:
        config: Value in a folder's `open_clip_config.json`, if any.
        given: Option and value, for the message.
    """
    if config is None:
        return
    if not isinstance(config, Mapping):
        raise LoadError(f"{given}: its preprocess_cfg is {config!r}; expected an object")
    for key, allowed in CHOICES.items():
        value = config.get(key)
        if value is not None and value not in allowed:
            raise LoadError(
                f"{given}: its preprocess_cfg has {key} {value!r}; expected {' or '.join(allowed)}"
            )
    fill = config.get("fill_color")
    colours = fill if isinstance(fill, list) else [fill] * 3
    if fill is not None and not (len(colours) == 3 and all(map(_is_level, colours))):
        raise LoadError(
            f"{given}: its preprocess_cfg has fill_color {fill!r}; expected a number from 0 to 255 "
            "or three of them"
        )


def batched(transform: Any) -> list[Step]:
    """Return the steps of a model's preprocessing for inference, adapted to batches of tensors.

    Two of open_clip's own expect PIL images: one reads their size, one pads with a colour of 0 to
    255.

    Raises:
        LoadError: A step is unknown, so that its result on tensors is uncertain.
    """
    return [_batched(step) for step in transform.transforms]


def _batched(step: Any) -> Step:
    from open_clip.transform import (
        CenterCropOrPad,
        MaybeConvertMode,
        MaybeToTensor,
        ResizeKeepRatio,
    )

    if isinstance(step, ResizeKeepRatio):
        return partial(_resize_keeping_ratio, step)
    if isinstance(step, CenterCropOrPad):
        return partial(_crop_or_pad, step)
    if isinstance(step, Normalize):
        return lambda images: step(images.clamp(0, 1))
    if isinstance(step, Resize | CenterCrop | MaybeConvertMode | MaybeToTensor):
        return step  # type: ignore[no-any-return]
    raise LoadError(
        f"--clip_model: its preprocessing has a step {type(step).__name__}, which is not known "
        "here: choose another model"
    )


def _resize_keeping_ratio(step: Any, images: torch.Tensor) -> torch.Tensor:
    height, width = images.shape[-2:]
    size = step.get_params(SimpleNamespace(size=(width, height)), step.size, step.longest)
    resized: torch.Tensor = resize(images, size, step.interpolation)
    return resized


def _crop_or_pad(step: Any, images: torch.Tensor) -> torch.Tensor:
    from open_clip.transform import center_crop_or_pad

    # Tensors are padded with one number only, so shift the colour to zero meanwhile.
    fill = images.new_tensor(step.fill).reshape(-1, 1, 1) / 255
    padded: torch.Tensor = center_crop_or_pad(images - fill, step.size) + fill
    return padded


def _is_level(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255
