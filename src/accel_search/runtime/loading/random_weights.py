"""Build SD1.5, SD2.1 and SDXL with random weights, to measure time and memory without a fetch.

The tokenizer is the embedded demo's: a prompt becomes other tokens, but the same number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from accel_search.runtime.demo import demo_part

SD_UNET: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""stable-diffusion-v1-5, where it differs from diffusers' defaults."""

SD21_UNET: dict[str, Any] = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
}

SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}

SDXL_VAE: dict[str, Any] = {
    **VAE,
    "scaling_factor": 0.13025,
    "force_upcast": True,
    "sample_size": 1024,
}

VIT_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
VIT_H: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
VIT_BIG_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}

TINY_TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 16,
}

SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}


@dataclass(frozen=True)
class Architecture:
    """Published configuration of each part, where it differs from the library's defaults."""

    unet: Mapping[str, Any]
    text_encoders: tuple[Mapping[str, Any], ...]
    """SDXL has two, the second with a projection."""
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]


_PUBLISHED = {
    "SD1.5": Architecture(SD_UNET, (VIT_L,), VAE, SCHEDULE),
    "SD2.1": Architecture(
        SD21_UNET, (VIT_H,), VAE, {**SCHEDULE, "prediction_type": "v_prediction"}
    ),
    "SDXL": Architecture(SDXL_UNET, (VIT_L, VIT_BIG_G), SDXL_VAE, SCHEDULE),
}

ARCHITECTURES = tuple(_PUBLISHED)
"""Names that `build_random` accepts."""


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


def build_random(
    name: str, device: torch.device, dtype: torch.dtype, *, is_tiny: bool = False
) -> Any:
    """Return a pipeline with random weights and a DDIM scheduler.

    Args:
        name: `SD1.5`, `SD2.1` or `SDXL`.
        device: Where its weights are created.
        dtype: Dtype of all its parts.
        is_tiny: Make blocks and layers a few channels wide: a pipeline of a megabyte or two, for
            tests.

    Raises:
        KeyError: There is none of that name.

    Source:
        The `config.json` files of the repositories in `pipeline_folder.HUB_IDS`.
    """
    import diffusers

    plan = _tiny(_PUBLISHED[name]) if is_tiny else _PUBLISHED[name]
    parts: dict[str, Any] = {
        "vae": _part(lambda: diffusers.AutoencoderKL(**plan.vae), device, dtype),
        "unet": _part(lambda: diffusers.UNet2DConditionModel(**plan.unet), device, dtype),
        "scheduler": diffusers.DDIMScheduler(**plan.scheduler),
    }
    for place, text in enumerate(plan.text_encoders):
        suffix = f"_{place + 1}" if place else ""
        tokenizer = parts[f"tokenizer{suffix}"] = _tokenizer()
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
