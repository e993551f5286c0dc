"""SD1.5, SD2.1 and SDXL at full size with random weights: for timing, where nothing can be fetched.

Time and memory do not depend on the weights' values; pictures do, so nothing here is about quality.
The tokenizer is the embedded demo's: a prompt becomes other tokens, and as many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from accel_search.runtime.demo import demo_part

SD_UNET: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""stable-diffusion-v1-5: diffusers' own defaults but for these."""

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

SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}


def build_random(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a full-size pipeline with random weights and a DDIM scheduler.

    Args:
        name: `SD1.5`, `SD2.1` or `SDXL`.
        device: Where its weights are made.
        dtype: Of all its parts.

    Raises:
        KeyError: There is none of that name.

    Source:
        The `config.json` files of the repositories in `folders.HUB_IDS`.
    """
    return _BUILDERS[name](device, dtype)


def _part(build: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    # Made in the dtype that it is to have: a copy in float32 first would take twice the memory.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return build().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _text_encoder(
    config: dict[str, Any], device: torch.device, dtype: torch.dtype, *, projection: bool = False
) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    cls = CLIPTextModelWithProjection if projection else CLIPTextModel
    return _part(lambda: cls(CLIPTextConfig(vocab_size=49408, **config)), device, dtype)


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(demo_part("pipeline") / "tokenizer", model_max_length=77)


def _sd(
    unet: dict[str, Any],
    text: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    **more: Any,
) -> Any:
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    pipe = StableDiffusionPipeline(
        vae=_part(lambda: AutoencoderKL(**VAE), device, dtype),
        text_encoder=_text_encoder(text, device, dtype),
        tokenizer=_tokenizer(),
        unet=_part(lambda: UNet2DConditionModel(**unet), device, dtype),
        scheduler=DDIMScheduler(**SCHEDULE, **more),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _sdxl(device: torch.device, dtype: torch.dtype) -> Any:
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    vae = {**VAE, "scaling_factor": 0.13025, "force_upcast": True, "sample_size": 1024}
    pipe = StableDiffusionXLPipeline(
        vae=_part(lambda: AutoencoderKL(**vae), device, dtype),
        text_encoder=_text_encoder(VIT_L, device, dtype),
        text_encoder_2=_text_encoder(VIT_BIG_G, device, dtype, projection=True),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=_part(lambda: UNet2DConditionModel(**SDXL_UNET), device, dtype),
        scheduler=DDIMScheduler(**SCHEDULE),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


_BUILDERS: dict[str, Callable[[torch.device, torch.dtype], Any]] = {
    "SD1.5": lambda device, dtype: _sd(SD_UNET, VIT_L, device, dtype),
    "SD2.1": lambda device, dtype: _sd(
        SD21_UNET, VIT_H, device, dtype, prediction_type="v_prediction"
    ),
    "SDXL": _sdxl,
}

ARCHITECTURES = tuple(_BUILDERS)
"""Names that `build_random` knows."""
