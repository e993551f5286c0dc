"""The published configurations of SD1.5, SD2.1 and SDXL, where they differ from the defaults.

Source:
    The `config.json` files of the repositories in `pipeline_folder.HUB_IDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


PUBLISHED = {
    "SD1.5": Architecture(SD_UNET, (VIT_L,), VAE, SCHEDULE),
    "SD2.1": Architecture(
        SD21_UNET, (VIT_H,), VAE, {**SCHEDULE, "prediction_type": "v_prediction"}
    ),
    "SDXL": Architecture(SDXL_UNET, (VIT_L, VIT_BIG_G), SDXL_VAE, SCHEDULE),
}
"""Short name -> its architecture."""
