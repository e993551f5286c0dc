"""Make images from prompts: draw noise on the CPU, call the pipeline, check the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol

import torch

from accel_search.accelerators.patching import layered
from accel_search.core.tasks import ADAPTER
from accel_search.core.workload import Prompt, Workload
from accel_search.errors import InvalidImage
from accel_search.runtime.devices import execution_device
from accel_search.runtime.measuring.inputs import OwnImages, asked_steps, case_arguments


def prompt_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return a CPU generator for each prompt, seeded with the prompt's own seed."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def initial_noise(
    generators: Sequence[torch.Generator], shape: tuple[int, int, int]
) -> torch.Tensor:
    """Draw each prompt's initial noise from its own generator.

    Always on the CPU in float32, so that an image does not depend on device, dtype or batch.

    Args:
        generators: CPU generators, one per prompt; they advance.
        shape: Latent channels, height and width.

    Returns:
        `[B, C, h, w]`, float32, on the CPU.
    """
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


Call = Callable[[], torch.Tensor]
"""A prepared pipeline call: returns images `[B, 3, H, W]`, 0..1, or latents, on its device."""


class Prepare(Protocol):
    """Prepares a pipeline call, as `prepare` does."""

    def __call__(
        self,
        pipe: Any,
        workload: Workload,
        prompts: Sequence[Prompt],
        steps: int | None = None,
        *,
        decode: bool = True,
    ) -> Call:
        """Return the call; the arguments are those of `prepare`."""


@dataclass(frozen=True)
class PipelineCall:
    """One prepared pipeline call."""

    pipe: Any
    arguments: dict[str, Any]

    def __call__(self) -> torch.Tensor:
        """Run the pipeline, from text and image encoding to decoded image.

        Returns:
            `[B, 3, H, W]`, 0..1, in the pipeline's dtype, on its device.
        """
        vae = getattr(self.pipe, "vae", None)
        dtype = None if vae is None else vae.dtype
        has_adapter = ADAPTER in self.arguments
        own = layered(self.pipe, OwnImages(), OwnImages.method) if has_adapter else nullcontext()
        try:
            with own:
                return self.pipe(**self.arguments).images  # type: ignore[no-any-return]
        except BaseException:
            # SDXL casts its VAE to float32 to decode: undo it where an interrupt or a lack of
            # memory prevents the pipeline from doing so.
            if vae is not None and vae.dtype != dtype:
                vae.to(dtype=dtype)
            raise


def prepare(
    pipe: Any,
    workload: Workload,
    prompts: Sequence[Prompt],
    steps: int | None = None,
    *,
    decode: bool = True,
    further: Mapping[str, Any] | None = None,
) -> PipelineCall:
    """Prepare one pipeline call for `prompts` as one batch.

    Args:
        pipe: An SD or SDXL pipeline.
        workload: Gives size, guidance and steps, not the batch size.
        prompts: One per image.
        steps: UNet calls, about; None asks for the workload's steps.
        decode: Whether to decode the images.
        further: Arguments in place of those that the prompts' cases give.
    """
    if further is None:
        further = case_arguments(pipe, workload, prompts)
    known = signature(type(pipe).__call__).parameters
    generators = prompt_generators([prompt.seed for prompt in prompts])
    arguments = {
        "prompt": [prompt.text for prompt in prompts],
        "height": workload.height,
        "width": workload.width,
        "num_inference_steps": asked_steps(workload, steps),
        "guidance_scale": workload.guidance_scale,
        "generator": generators,
        "output_type": "pt" if decode else "latent",
        **further,
    }
    if "strength" not in known:
        channels = pipe.vae.config.latent_channels
        noise = initial_noise(generators, (channels, workload.latent_height, workload.latent_width))
        arguments["latents"] = noise.to(device=execution_device(pipe), dtype=pipe.unet.dtype)
    else:  # From an image the size follows in some, and the pipeline draws the noise.
        arguments = {name: value for name, value in arguments.items() if name in known}
    return PipelineCall(pipe, arguments)


def check_images(
    images: torch.Tensor,
    prompts: Sequence[Prompt],
    indices: Sequence[int],
    are_baselines: bool = False,
) -> None:
    """Check that images are valid.

    Args:
        images: `[B, 3, H, W]`.
        prompts: Their prompts.
        indices: The prompts' indices in their part, for the message.
        are_baselines: Whether no candidate is to blame.

    Raises:
        InvalidImage: One holds NaN or infinity, or is one colour everywhere.
    """
    pixels = images.detach().flatten(2)
    finite = torch.isfinite(pixels).all(dim=2).all(dim=1).tolist()
    constant = (pixels.amax(dim=2) == pixels.amin(dim=2)).all(dim=1).tolist()
    for prompt, index, is_finite, is_constant in zip(
        prompts, indices, finite, constant, strict=True
    ):
        if not is_finite or is_constant:
            what = "one colour everywhere" if is_finite else "NaN or infinity"
            message = f"the image of prompt {index} ({prompt.text[:60]!r}) is {what}"
            if are_baselines:
                message += (
                    ", made by the baseline pipeline: use --dtype float32 or bfloat16, or fix "
                    "the model"
                )
            raise InvalidImage(message)
