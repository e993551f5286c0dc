"""ToMe by the package `tomesd`: `apply_patch` and `remove_patch`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accel_search.accelerators.packages.leftovers import restored
from accel_search.accelerators.patching import Layer, layered, transformers
from accel_search.accelerators.tome import SEED
from accel_search.core.candidate import Params

LEFT_BEHIND = ("_tome_info", "use_ada_layer_norm", "use_ada_layer_norm_zero")


@contextmanager
def apply(pipe: Any, params: Params) -> Iterator[None]:
    """Patch the pipeline for the length of a `with` block.

    tomesd's generator starts from torch's own at the first merge and lives on; here it starts from
    `SEED` in every call, as after `torch.manual_seed(SEED)`.

    Raises:
        AcceleratorError: The UNet has no transformers.
    """
    import tomesd

    transformers(pipe.unet)
    with restored(pipe.unet.modules(), *LEFT_BEHIND):
        tomesd.apply_patch(pipe, **params)
        try:
            with layered(pipe, _SeededCall()):
                yield
        finally:
            tomesd.remove_patch(pipe)


class _SeededCall(Layer):
    """Lets tomesd's generator start again in every call."""

    def run(self, pipe: Any, /, *args: Any, **kwargs: Any) -> Any:
        import torch

        generator = torch.Generator(pipe._execution_device).manual_seed(SEED)
        pipe.unet._tome_info["args"]["generator"] = generator
        return self.inner(pipe, *args, **kwargs)


def merges(latent_size: tuple[int, int], tokens: int, ratio: float, max_downsample: int) -> bool:
    """Return whether tomesd merges at a level, by its own arithmetic (`compute_merge`)."""
    height, width = latent_size
    downsample = math.ceil(math.sqrt(height * width // tokens))
    return int(tokens * ratio) > 0 and downsample <= max_downsample


def script_lines(params: Params) -> list[str]:
    """Return lines that patch `pipe`."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in params.items())
    return [
        f"torch.manual_seed({SEED})  # tomesd draws from torch's own generator.",
        f"tomesd.apply_patch(pipe, {arguments})",
    ]
