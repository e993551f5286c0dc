"""From prompts to images: noise drawn on the CPU, one pipeline call, a check of what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from accel_search.core.workload import Prompt, Workload
from accel_search.errors import InvalidImage
from accel_search.runtime.devices import execution_device


def prompt_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return a CPU generator for each prompt, seeded with the prompt's own seed."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def initial_noise(
    generators: Sequence[torch.Generator], shape: tuple[int, int, int]
) -> torch.Tensor:
    """Draw each prompt's initial noise from its own generator.

    Drawn on the CPU in float32 whatever the pipeline computes in, so that an image depends on
    neither the device, the dtype nor the batch it is made in.

    Args:
        generators: CPU generators, one a prompt; they move on, and what the scheduler draws
            later (if it draws at all) is not the initial noise again.
        shape: Latent channels, height and width.

    Returns:
        `[B, C, h, w]`, float32, on the CPU.
    """
    return torch.stack([torch.randn(shape, generator=each) for each in generators])


@dataclass(frozen=True)
class Call:
    """One pipeline call, with everything prepared that does not belong to its time."""

    pipe: Any
    arguments: dict[str, Any]

    def __call__(self) -> torch.Tensor:
        """Run the pipeline, from text encoding to decoded image.

        Returns:
            `[B, 3, H, W]`, 0..1, in the pipeline's dtype, on its device.
        """
        vae = getattr(self.pipe, "vae", None)
        dtype = None if vae is None else vae.dtype
        try:
            return self.pipe(**self.arguments).images  # type: ignore[no-any-return]
        except BaseException:
            # SDXL decodes in float32 and casts back afterwards: an interrupt or a lack of memory
            # in between would leave the VAE in float32 for every later image.
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
) -> Call:
    """Prepare one pipeline call for `prompts` as one batch.

    Args:
        pipe: An SD or SDXL pipeline.
        workload: Gives size, guidance and steps; its batch size is not looked at.
        prompts: One image is made for each.
        steps: Denoising steps; None takes the workload's.
        decode: Whether images are decoded; a warm-up can do without.
    """
    channels = pipe.unet.config.in_channels
    generators = prompt_generators([prompt.seed for prompt in prompts])
    noise = initial_noise(generators, (channels, workload.latent_height, workload.latent_width))
    return Call(
        pipe,
        {
            "prompt": [prompt.text for prompt in prompts],
            "height": workload.height,
            "width": workload.width,
            "num_inference_steps": workload.steps if steps is None else steps,
            "guidance_scale": workload.guidance_scale,
            "latents": noise.to(device=execution_device(pipe), dtype=pipe.unet.dtype),
            "generator": generators,
            "output_type": "pt" if decode else "latent",
        },
    )


def generate(
    pipe: Any, workload: Workload, prompts: Sequence[Prompt], steps: int | None = None
) -> torch.Tensor:
    """Make one image for each prompt, in one pipeline call.

    Args:
        pipe: An SD or SDXL pipeline.
        workload: Gives size, guidance and steps; its batch size is not looked at.
        prompts: One image is made for each.
        steps: Denoising steps; None takes the workload's.

    Returns:
        `[B, 3, H, W]`, float32, 0..1, on the pipeline's device.
    """
    return prepare(pipe, workload, prompts, steps)().float()


def check_images(images: torch.Tensor, prompts: Sequence[Prompt], indices: Sequence[int]) -> None:
    """Raise if an image cannot be a picture.

    Args:
        images: `[B, 3, H, W]`.
        prompts: The prompts the images were made for.
        indices: The prompts' indices in their part of the prompt set, for the message.

    Raises:
        InvalidImage: One holds NaN or infinity, or is the same colour everywhere.
    """
    pixels = images.detach().flatten(2)
    finite = torch.isfinite(pixels).all(dim=2).all(dim=1).tolist()
    constant = (pixels.amax(dim=2) == pixels.amin(dim=2)).all(dim=1).tolist()
    for prompt, index, is_finite, is_constant in zip(
        prompts, indices, finite, constant, strict=True
    ):
        if not is_finite or is_constant:
            what = "one colour everywhere" if is_finite else "NaN or infinity"
            raise InvalidImage(f"the image of prompt {index} ({prompt.text[:60]!r}) is {what}")
