"""Detect what accelerators leave behind in a pipeline."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence

import torch
import xxhash

from accel_search.core.candidate import Candidate
from accel_search.core.workload import Prompt, Workload
from accel_search.errors import ContaminationError
from accel_search.runtime.measuring.calls import Caller


class References:
    """Hashes of the images that the baseline pipeline made before the first candidate.

    Args:
        log: Gets one warning if the baseline pipeline is not reproducible.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._digests: dict[Hashable, str] = {}
        self._reproducible = True

    def __contains__(self, key: Hashable) -> bool:
        return key in self._digests

    def compare(self, key: Hashable, images: torch.Tensor, last: Candidate | None) -> None:
        """Compare images to the reference of that key, or store them as the reference.

        Args:
            key: Identifies the images: part, batch and batch size.
            images: `[B, 3, H, W]`, made by the baseline pipeline.
            last: The candidate that was applied last. Without one, a difference means that the
                pipeline is not reproducible: comparing ends with a warning.

        Raises:
            ContaminationError: They differ in any bit.
        """
        # A fast hash: SHA-256 would take 20 ms per image of 1,024 pixels, xxhash takes 2.
        digest = xxhash.xxh3_128_hexdigest(images.cpu().contiguous().numpy().data)
        if not self._reproducible or self._digests.setdefault(key, digest) == digest:
            return
        if last is not None:
            raise ContaminationError(
                f"the baseline pipeline's images are no longer bit-identical after {last}: "
                f"{' or '.join(last)} leaves the pipeline changed, so later measurements would be "
                "wrong; leave it out of --targets and report it"
            )
        self._reproducible = False
        self._log.warning(
            "the baseline pipeline does not make the same image twice on this device, so what an "
            "accelerator leaves behind cannot be detected"
        )


class Sentinel:
    """Checks a pipeline by one image.

    Args:
        caller: Calls the pipeline.
        references: Holds what the image was.
        prompts: A single prompt. One image fits the device at any batch size, if any does.
    """

    def __init__(self, caller: Caller, references: References, prompts: Sequence[Prompt]) -> None:
        self._caller = caller
        self._references = references
        self._prompts = prompts

    def check(self, workload: Workload) -> None:
        """Check the whole image; raises as `References.compare`."""
        images, _ = self._caller.call(workload, self._prompts)
        self._references.compare("sentinel", images, self._caller.last_applied)

    def glance(self, workload: Workload) -> None:
        """Check a few steps of it; raises as `References.compare`."""
        if "glance" not in self._references and self._caller.last_applied is not None:
            self.check(workload)
        latents = self._caller.glance(workload, self._prompts)
        self._references.compare("glance", latents, self._caller.last_applied)
