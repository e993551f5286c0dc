"""Where a file in the original layout keeps each tensor of a diffusers pipeline.

Source:
    The inverse of the mapping in diffusers 0.42, `loaders/single_file_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

UNET = "model.diffusion_model."
VAES = ("first_stage_model.", "vae.")
"""Prefixes of a VAE's tensors; where a file has both, diffusers reads the second."""
CLIP, OPEN_CLIP = "clip", "open_clip"
"""Layouts of a text encoder: OpenAI's, as transformers has it, and open_clip's own."""

TEXT_ENCODERS = {
    "SD1.5": {"text_encoder": (CLIP, "cond_stage_model.transformer.")},
    "SD2.1": {"text_encoder": (OPEN_CLIP, "cond_stage_model.model.")},
    "SDXL": {
        "text_encoder": (CLIP, "conditioner.embedders.0.transformer."),
        "text_encoder_2": (OPEN_CLIP, "conditioner.embedders.1.model."),
    },
}
"""Architecture -> text encoder -> its layout and the prefix of its tensors."""


class Place(NamedTuple):
    """Where a tensor is in the file."""

    name: str
    third: int | None = None
    """0, 1 or 2 where it is the first, second or third part of that tensor's rows."""
    is_transposed: bool = False


_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_places(names: Collection[str]) -> dict[str, Place]:
    """Return the place of each tensor of a UNet2DConditionModel, by its name in diffusers."""
    # Each block is its layers and, but for the last, what changes the resolution.
    layers = 1 + max(int(name.split(".")[3]) for name in names if _is_first_resnet(name))
    attending = {name.split(".")[1] for name in names if re.match(r"up_blocks\.\d+\.att", name)}
    return {name: Place(UNET + _unet_name(name, layers, attending)) for name in names}


def _is_first_resnet(name: str) -> bool:
    return name.startswith("down_blocks.0.resnets.")


def _unet_name(name: str, layers: int, attending: Collection[str]) -> str:
    stem, _, end = name.rpartition(".")
    if stem in _UNET_ENDS:
        return f"{_UNET_ENDS[stem]}.{end}"
    where, _, rest = name.partition(".")
    if where == "mid_block":
        kind, place, inner = rest.split(".", 2)
        position = 2 * int(place) + (kind == "attentions")
        return f"middle_block.{position}.{_unet_inner(kind, inner)}"
    block, kind, place, inner = rest.split(".", 3)
    if where == "down_blocks":
        first = 1 + int(block) * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers}.0.{inner.replace('conv', 'op')}"
        return f"input_blocks.{first + int(place)}.{_inner_of(kind, inner)}"
    first = int(block) * (layers + 1)
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.{1 + (block in attending)}.{inner}"
    return f"output_blocks.{first + int(place)}.{_inner_of(kind, inner)}"


def _inner_of(kind: str, inner: str) -> str:
    return f"{int(kind == 'attentions')}.{_unet_inner(kind, inner)}"


def _unet_inner(kind: str, inner: str) -> str:
    return _renamed(inner, _RESNET) if kind == "resnets" else inner


def unet_name(place: str, layers: int) -> str | None:
    """Return the name in diffusers of a tensor of a UNet; None of one that diffusers lacks.

    The inverse of `unet_places`.

    Args:
        place: Its name in the file.
        layers: Layers of a block, which `layers_per_block` of its configuration says.
    """
    stem, _, end = place.removeprefix(UNET).rpartition(".")
    ends = {theirs: ours for ours, theirs in _UNET_ENDS.items()}
    if stem in ends:
        return f"{ends[stem]}.{end}"
    match = re.fullmatch(
        r"(input|middle|output)_blocks?\.(\d+)(?:\.(\d+))?\.(\D.*)", f"{stem}.{end}"
    )
    if match is None:
        return None
    side, number, position, inner = match.groups()
    if side == "middle":
        kind = "attentions" if number == "1" else "resnets"
        return f"mid_block.{kind}.{int(number) // 2}.{_original(kind, inner)}"
    block, place_in_block = divmod(int(number) - (side == "input"), layers + 1)
    if inner.startswith("op."):
        return f"down_blocks.{block}.downsamplers.0.conv.{end}"
    where = f"{'down' if side == 'input' else 'up'}_blocks.{block}"
    if inner.startswith("conv."):
        return f"{where}.upsamplers.0.{inner}"
    kind = "resnets" if position == "0" else "attentions"
    return f"{where}.{kind}.{place_in_block}.{_original(kind, inner)}"


def _original(kind: str, inner: str) -> str:
    table = {theirs: ours for ours, theirs in _RESNET.items()} if kind == "resnets" else {}
    return _renamed(inner, table)


def _renamed(name: str, table: dict[str, str]) -> str:
    """Return a tensor's name with the layer that it belongs to renamed."""
    layer, _, end = name.rpartition(".")
    return f"{table.get(layer, layer)}.{end}"


def vae_places(names: Collection[str], prefix: str = VAES[0]) -> dict[str, Place]:
    """Return the place of each tensor of an AutoencoderKL, by its name in diffusers."""
    blocks = 1 + max(int(name.split(".")[2]) for name in names if ".down_blocks." in name)
    return {name: Place(prefix + _vae_name(name, blocks)) for name in names}


def _vae_name(name: str, blocks: int) -> str:
    name = name.replace("conv_norm_out", "norm_out")
    part, _, rest = name.partition(".")
    if rest.startswith("mid_block."):
        _, kind, place, inner = rest.split(".", 3)
        if kind == "attentions":
            return f"{part}.mid.attn_{int(place) + 1}.{_renamed(inner, _VAE_ATTENTION)}"
        return f"{part}.mid.block_{int(place) + 1}.{_shortcut(inner)}"
    match = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", rest)
    if match is None:
        return name
    side, block, kind, place, inner = match.groups()
    # The original counts the decoder's blocks from the largest images down.
    block = block if side == "down" else str(blocks - 1 - int(block))
    if kind == "resnets":
        return f"{part}.{side}.{block}.block.{place}.{_shortcut(inner)}"
    return f"{part}.{side}.{block}.{side}sample.{inner}"


def _shortcut(inner: str) -> str:
    return inner.replace("conv_shortcut", "nin_shortcut")


def text_places(names: Collection[str], layout: str, prefix: str) -> dict[str, Place]:
    """Return the place of each tensor of a CLIP text encoder, by its name in transformers.

    Args:
        names: With or without the `text_model.` that some classes put before all but the
            projection.
        layout: `CLIP` or `OPEN_CLIP`.
        prefix: Of its tensors in the file.
    """
    place = _clip_place if layout == CLIP else _open_clip_place
    return {name: place(name.removeprefix("text_model."), prefix) for name in names}


def _clip_place(name: str, prefix: str) -> Place:
    return Place(f"{prefix}text_model.{name}")


def _open_clip_place(name: str, prefix: str) -> Place:
    if name == "text_projection.weight":
        return Place(f"{prefix}text_projection", is_transposed=True)
    if name in _OPEN_CLIP_ENDS:
        return Place(prefix + _OPEN_CLIP_ENDS[name])
    _, _, number, inner = name.split(".", 3)
    layer = f"{prefix}transformer.resblocks.{number}"
    parts = re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", inner)
    if parts is not None:
        return Place(f"{layer}.attn.in_proj_{parts[2]}", third="qkv".index(parts[1]))
    return Place(f"{layer}.{_renamed(inner, _OPEN_CLIP_LAYER)}")
