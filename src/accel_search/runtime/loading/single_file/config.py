"""Derive diffusers' configurations from the shapes of a file's tensors.

So distilled and pruned models (SSD-1B, BK-SDM and others) are loaded by the same rules as the
published ones. What shapes do not tell is as published: the heads' widths, groups of norms,
activations, noise schedule and scaling of latents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accel_search.errors import LoadError
from accel_search.runtime.loading.published import (
    SCHEDULE,
    SD21_UNET,
    SDXL_UNET,
    SDXL_VAE,
    VAE,
    VIT_H,
)
from accel_search.runtime.loading.single_file.header import PIXELS_OF_SD2, Header, Prediction
from accel_search.runtime.loading.single_file.names import (
    CLIP,
    TEXT_ENCODERS,
    UNET,
    VAES,
)

TEXT_KEYS = "attn2.to_k.weight"
"""Ends the names of the weights by which a UNet reads the text."""
HEADS_OF_SD1 = 8
"""SD1.5's attention has as many heads at every width."""
HEAD_WIDTH = 64
"""Channels of a head: of every text encoder, and of the UNets of SD2.x and SDXL."""
TEXT_TRANSFORMERS = {
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}
SIZES_AND_CROPS = 6
"""Numbers that SDXL's UNet is told beside the text."""
UNUSED_LAYER = 23
"""SD2.x draws from the text encoder's last layer but one; the last is left out."""


def configs(given: str, header: Header, name: str, guess: Prediction) -> dict[str, dict[str, Any]]:
    """Return component -> its configuration, for all components with weights.

    Args:
        given: Option and value, for messages.
        header: The file's.
        name: Its architecture.
        guess: What it predicts.

    Raises:
        LoadError: Its tensors are not those of such a component.
    """
    encoders = TEXT_ENCODERS[name]
    parts: dict[str, dict[str, Any]] = {}
    try:
        for part, (layout, prefix) in encoders.items():
            read = _clip if layout == CLIP else _open_clip
            parts[part] = read(header, prefix, with_projection=part != "text_encoder")
        projected = parts.get("text_encoder_2", {}).get("projection_dim", 0)
        parts["unet"] = _unet(header, name, guess, projected)
        if header.has(*VAES):
            parts["vae"] = _vae(header, name)
    except (KeyError, IndexError, ValueError) as error:
        raise LoadError(
            f"{given}: lacks tensors that an {name} has, or has others in their place "
            f"({error}): fetch it again, or give a pipeline folder"
        ) from error
    return parts


