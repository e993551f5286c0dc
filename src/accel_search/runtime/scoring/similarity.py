"""How near an accelerated picture is to the baseline's, from the same prompt and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MOST_PSNR = 100.0
"""Decibels that two equal pictures count as; the logarithm knows no number for them."""


@dataclass(frozen=True)
class Similarity:
    """Likeness of each picture of a batch to its reference."""

    psnr: tuple[float, ...]
    """Peak signal-to-noise ratio in dB, at most `MOST_PSNR`; higher is nearer."""
    ssim: tuple[float, ...]
    """Structural similarity, at most 1; higher is nearer."""


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Return pictures as they would be saved, a quarter of the size.

    Args:
        images: `[B, 3, H, W]`, 0..1.

    Returns:
        `[B, 3, H, W]`, uint8, on the CPU.
    """
    import torch

    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def similarity(images: torch.Tensor, reference: torch.Tensor) -> Similarity:
    """Compare pictures with their references, both rounded to 8 bits.

    Args:
        images: `[B, 3, H, W]`, 0..1, on any device; compared there.
        reference: `[B, 3, H, W]`, uint8, as `to_bytes` returned it.

    Source:
        Wang et al., "Image quality assessment: from error visibility to structural similarity"
        (2004), Gaussian window of width 11, as torchmetrics has it.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    mine = to_bytes(images).to(images.device).float() / 255
    other = reference.to(images.device).float() / 255
    error = (mine - other).square().flatten(1).mean(dim=1)
    psnr = (-10 * error.clamp(min=10 ** (-MOST_PSNR / 10)).log10()).tolist()
    ssim: Any = structural_similarity_index_measure(mine, other, data_range=1.0, reduction="none")
    return Similarity(tuple(psnr), tuple(ssim.reshape(-1).tolist()))
