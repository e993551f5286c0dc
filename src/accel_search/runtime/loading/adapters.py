"""What acts on a pipeline beside its own parts: ControlNets and an IP-Adapter; and its class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accel_search.core.tasks import TEXT, class_of
from accel_search.runtime.loading.controlnets import ControlNet, find_controlnet, load_controlnets
from accel_search.runtime.loading.ip_adapters import IPAdapter, find_ip_adapter, load_ip_adapter
from accel_search.settings import Settings


@dataclass(frozen=True)
class Adapters:
    """What was found of them."""

    controlnets: Sequence[ControlNet]
    ip_adapter: IPAdapter | None
    scale: float
    """How strongly the IP-Adapter acts."""

    @property
    def names(self) -> dict[str, str] | None:
        """Return the fields of a provenance that tell them; None where there are none."""
        names = {}
        if self.controlnets:
            names["controlnet"] = ", ".join(map(str, self.controlnets))
        if self.ip_adapter is not None:
            names["ip_adapter"] = f"{self.ip_adapter.name} × {self.scale:g}"
        return names or None


def find_adapters(settings: Settings, half: bool, log: logging.Logger) -> Adapters:
    """Return what `--controlnet` and `--ip_adapter` name, checked.

    Args:
        settings: The options.
        half: Whether half-precision files are preferred where both exist.
        log: Gets what is fetched.

    Raises:
        LoadError: One cannot be found, fetched or safely loaded.
    """
    name = settings.ip_adapter
    return Adapters(
        [find_controlnet(net, half, log) for net in settings.controlnet],
        None if name is None else find_ip_adapter(name, half, log),
        settings.ip_adapter_scale,
    )


def as_task(pipe: Any, task: str, adapters: Adapters, half: bool, dtype: Any) -> Any:
    """Return a pipeline of a task's class, made of the parts of a text-to-image one.

    Args:
        pipe: The text-to-image pipeline, in main memory.
        task: One of `tasks.TASKS`.
        adapters: Hold its ControlNets, if it has any.
        half: As in `find_adapters`.
        dtype: Of the ControlNets' weights.

    Raises:
        LoadError: A ControlNet cannot be loaded, or is for another UNet.
    """
    if task == TEXT:
        return pipe
    import diffusers

    parts = pipe.components
    if adapters.controlnets:
        parts["controlnet"] = load_controlnets(adapters.controlnets, pipe.unet, half, dtype)
    text_class = type(pipe).__name__
    cls = getattr(diffusers, class_of(task, text_class))
    if text_class == "StableDiffusionPipeline":
        return cls(**parts, requires_safety_checker=False)
    zeros = pipe.config.force_zeros_for_empty_prompt
    return cls(**parts, add_watermarker=False, force_zeros_for_empty_prompt=zeros)


def with_adapters(pipe: Any, adapters: Adapters, half: bool, dtype: Any) -> Any:
    """Return the pipeline with its IP-Adapter, if there is one; raises as `load_ip_adapter`."""
    # Before: it takes the attention processors of an adapter off.
    pipe.disable_attention_slicing()
    if adapters.ip_adapter is not None:
        load_ip_adapter(pipe, adapters.ip_adapter, adapters.scale, half, dtype)
    return pipe