def scheduler_config(name: str, guess: Prediction) -> dict[str, Any]:
    """Return the configuration of the published scheduler, with what the model predicts.

    Source:
        `scheduler_config.json` of `pipeline_folder.HUB_IDS`; for models trained with a last
        timestep of noise alone, diffusers' guide on `rescale_betas_zero_snr`.
    """
    config = {"_class_name": "DDIMScheduler", **SCHEDULE, "prediction_type": guess.type}
    if name == "SDXL":
        config |= {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    if guess.is_zero_snr:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def _sizes(header: Header, name: str) -> tuple[int, ...]:
    return header.tensors[name].shape


def _numbers(header: Header, pattern: str) -> list[int]:
    """Return the distinct numbers that a pattern's group has among the tensors' names."""
    found = (re.match(pattern, name) for name in header.tensors)
    return sorted({int(match[1]) for match in found if match})


@dataclass
class _Level:
    """A UNet's layers of one resolution."""

    width: int = 0
    depths: tuple[int, ...] = ()
    """Transformer blocks of each layer; 0 is none."""


def _unet(header: Header, name: str, guess: Prediction, projected: int) -> dict[str, Any]:
    down, up = _levels(header, "input_blocks"), _levels(header, "output_blocks")
    if len(down) != len(up) or len({len(level.depths) for level in down}) > 1:
        raise ValueError("UNet blocks of unequal numbers of layers")
    attending = next((key for key in header.tensors if key.endswith(TEXT_KEYS)), TEXT_KEYS)
    widths = [level.width for level in down]
    is_published_as = {"SD1.5": {}, "SD2.1": SD21_UNET, "SDXL": SDXL_UNET}[name]
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": _sizes(header, f"{UNET}input_blocks.0.0.weight")[1],
        "out_channels": _sizes(header, f"{UNET}out.2.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": len(down[0].depths),
        "cross_attention_dim": _sizes(header, attending)[1],
        "use_linear_projection": bool(is_published_as.get("use_linear_projection", False)),
        "sample_size": _latents(name, guess),
        "down_block_types": [_named("Down", level) for level in down],
        "up_block_types": [_named("Up", level) for level in up],
        "attention_head_dim": HEADS_OF_SD1
        if name == "SD1.5"
        else [max(1, width // HEAD_WIDTH) for width in widths],
    }
    config |= _depths(header, down, up)
    # Only the model of 768 pixels is published so; it overflows half precision otherwise.
    if name == "SD2.1":
        config["upcast_attention"] = guess.type == "v_prediction"
    if name == "SDXL":
        told = _sizes(header, f"{UNET}label_emb.0.0.weight")[1]
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (told - projected) // SIZES_AND_CROPS,
            "projection_class_embeddings_input_dim": told,
        }
    return config


def _latents(name: str, guess: Prediction) -> int:
    pixels = {"SD1.5": 512, "SD2.1": PIXELS_OF_SD2[guess.type], "SDXL": 1024}[name]
    return pixels // 8


def _named(side: str, level: _Level) -> str:
    return f"{'CrossAttn' if any(level.depths) else ''}{side}Block2D"


def _levels(header: Header, where: str) -> list[_Level]:
    """Return a UNet's levels on the way down (`input_blocks`) or up (`output_blocks`)."""
    levels, level = [], _Level()
    for number in _numbers(header, rf"{re.escape(UNET)}{where}\.(\d+)\."):
        block = f"{UNET}{where}.{number}"
        if f"{block}.0.out_layers.3.weight" in header.tensors:
            level.width = _sizes(header, f"{block}.0.out_layers.3.weight")[0]
            level.depths += (_depth(header, f"{block}.1"),)
        # Down, a block of its own ends a level; up, the last layer does.
        ends = [f"{block}.{place}.weight" for place in ("0.op", "1.conv", "2.conv")]
        if any(end in header.tensors for end in ends):
            levels.append(level)
            level = _Level()
    return [*levels, level]


def _depth(header: Header, block: str) -> int:
    return len(_numbers(header, rf"{re.escape(block)}\.transformer_blocks\.(\d+)\."))


def _depths(header: Header, down: Sequence[_Level], up: Sequence[_Level]) -> dict[str, Any]:
    """Return the numbers of transformer blocks, and the kind of the block in the middle."""
    config: dict[str, Any] = {}
    middle = _depth(header, f"{UNET}middle_block.1")
    if not header.has(f"{UNET}middle_block."):
        config["mid_block_type"] = None
    elif not middle:
        config["mid_block_type"] = "UNetMidBlock2D"
    going_down, going_up = ([_one(level.depths) for level in side] for side in (down, up))
    is_mirrored = going_up == going_down[::-1] and not any(type(one) is list for one in going_down)
    depths = [one or 1 for one in going_down]
    # diffusers gives the middle the last level's depth, which counts there alone without attention.
    depths[-1] = going_down[-1] or middle or 1
    if middle and depths[-1] != middle:
        raise ValueError(f"{middle} transformer blocks in the middle, {depths[-1]} before it")
    if any(depth != 1 for depth in depths) or not is_mirrored:
        config["transformer_layers_per_block"] = depths
    if not is_mirrored:
        config["reverse_transformer_layers_per_block"] = [one or 1 for one in going_up]
    return config


def _one(depths: Sequence[int]) -> int | list[int]:
    """Return the depth of a level's layers: a number where they agree."""
    return depths[0] if len(set(depths)) == 1 else list(depths)


def _clip(header: Header, prefix: str, *, with_projection: bool) -> dict[str, Any]:
    """Return the configuration of OpenAI's text encoder, in transformers' layout."""
    tokens = _sizes(header, f"{prefix}text_model.embeddings.token_embedding.weight")
    positions = _sizes(header, f"{prefix}text_model.embeddings.position_embedding.weight")
    layers = rf"{re.escape(prefix)}text_model\.encoder\.layers\.(\d+)\."
    inner = _sizes(header, f"{prefix}text_model.encoder.layers.0.mlp.fc1.weight")[0]
    config = _text(tokens, positions, inner, len(_numbers(header, layers)))
    return config | {"architectures": [_class_of(with_projection)], "projection_dim": tokens[1]}


def _open_clip(header: Header, prefix: str, *, with_projection: bool) -> dict[str, Any]:
    """Return the configuration of open_clip's text encoder, in its own layout."""
    tokens = _sizes(header, f"{prefix}token_embedding.weight")
    positions = _sizes(header, f"{prefix}positional_embedding")
    numbers = _numbers(header, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\.")
    inner = _sizes(header, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight")[0]
    if not with_projection:
        numbers = [number for number in numbers if number != UNUSED_LAYER]
    made = VIT_H["projection_dim"]
    if f"{prefix}text_projection" not in header.tensors:
        made = tokens[1]  # diffusers 0.31 splits the attention's weights by it then.
    if with_projection:
        made = _sizes(header, f"{prefix}text_projection")[1]
    config = _text(tokens, positions, inner, len(numbers))
    return config | {
        "architectures": [_class_of(with_projection)],
        "projection_dim": made,
        "hidden_act": "gelu",
    }


def _class_of(with_projection: bool) -> str:
    return TEXT_TRANSFORMERS["text_encoder_2" if with_projection else "text_encoder"]


def _text(
    tokens: Sequence[int], positions: Sequence[int], inner: int, layers: int
) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model",
        "vocab_size": tokens[0],
        "hidden_size": tokens[1],
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, tokens[1] // HEAD_WIDTH),
        "max_position_embeddings": positions[0],
    }


def _vae(header: Header, name: str) -> dict[str, Any]:
    prefix = vae_prefix(header)
    published: Mapping[str, Any] = SDXL_VAE if name == "SDXL" else VAE
    down = rf"{re.escape(prefix)}encoder\.down\.(\d+)\."
    blocks = len(_numbers(header, down))
    first = rf"{re.escape(prefix)}encoder\.down\.0\.block\.(\d+)\."
    return {
        **published,
        "_class_name": "AutoencoderKL",
        "block_out_channels": [
            _sizes(header, f"{prefix}encoder.down.{block}.block.0.conv1.weight")[0]
            for block in range(blocks)
        ],
        "layers_per_block": len(_numbers(header, first)),
        "latent_channels": _sizes(header, f"{prefix}decoder.conv_in.weight")[1],
        "out_channels": _sizes(header, f"{prefix}decoder.conv_out.weight")[0],
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
    }


def vae_prefix(header: Header) -> str:
    """Return the prefix of a file's VAE; of two, the one that diffusers reads."""
    return next(prefix for prefix in reversed(VAES) if header.has(prefix))
