"""Stage `denoiser`: the UNet and its text encoder, trained together."""

from __future__ import annotations

import time

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from training import drawing, scenes
from training.tokenizer import BOS, CONTEXT_LENGTH, EOS, PAD, CaptionEncoder, build_tokenizer
from training.training import (
    Run,
    Trainer,
    load_tensors,
    parameter_key,
    save_figures,
    save_tensors,
    say,
    seed_everything,
)
from training.vae import encode, load_vae

LATENT_SIZE = 16
TEXT_WIDTH = 96
# Multiples of 16 are what a CPU's vector units divide best: 5.53 M parameters take no longer than
# 4.83 M with narrower third and fourth levels.
CHANNELS = (48, 64, 96, 80)
HEAD_WIDTH = 16

SEED = 303
# The clock ended the run that made the published weights: this is the count that it had reached.
STEPS = 5_046
BATCH = 512
POOL = 400_000
PEAK_LR = 1e-3
END_LR = 3e-4
CAPTION_DROPOUT = 0.1
# Stable Diffusion's schedule leaves 7 % of the picture in at its last step. Noise with a mean of
# its own hides the background's colour there, so that the model takes it from the caption.
OFFSET_NOISE = 0.15
SNR_GAMMA = 5.0


def build_scheduler() -> DDIMScheduler:
    """Build SD1.5's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Build the untrained UNet: SD1.5's blocks, so that accelerators find what they expect."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        layers_per_block=2,
        # diffusers takes this for the number of heads, whatever it is called.
        attention_head_dim=tuple(width // HEAD_WIDTH for width in CHANNELS),
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )


def build_text_encoder() -> CLIPTextModel:
    """Build the untrained text encoder."""
    tokenizer = build_tokenizer()
    vocabulary = tokenizer.get_vocab()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=TEXT_WIDTH // HEAD_WIDTH,
            max_position_embeddings=CONTEXT_LENGTH,
            hidden_act="gelu",
            bos_token_id=vocabulary[BOS],
            eos_token_id=vocabulary[EOS],
            pad_token_id=vocabulary[PAD],
        )
    )


@torch.no_grad()
def load_denoiser(run: Run) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Load what this stage saved as float32, frozen, in evaluation mode, on the device."""
    tensors = load_tensors(run, "denoiser")
    unet, text_encoder = build_unet(), build_text_encoder()
    for prefix, module in (("unet", unet), ("text_encoder", text_encoder)):
        for name, parameter in module.named_parameters():
            parameter.copy_(tensors.pop(parameter_key(prefix, name)))
        module.eval().requires_grad_(False).to(run.device)
    if tensors:
        raise RuntimeError(f"the denoiser has no such weights: {sorted(tensors)}")
    return unet, text_encoder


@torch.no_grad()
def build_pool(run: Run, vae: AutoencoderKL, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw trainable scenes and encode them.

    Returns:
        Scaled latents, float16 `[n, 4, 16, 16]`, and token ids `[n, CONTEXT_LENGTH]`.
    """
    generator = torch.Generator(run.device).manual_seed(seed)
    start = time.perf_counter()
    pool = scenes.sample_scenes(n, generator, run.device)
    tokens_of = CaptionEncoder(run.device)
    latents = torch.empty(n, 4, LATENT_SIZE, LATENT_SIZE, dtype=torch.float16, device=run.device)
    for first in range(0, n, 512):
        images = drawing.draw_scenes(pool[first : first + 512], generator)
        latents[first : first + 512] = encode(run, vae, images).half()
    tokens = torch.cat([tokens_of(batch) for batch in pool.split(65_536)])
    say(
        f"encoded {n} scenes, deviation {float(latents.float().std()):.3f}, "
        f"{time.perf_counter() - start:.1f} s"
    )
    return latents, tokens


def loss_weights(alphas: Tensor) -> Tensor:
    """Weights of the squared error of epsilon, by timestep, with mean 1.

    As for v-prediction, whose weights follow captions better than those of plain epsilon since the
    layout and the colours are decided while there is mostly noise; above `SNR_GAMMA` they fall as
    min-SNR's do. In terms of the picture's error the weight is min(SNR, gamma) + 1.
    """
    snr = alphas / (1 - alphas)
    weights = (snr.clamp(max=SNR_GAMMA) + 1) / snr
    return weights / weights.mean()


def build_trainer(run: Run) -> Trainer:
    """Make the stage ready to train."""
    seed_everything(SEED)
    latents, tokens = build_pool(run, load_vae(run), run.pool_size(POOL), SEED)
    unet = build_unet().train().to(run.device)
    text_encoder = build_text_encoder().train().to(run.device)
    batch = run.batch_size(BATCH)
    alphas = build_scheduler().alphas_cumprod.to(run.device)
    weights = loss_weights(alphas)
    empty = CaptionEncoder(run.device).empty()
    predict = run.callable(unet, "unet")
    read = run.callable(text_encoder, "text encoder")

    def loss() -> dict[str, Tensor]:
        with torch.no_grad():
            index = torch.randint(len(latents), (batch,), device=run.device)
            clean = latents[index].float()
            dropped = torch.rand(batch, 1, device=run.device) < CAPTION_DROPOUT
            captions = torch.where(dropped, empty, tokens[index])
            # Evenly spread timesteps: the weights vary by 200, and so would the loss.
            place = torch.arange(batch, device=run.device) + torch.rand_like(dropped[:, 0].float())
            timestep = (place * (1000 / batch)).long().clamp(max=999)
            noise = torch.randn_like(clean)
            noise = noise + OFFSET_NOISE * torch.randn(batch, 4, 1, 1, device=run.device)
            alpha = alphas[timestep][:, None, None, None]
            noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        states = read(captions).last_hidden_state  # type: ignore[attr-defined]
        predicted = predict(noisy, timestep, states).sample  # type: ignore[attr-defined]
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        return {"loss": (weights[timestep] * error).mean(), "mse": error.mean()}

    return Trainer(
        run,
        "denoiser",
        {"unet": unet, "text_encoder": text_encoder},
        loss,
        steps=run.step_count(STEPS),
        batch=batch,
        peak_lr=PEAK_LR,
        end_lr=END_LR,
        warmup=400,
        ema_decay=0.999,
    )


def run_stage(run: Run) -> None:
    """Train, save the averaged weights."""
    trainer = build_trainer(run)
    figures = trainer.train()
    save_tensors(run, "denoiser", {key: value.half() for key, value in trainer.ema.items()})
    save_figures(run, "denoiser", figures)
    say(f"[denoiser] {figures}")
