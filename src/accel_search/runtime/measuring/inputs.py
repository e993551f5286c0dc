"""The arguments of a pipeline call that its cases give: what rows of a prompts file say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from accel_search.accelerators.patching import Layer
from accel_search.core.tasks import ADAPTER, SCALE, images_of, numbered
from accel_search.core.workload import ImageFile, Input, Prompt, Workload
from accel_search.runtime.loading.cases import is_control, mode_of
from accel_search.runtime.loading.images import read_same


def case_arguments(pipe: Any, workload: Workload, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Return the further arguments of a call, one value a prompt where prompts differ in them.

    Args:
        pipe: The pipeline.
        workload: Gives what is the same in every call.
        prompts: The cases of one batch; all have the same columns.
    """
    arguments: dict[str, Any] = dict(workload.call)
    inputs = [dict(prompt.inputs) for prompt in prompts]
    if "negative_prompt" in inputs[0]:
        arguments["negative_prompt"] = [given["negative_prompt"] for given in inputs]
    elif "negative_prompt" in arguments:  # Of a single text, SD1.5 would make one embedding in all.
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
    nets = sum(is_control(name) for name in inputs[0])
    scales = [arguments.pop(name) for name in numbered(SCALE, nets)]
    if nets:
        arguments[SCALE] = scales[0] if nets == 1 else scales
    for column, argument in images_of(workload.task, nets).items():
        images = [_image(given[column], column) for given in inputs]
        if nets > 1 and is_control(column):
            # One tensor for each ControlNet: not every pipeline takes lists of lists.
            size = {"height": workload.height, "width": workload.width}
            tensor = pipe.control_image_processor.preprocess(images, **size)
            arguments.setdefault(argument, []).append(tensor)
        else:
            arguments[argument] = images
    if ADAPTER in inputs[0]:  # To be given by `OwnImages`.
        arguments[ADAPTER] = [_image(given[ADAPTER], ADAPTER) for given in inputs]
    return arguments


class OwnImages(Layer):
    """Gives each prompt of a call its own image of an IP-Adapter.

    A pipeline takes one for all prompts of a call: of several it would show every prompt all.

    Source:
        diffusers 0.42, `StableDiffusionPipeline.prepare_ip_adapter_image_embeds`, whose place this
        takes: for one prompt it computes the same.
    """

    method = "prepare_ip_adapter_image_embeds"

    def run(self, pipe: Any, /, images: Any, _: Any, device: Any, __: int, guided: bool) -> Any:
        """Return the embeddings of one adapter's images, `[B, 1, …]`, or with guidance `[2B, …]`.

        The unconditional half comes first, as in the UNet's batch.
        """
        from diffusers.models import ImageProjection

        layer = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        hidden = not isinstance(layer, ImageProjection)
        embeds, without = pipe.encode_image(images, device, 1, hidden)
        halves = [without[:, None], embeds[:, None]] if guided else [embeds[:, None]]
        return [torch.cat(halves).to(device=device)]


def _image(file: Input, column: str) -> Any:
    assert isinstance(file, ImageFile)
    return read_same(file, mode_of(column))


def asked_steps(workload: Workload, steps: int | None) -> int:
    """Return the steps to ask the pipeline for.

    From an image on it makes a share of them: of a few, as in a warm-up, one has to be left.

    Args:
        workload: Gives the steps and that share.
        steps: To be made; None asks for all that the workload asks for.
    """
    if steps is None:
        return workload.steps
    return min(workload.steps, math.ceil(steps / workload.strength))
