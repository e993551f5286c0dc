"""What a pipeline makes pictures of: a text alone, or images too."""

from __future__ import annotations

import re
from collections.abc import Mapping

CONTROL = "control_image"
"""Column of the first ControlNet's images; those of others are `control_image_2`, …."""
SCALE = "controlnet_conditioning_scale"
"""Argument of a call: how strongly a ControlNet acts; among a workload's those of further ones are
`controlnet_conditioning_scale_2`, …."""
ADAPTER = "ip_adapter_image"
"""Column of an IP-Adapter's images, which any pipeline may have beside its own."""
IMAGES: Mapping[str, Mapping[str, str]] = {
    "text2img": {},
    "img2img": {"image": "image"},
    "inpaint": {"image": "image", "mask": "mask_image"},
    "controlnet": {CONTROL: "image"},
    "controlnet_img2img": {"image": "image", CONTROL: CONTROL},
    "controlnet_inpaint": {"image": "image", "mask": "mask_image", CONTROL: CONTROL},
}
"""Task, as `--pipe_class` names it -> column of the prompts file -> argument of the call."""
TASKS = tuple(IMAGES)
TEXT = "text2img"
CONTROLLED = {TEXT: "controlnet"} | {task: f"controlnet_{task}" for task in ("img2img", "inpaint")}
"""Task -> the same with ControlNets."""
_INFIX = {
    "text2img": "",
    "img2img": "Img2Img",
    "inpaint": "Inpaint",
    "controlnet": "ControlNet",
    "controlnet_img2img": "ControlNetImg2Img",
    "controlnet_inpaint": "ControlNetInpaint",
}
"""Task -> what the names of its classes say."""
_FAMILIES = ("StableDiffusionXL", "StableDiffusion")


def class_of(task: str, text_class: str) -> str:
    """Return the diffusers class of a task, of the family of a text-to-image class."""
    return f"{text_class.removesuffix('Pipeline')}{_INFIX[task]}Pipeline"


def text_class_of(class_name: str) -> str | None:
    """Return the text-to-image class of the family of a class; None of one that is no task's."""
    for family in _FAMILIES:
        text_class = f"{family}Pipeline"
        if class_name in {class_of(task, text_class) for task in TASKS}:
            return text_class
    return None


def task_of(class_name: str) -> str:
    """Return the task of a class; that of text to image for a class that is none's."""
    classes = {class_of(task, f"{family}Pipeline"): task for task in TASKS for family in _FAMILIES}
    return classes.get(class_name, TEXT)


def takes_noise(task: str) -> bool:
    """Return whether the pipeline begins with noise alone, which its caller may give."""
    return "image" not in IMAGES[task]


def is_controlled(task: str) -> bool:
    """Return whether ControlNets act on a pipeline."""
    return CONTROL in IMAGES[task]


def numbered(name: str, count: int) -> list[str]:
    """Return the names of what there are several of: `name`, `name_2`, …."""
    return [name if number == 1 else f"{name}_{number}" for number in range(1, count + 1)]


def images_of(task: str, nets: int = 1) -> dict[str, str]:
    """Return column -> argument of the call, of all images of a task with so many ControlNets."""
    return {
        name: argument
        for column, argument in IMAGES[task].items()
        for name in (numbered(column, nets) if column == CONTROL else [column])
    }


def with_scale(text: str) -> tuple[str, float]:
    """Return name and scale of a ControlNet given as `NAME` or `NAME:SCALE`.

    Raises:
        ValueError: The scale is out of range.
    """
    name, colon, scale = text.rpartition(":")
    if not (colon and name and re.fullmatch(r"[0-9]*\.?[0-9]+", scale)):
        return text, 1.0
    if not float(scale) <= 10:
        raise ValueError(f"a scale from 0 to 10 behind the colon of {text}")
    return name, float(scale)
