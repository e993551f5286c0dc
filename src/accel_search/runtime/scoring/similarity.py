"""Compare accelerated images with the baseline's of the same prompt and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MOST_PSNR = 100.0
"""Decibels of two equal images, in place of infinity."""


@dataclass(frozen=True)
class Similarity:
    """Similarity of each image of a batch to its reference."""

    psnr: tuple[float, ...]
    """Peak signal-to-noise ratio in dB, at most `MOST_PSNR`; higher is closer."""
    ssim: tuple[float, ...]
    """Structural similarity, at most 1; higher is closer."""


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Return images as they would be saved.

    Args:
        images: `[B, 3, H, W]`, 0..1.

    Returns:
        `[B, 3, H, W]`, uint8, on the CPU.
    """
    import torch

    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def similarity(images: torch.Tensor, reference: torch.Tensor) -> Similarity:
    """Compare images with their references, both rounded to 8 bits.

    Args:
        images: `[B, 3, H, W]`, 0..1, on the device that compares.
        reference: `[B, 3, H, W]`, uint8, from `to_bytes`.

    Source:
        Wang et al., "Image quality assessment: from error visibility to structural similarity"
        (2004), Gaussian window of width 11, as torchmetrics has it.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    mine = to_bytes(images).to(images.device).float() / 255
    theirs = reference.to(images.device).float() / 255
    error = (mine - theirs).square().flatten(1).mean(dim=1)
    psnr = (-10 * error.clamp(min=10 ** (-MOST_PSNR / 10)).log10()).tolist()
    ssim: Any = structural_similarity_index_measure(mine, theirs, data_range=1.0, reduction="none")
    return Similarity(tuple(psnr), tuple(ssim.reshape(-1).tolist()))
