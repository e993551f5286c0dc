"""Which LoRAs are active in a pipeline that someone else loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
"""Those that LoRAs may change."""


def active_scales(pipe: Any) -> list[list[float]]:
    """Return what the scales of a pipeline's active LoRAs may be, in order of size.

    Returns:
        One list, empty without LoRAs; or no list where blocks have scales of their own, which no
        search sets. One that was fused does not show.
    """
    scales: dict[str, set[float]] = {}
    for layer in _layers(pipe):
        for name in layer.active_adapters:
            if name in layer.scaling:
                scale = layer.scaling[name] / (_usual_scaling(layer, name) or 1.0)
                scales.setdefault(name, set()).add(round(scale, 6))
    if any(len(several) > 1 for several in scales.values()):
        return []
    return [sorted(scale for several in scales.values() for scale in several)]


def _layers(pipe: Any) -> Iterator[Any]:
    """Yield the layers of peft's that are switched on."""
    for part in COMPONENTS:
        component: Any = getattr(pipe, part, None)
        for module in component.modules() if hasattr(component, "modules") else ():
            if hasattr(module, "lora_A") and not module.disable_adapters:
                yield module


def _usual_scaling(layer: Any, name: str) -> float:
    """Return the factor of a layer of a LoRA at scale 1, as peft computes it."""
    rank = layer.r[name]
    return float(layer.lora_alpha[name] / (rank**0.5 if layer.use_rslora.get(name) else rank))
