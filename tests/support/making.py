"""Makes tiny random pipelines and scorers in the real folder formats.

Run as a script to write them somewhere: `python -m tests.support.making FOLDER`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from scripts.make_random_scorer import write_scorer

PROMPTS = [
    f"a {size} {colour} {shape}"
    for size in ("small", "large")
    for colour in ("red", "green", "blue", "white")
    for shape in ("ring", "star", "cube")
]
"""24 distinct prompts."""


IS_OLD = not hasattr(diffusers.UNet2DConditionModel, "compile_repeated_blocks")
"""Whether diffusers is one that raises for missing tensors itself, as 0.31 does."""


def vocabulary_of(folder: Path) -> Path:
    """Return the file that a saved tokenizer has its vocabulary in, which transformers decides."""
    own = folder / "tokenizer" / "tokenizer.json"
    return own if own.exists() else own.with_name("vocab.json")


def make_tokenizer() -> Any:
    """Return a CLIPTokenizer of single bytes: 256 letters, 256 last letters, two marks."""
    from open_clip.tokenizer import bytes_to_unicode

    from accel_search.runtime.loading.single_file.vocabulary import tokenizer_of

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: i for i, word in enumerate(words)}
    return tokenizer_of(vocab, [], model_max_length=24)


def make_text_encoder(projection: bool = False) -> Any:
    """Return a random CLIP text encoder of width 16."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def make_vae(**options: Any) -> Any:
    """Return a random VAE with factor 2."""
    from diffusers import AutoencoderKL

    usual: dict[str, Any] = {
        "block_out_channels": [8, 16],
        "norm_num_groups": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": 4,
        "sample_size": 32,
    }
    return AutoencoderKL(**{**usual, **options}).eval()


def make_scheduler() -> Any:
    """Return SD1.5's scheduler."""
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    )


def make_sd(folder: Path) -> Path:
    """Write a Stable Diffusion pipeline of 32 pixels with attention at factors 1, 2 and 4."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16, 16),
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=make_text_encoder(),
        tokenizer=make_tokenizer(),
        unet=unet.eval(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def make_sdxl(folder: Path) -> Path:
    """Write an SDXL pipeline of 32 pixels with attention at factor 2 only."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    tokenizer = make_tokenizer()
    StableDiffusionXLPipeline(
        vae=make_vae(force_upcast=True),
        text_encoder=make_text_encoder(),
        text_encoder_2=make_text_encoder(projection=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet.eval(),
        scheduler=make_scheduler(),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def make_scorer(folder: Path) -> Path:
    """Write an open_clip folder: a random ViT of 32 pixels with a mean and deviation of its own."""
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    return write_scorer(
        folder,
        {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text},
        {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.25, 0.2], "interpolation": "bicubic"},
    )


def make_prompts(file: Path) -> Path:
    """Write the prompts, one a line."""
    file.write_text("\n".join(PROMPTS) + "\n")
    return file


def without(weights: Path, *tensors: str) -> None:
    """Take tensors out of a .safetensors file."""
    from safetensors.torch import load_file, save_file

    kept = load_file(weights)
    for tensor in tensors:
        del kept[tensor]
    save_file(kept, weights, metadata={"format": "pt"})


if __name__ == "__main__":
    target = Path(sys.argv[1])
    make_sd(target / "sd")
    make_sdxl(target / "sdxl")
    make_scorer(target / "scorer")
    make_prompts(target / "prompts.txt")
