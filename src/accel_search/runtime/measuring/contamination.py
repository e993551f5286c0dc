"""Prove that the pipeline is still what it was before any accelerator was applied."""

from __future__ import annotations

import logging
from collections.abc import Hashable

import torch
import xxhash

from accel_search.core.candidate import Candidate
from accel_search.errors import ContaminationError


class References:
    """Hashes of what the baseline pipeline made before any candidate touched it.

    Args:
        log: Is told, once, if the baseline pipeline is not reproducible in the first place.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._digests: dict[Hashable, str] = {}
        self._reproducible = True

    def __contains__(self, key: Hashable) -> bool:
        return key in self._digests

    def compare(self, key: Hashable, images: torch.Tensor, last: Candidate | None) -> None:
        """Compare images to the reference of that key, or make them the reference.

        Args:
            key: What tells these images from others: part, batch and batch size.
            images: `[B, 3, H, W]`, made by the baseline pipeline.
            last: The candidate that was applied last; None if none ever was, when a difference
                can only mean that the pipeline is not reproducible: warned of, and no longer
                compared.

        Raises:
            ContaminationError: They differ in any bit.
        """
        # Beside every timed call: SHA-256 would take 20 ms of a picture of 1,024 pixels, this 2.
        digest = xxhash.xxh3_128_hexdigest(images.cpu().contiguous().numpy().data)
        if not self._reproducible or self._digests.setdefault(key, digest) == digest:
            return
        if last is not None:
            raise ContaminationError(
                f"the baseline pipeline's images are no longer bit-identical after {last}: "
                f"{' or '.join(last)} leaves the pipeline changed, so no later measurement could "
                "be trusted; leave it out of --targets and report it"
            )
        self._reproducible = False
        self._log.warning(
            "the baseline pipeline does not make the same image twice on this device: whether an "
            "accelerator leaves it changed cannot be checked"
        )
