"""Digests of what is in memory: a pipeline's weights and configurations, and a call's arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import xxhash

from accel_search.core.workload import IN_MEMORY

_Plain = bool | int | float | str


def digest_of_pipeline(pipe: Any) -> str:
    """Return the digest of all parts of a pipeline but its scheduler; nothing is changed.

    Adapters count, with their scales and whether they are active; so do attention processors.
    Weights that hooks keep elsewhere (sequential offloading) count by their shapes alone.

    Args:
        pipe: A diffusers pipeline, on any device. Its weights pass through main memory, one
            tensor at a time.
    """
    total = xxhash.xxh3_128()
    for name, part in sorted(pipe.components.items()):
        if name == "scheduler":
            continue
        _add(total, name, type(part).__name__, _configuration(part))
        if isinstance(part, torch.nn.Module):
            for key, tensor in sorted(part.state_dict().items()):
                _add(total, key, digest_of(tensor))
            for key, module in part.named_modules():
                _add(total, key, _adapters(module))
    return IN_MEMORY + total.hexdigest()[:16]


def _add(total: Any, *texts: Any) -> None:
    total.update(json.dumps(texts, sort_keys=True, default=str).encode())


def _configuration(part: Any) -> dict[str, Any]:
    """Return what a part was made with, but for who saved it."""
    config = getattr(part, "config", None)
    to_dict = getattr(config, "to_dict", None)
    options = config if to_dict is None else to_dict()
    if not isinstance(options, Mapping):
        return {}
    return {name: value for name, value in options.items() if not str(name).startswith("_")}


def _adapters(module: Any) -> dict[str, Any]:
    """Return what decides how a module's adapters take part, beside their weights."""
    names = ("scaling", "active_adapters", "merged_adapters", "disable_adapters")
    found = {name: getattr(module, name) for name in names if hasattr(module, "lora_A")}
    processor = getattr(module, "processor", None)
    if processor is not None:
        found["processor"] = type(processor).__name__
        found["scale"] = getattr(processor, "scale", None)
    return found


def digest_of(tensor: torch.Tensor) -> str:
    """Return the digest of a tensor's type, shape and content; that of one without any has none."""
    kind = f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
    if tensor.is_meta:
        return kind
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return f"{kind} {xxhash.xxh3_128_hexdigest(flat.view(torch.uint8).numpy().data)}"


def described(value: Any) -> _Plain:
    """Return a call's argument as a result's identity holds it: numbers and texts as they are.

    Pictures, tensors and arrays are told apart by their content; other objects by their class, and
    functions by their name.
    """
    if isinstance(value, _Plain):
        return value
    return json.dumps(_parts(value), sort_keys=True)


def _parts(value: Any) -> Any:
    if value is None or isinstance(value, _Plain):
        return value
    if isinstance(value, torch.Tensor):
        return digest_of(value)
    if isinstance(value, Mapping):
        return {str(key): _parts(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_parts(each) for each in value]
    content = getattr(value, "tobytes", None)  # Of Pillow's pictures and of NumPy's arrays.
    if content is not None:
        shape = getattr(value, "shape", None) or getattr(value, "size", None)
        kind = getattr(value, "dtype", None) or getattr(value, "mode", None)
        return f"{type(value).__name__} {kind} {shape} {xxhash.xxh3_128_hexdigest(content())}"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
