"""Which layers of a model a LoRA's file changes, read from its header: no weight, no torch.

Trainers name tensors in two ways, which diffusers both loads: kohya's
`lora_unet_mid_block_…_to_q.lora_down.weight` with an `.alpha`, where blocks may have the names of
the original code, and diffusers' and peft's `unet.mid_block.….to_q.lora_A.weight`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from accel_search.errors import ConfigurationError, LoadError
from accel_search.runtime.loading.single_file.header import Header, read_header

UNET = "unet"
_PREFIXES = {
    "lora_unet_": UNET,
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "unet.": UNET,
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
"""Beginning of a tensor's name -> component."""
_HALF = re.compile(
    r"(?P<layer>.+?)(?:\.lora_(?P<kohya>down|up)|\.lora_(?P<peft>[AB])"
    r"|[._]lora\.(?P<old>down|up)|\.lora_linear_layer\.(?P<linear>down|up))\.weight"
)
_OTHER_KINDS = re.compile(r"(^|\.)(hada_|lokr_|oft_|glora_|dora_scale|lora_magnitude|lora_mid)")
_CONFIGURATION = "lora_adapter_metadata"
"""Key of a header under which diffusers keeps peft's configuration."""
_FOREIGN = (
    *("megatron_config", "layer_replication", "modules_to_save", "trainable_token_indices"),
    *("auto_mapping", "lora_bias"),
)
"""Options of peft's that import code by its name, or change more than layers of a LoRA."""


class Layer(NamedTuple):
    """A layer that a LoRA changes: by the product of two matrices, or of two convolutions."""

    name: str
    """Of the tensor that says what it takes, as in the file."""
    down: tuple[int, ...]
    """Shape of that tensor: rank, channels taken, and a convolution's kernel."""
    up: tuple[int, ...]
    """Shape of the other: channels made, rank."""

    @property
    def fits(self) -> tuple[int, ...]:
        """Return the shape of the weights that it can be added to."""
        return (self.up[0], *self.down[1:])


Layers = Mapping[tuple[str, str], Layer]
"""Component and flat name of a layer -> what a LoRA does to it."""


def flat(name: str) -> str:
    """Return the name of a layer in the form that both spellings have in common."""
    return name.replace(".", "_").removeprefix("text_model_")


def read_layers(given: str, path: Path) -> Layers:
    """Return the layers that a LoRA changes.

    Args:
        given: Option and value, for messages.
        path: The file.

    Raises:
        ConfigurationError: It is unreadable, no LoRA, or one that diffusers cannot load.
    """
    try:
        header = read_header(given, path)
    except LoadError as error:
        raise ConfigurationError(str(error)) from error
    _check_configuration(given, header)
    halves: dict[tuple[str, str], dict[bool, str]] = {}
    others = []
    for name in header.tensors:
        match = _HALF.fullmatch(name)
        if match is not None:
            is_down = {match[kind] for kind in ("kohya", "peft", "old", "linear")} & {"down", "A"}
            halves.setdefault(_place(given, match), {})[bool(is_down)] = name
        elif not (name.startswith("lora_") and name.endswith(".alpha")):
            others.append(name)
    _check_kind(given, header, others, is_lora=bool(halves))
    layers = {}
    for place, both in halves.items():
        if len(both) < 2:
            raise ConfigurationError(
                f"{given}: is incomplete: of the two tensors of a layer it holds "
                f"{both.popitem()[1]} alone: fetch it again"
            )
        down, up = (header.tensors[both[is_down]].shape for is_down in (True, False))
        if min(len(down), len(up)) < 2 or len(down) != len(up) or down[0] != up[1]:
            raise ConfigurationError(
                f"{given}: its {both[True]} {list(down)} and {both[False]} {list(up)} do not go "
                "together: fetch it again"
            )
        layers[place] = Layer(both[True], down, up)
    return layers


def _place(given: str, match: re.Match[str]) -> tuple[str, str]:
    """Return the component and the flat name of a layer."""
    layer = match["layer"]
    prefix = next((each for each in _PREFIXES if layer.startswith(each)), None)
    if prefix is None:
        raise ConfigurationError(
            f"{given}: its {match.string} belongs to neither a UNet nor a text encoder of Stable "
            "Diffusion: give a LoRA of the model that --pipe names"
        )
    name = flat(layer.removeprefix(prefix).replace(".processor", ""))
    if match["old"]:  # diffusers' first spelling.
        name = re.sub(r"_to_out$", "_to_out_0", name)
        if prefix.startswith("text"):
            name = re.sub(r"_to_(q|k|v|out)(_0)?$", r"_\1_proj", name)
    return _PREFIXES[prefix], name


def _check_kind(given: str, header: Header, others: list[str], *, is_lora: bool) -> None:
    """Refuse a file with other tensors than those of a LoRA's layers, which diffusers refuses."""
    kind = next((name for name in others if _OTHER_KINDS.search(name)), None)
    if kind is not None:
        raise ConfigurationError(
            f"{given}: is a LoHa, LoKr, DoRA or the like (it holds {kind[:120]}), of which "
            "diffusers loads nothing or a part: give a plain LoRA"
        )
    if not is_lora:
        shown = ", ".join(list(header.tensors)[:2])[:120] or "nothing"
        raise ConfigurationError(f"{given}: is no LoRA (it holds {shown}): give one")
    if others:
        raise ConfigurationError(
            f"{given}: holds {others[0][:120]} beside a LoRA's layers, which diffusers does not "
            "load: give a plain LoRA"
        )


def _check_configuration(given: str, header: Header) -> None:
    """Refuse options of peft's by which a file could have modules imported, or change others."""
    try:
        options: Any = json.loads(header.metadata.get(_CONFIGURATION, "{}"))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{given}: its header's {_CONFIGURATION} is no JSON: fetch it again"
        ) from error
    options = options if isinstance(options, dict) else {_CONFIGURATION: options}
    foreign = [
        name
        for name, value in options.items()
        if value and (name == _CONFIGURATION or name.rpartition(".")[2] in _FOREIGN)
    ]
    if foreign:
        raise ConfigurationError(
            f"{given}: its header asks for {foreign[0][:80]}, which is more than a LoRA: give a "
            "plain one"
        )
