"""Build SD1.5, SD2.1 and SDXL with random weights, to measure time and memory without a fetch.

The tokenizer is the embedded demo's, where it is not CLIP's: a prompt becomes other tokens, but the
same number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from accel_search.runtime.demo import demo_part
from accel_search.runtime.loading.published import PUBLISHED, SD_UNET, SDXL_UNET, Architecture
from accel_search.runtime.loading.single_file.vocabulary import PADS, clip_tokenizer

ARCHITECTURES = tuple(PUBLISHED)
"""Names that `build_random` accepts."""

TINY_TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 16,
}

NARROW_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "projection_dim": 64,
}
"""The first text encoder's; SDXL's second is twice as wide, by which diffusers tells them apart."""


def _tiny(published: Architecture) -> Architecture:
    """Return the same blocks and layers at a width of a few channels, for 64 pixels."""
    unet = dict(published.unet)
    blocks = len(unet.get("block_out_channels", (320, 640, 1280, 1280)))
    unet |= {
        "sample_size": 8,
        "block_out_channels": (8, 16, 16, 16)[:blocks],
        "norm_num_groups": 4,
        "cross_attention_dim": TINY_TEXT["hidden_size"] * len(published.text_encoders),
        "attention_head_dim": (1, 2, 4, 4)[:blocks],
    }
    if "addition_time_embed_dim" in unet:
        times = 6  # Size, crop and target size, two numbers each.
        unet["addition_time_embed_dim"] = 8
        unet["projection_class_embeddings_input_dim"] = times * 8 + TINY_TEXT["projection_dim"]
    vae = dict(published.vae) | {
        "block_out_channels": (8, 8, 8, 8),
        "norm_num_groups": 4,
        "sample_size": 64,
    }
    texts = tuple(dict(text) | TINY_TEXT for text in published.text_encoders)
    return Architecture(unet, texts, vae, published.scheduler)


def _narrow(published: Architecture) -> Architecture:
    """Return the same blocks at the least width that has the published heads and groups of norms.

    A single file does not say those two; what else its shapes tell has other values here: two
    transformer blocks where there are ten, two layers of text encoders.
    """
    is_sd1, is_xl = published.unet is SD_UNET, published.unet is SDXL_UNET
    widths = (32, 64, 64, 64) if is_sd1 else (64, 128, 128) if is_xl else (64, 64, 128, 128)
    texts = tuple(
        dict(text)
        | NARROW_TEXT
        | ({"num_attention_heads": 1 + place})
        | {key: NARROW_TEXT[key] * (1 + place) for key in ("hidden_size", "projection_dim")}
        for place, text in enumerate(published.text_encoders)
    )
    unet = dict(published.unet) | {
        "sample_size": 8,
        "block_out_channels": widths,
        "cross_attention_dim": sum(text["hidden_size"] for text in texts),
        "attention_head_dim": 8 if is_sd1 else tuple(width // 64 for width in widths),
    }
    if is_xl:
        unet |= {
            "transformer_layers_per_block": (1, 1, 2),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + texts[-1]["projection_dim"],
        }
    vae = dict(published.vae) | {"block_out_channels": (32, 32, 32, 32), "sample_size": 64}
    return Architecture(unet, texts, vae, published.scheduler)


def build_random(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    is_tiny: bool = False,
    is_narrow: bool = False,
) -> Any:
    """Return a pipeline with random weights and a DDIM scheduler.

    Args:
        name: `SD1.5`, `SD2.1` or `SDXL`.
        device: Where its weights are created.
        dtype: Dtype of all its parts.
        is_tiny: Make blocks and layers a few channels wide: a pipeline of a megabyte or two, for
            tests.
        is_narrow: Make them as narrow as a single file can be, with CLIP's own vocabulary.

    Raises:
        KeyError: There is none of that name.

    Source:
        The `config.json` files of the repositories in `pipeline_folder.HUB_IDS`.
    """
    import diffusers

    plan = PUBLISHED[name]
    if is_tiny or is_narrow:
        plan = _tiny(plan) if is_tiny else _narrow(plan)
    parts: dict[str, Any] = {
        "vae": _part(lambda: diffusers.AutoencoderKL(**plan.vae), device, dtype),
        "unet": _part(lambda: diffusers.UNet2DConditionModel(**plan.unet), device, dtype),
        "scheduler": diffusers.DDIMScheduler(**plan.scheduler),
    }
    for place, text in enumerate(plan.text_encoders):
        suffix = f"_{place + 1}" if place else ""
        pad = PADS[name][f"tokenizer{suffix}"]
        tokenizer = clip_tokenizer(pad) if is_narrow else _tokenizer()
        parts[f"tokenizer{suffix}"] = tokenizer
        config = {**text, **_special_tokens(tokenizer)} if is_tiny else text
        parts[f"text_encoder{suffix}"] = _text_encoder(config, device, dtype, projection=place > 0)
    if len(plan.text_encoders) > 1:
        pipe: Any = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipe = diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _part(build: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    # Created in its final dtype: a copy in float32 first would take twice the memory.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return build().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _text_encoder(
    config: Mapping[str, Any], device: torch.device, dtype: torch.dtype, *, projection: bool
) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    cls = CLIPTextModelWithProjection if projection else CLIPTextModel
    return _part(lambda: cls(CLIPTextConfig(**{"vocab_size": 49408, **config})), device, dtype)


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(demo_part("pipeline") / "tokenizer", model_max_length=77)


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    """Return a text encoder's configuration of the demo's small vocabulary."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
