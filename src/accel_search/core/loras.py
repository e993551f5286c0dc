"""LoRAs: as `--lora` names them, and as a result was measured with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_SCALE = 100.0
"""Largest scale that is taken, of either sign."""
FILE_NAME = "pytorch_lora_weights.safetensors"
"""What diffusers calls the file of a LoRA."""


class AskedLora(NamedTuple):
    """A LoRA as a user names it."""

    name: str
    """A file, a folder, a hub id, or `owner/name/file` of the hub."""
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.name}:{self.scale:g}"


@dataclass(frozen=True)
class Lora:
    """A LoRA that a result was measured with."""

    file: str
    """Its path, or `owner/name/file` of the hub."""
    digest: str
    """First 16 hex digits of a digest of the file's content."""
    scale: float
    revision: str | None = None
    """Commit of the hub repository; None of a local file."""

    def __str__(self) -> str:
        return f"{self.file} ({self.digest}) at {self.scale:g}"


def parse_lora(text: str) -> AskedLora:
    """Parse `FILE_OR_ID` or `FILE_OR_ID:SCALE`; what follows another colon belongs to the name.

    Raises:
        ValueError: The name is empty, or the scale no number that is taken.
    """
    name, colon, end = text.rpartition(":")
    try:
        scale = float(end) if colon else None
    except ValueError:  # A path as of Windows, or a name with a colon.
        scale = None
    if scale is None:
        return AskedLora(text)
    if not name.strip() or not math.isfinite(scale) or abs(scale) > MAX_SCALE:
        raise ValueError(
            f"a .safetensors file, a folder or a hub id, with :SCALE from -{MAX_SCALE:g} to "
            f"{MAX_SCALE:g} behind it or without, e.g. style.safetensors:0.8"
        )
    return AskedLora(name, scale)


def parse_loras(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return one LoRA, or a list of them, in their one spelling; raises as `parse_lora`."""
    return tuple(str(parse_lora(text)) for text in ([given] if isinstance(given, str) else given))


def scales_of(loras: Iterable[Lora] | None) -> list[float]:
    """Return the scales of LoRAs in order of size, by which a pipeline in memory shows them."""
    return sorted(round(lora.scale, 6) for lora in loras or ())


def loading_lines(loras: Sequence[Lora] | None) -> list[str]:
    """Return the lines of Python that load LoRAs into `pipe` as they were measured."""
    if not loras:
        return []
    names = [f"lora_{place}" for place, _ in enumerate(loras)]
    lines = []
    for name, lora in zip(names, loras, strict=True):
        lines += ["pipe.load_lora_weights(", f"    {_source(lora)!r},"]
        for option, value in (_options(lora) | {"adapter_name": name}).items():
            lines.append(f"    {option}={value!r},")
        lines.append(")")
    return [*lines, f"pipe.set_adapters({names!r}, {[lora.scale for lora in loras]!r})"]


def _source(lora: Lora) -> str:
    return lora.file if lora.revision is None else "/".join(lora.file.split("/")[:2])


def _options(lora: Lora) -> dict[str, str]:
    if lora.revision is None:
        return {}
    name = "/".join(lora.file.split("/")[2:])
    return {"weight_name": name, "revision": lora.revision}
