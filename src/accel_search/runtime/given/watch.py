"""Watch one call of a pipeline: what it is, nothing but a call can tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from accel_search.accelerators.patching import Layer, layered
from accel_search.errors import AccelSearchError, BaselineError, ConfigurationError, first_line


@dataclass(frozen=True)
class Watched:
    """What one call for a single image did."""

    pictures: torch.Tensor
    """`[1, 3, H, W]`."""
    unet_calls: int
    rows: int
    """Rows of the UNet's input: two with guidance."""
    latent_size: tuple[int, int]
    """Height and width of the UNet's input."""


class _Count(Layer):
    """Counts calls, and keeps the shape of the last one's first argument."""

    def __init__(self) -> None:
        self.calls = 0
        self.shape: tuple[int, ...] = ()

    def run(self, owner: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        sample = args[0] if args else kwargs.get("sample")
        self.shape = tuple(getattr(sample, "shape", ()))
        return self.inner(owner, *args, **kwargs)


def watch(pipe: Any, call: Callable[[], torch.Tensor]) -> Watched:
    """Make one call for a single image, and tell what it did.

    Raises:
        BaselineError: It raised.
        ConfigurationError: It is no single call of this pipeline, or its UNet was not called.
    """
    unet, whole = _Count(), _Count()
    try:
        with layered(pipe.unet, unet), layered(pipe, whole):
            pictures = call()
    except AccelSearchError:
        raise
    except Exception as error:  # Pipelines raise many classes.
        raise BaselineError(f"a call of the pipeline raised {first_line(error)}") from error
    if whole.calls != 1:
        raise ConfigurationError(
            f"generate: called the pipeline {whole.calls} times; call it once, for all cases"
        )
    if len(unet.shape) != 4:
        raise ConfigurationError("the pipeline's UNet was not called: nothing can be accelerated")
    return Watched(pictures, unet.calls, unet.shape[0], (unet.shape[2], unet.shape[3]))
