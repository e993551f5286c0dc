"""Stage `vae`: the autoencoder between 128-pixel pictures and 16 x 16 latents."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from training import drawing, scenes
from training.training import (
    Run,
    Trainer,
    load_tensors,
    save_figures,
    save_tensors,
    say,
    seed_everything,
)

SEED = 101
STEPS = 2_000
BATCH = 64
PEAK_LR = 2e-3
END_LR = 1e-5
POOL = 400_000
# The KL term only keeps the latents' noise from vanishing, so that the decoder tolerates the small
# errors of a denoiser. Larger values blur.
KL_WEIGHT = 1e-4
SQUARED_WEIGHT = 5.0
GRADIENT_WEIGHT = 0.5
EDGE_WEIGHT = 3.0

# Few channels where the picture is large: the decoder must not outweigh the UNet in a pipeline call
# on a CPU. With 2 threads a slightly wider decoder (24-48-64-80) took 0.10 s for 4 pictures, where
# 20 steps of the UNet took 1.6 s.
CHANNELS = (24, 48, 64, 64)


def build_vae() -> AutoencoderKL:
    """Build the untrained autoencoder, SD1.5's layout with few channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=scenes.IMAGE_SIZE,
        scaling_factor=1.0,
    )


def load_vae(run: Run) -> AutoencoderKL:
    """Load what this stage saved, frozen, in evaluation mode, on the device."""
    tensors = load_tensors(run, "vae")
    vae = build_vae()
    vae.register_to_config(scaling_factor=float(tensors.pop("scaling_factor")))
    vae.load_state_dict(tensors)
    return vae.eval().requires_grad_(False).to(run.device)


@torch.no_grad()
def encode(run: Run, vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode pictures as scaled latents without noise, float32 `[n, 4, 16, 16]`."""
    with run.autocast():
        latents = vae.encode(images).latent_dist.mode()
    return latents.float() * vae.config.scaling_factor


@torch.no_grad()
def decode(run: Run, vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode scaled latents as pictures, float32 in [-1, 1]."""
    with run.autocast():
        images = vae.decode(latents / vae.config.scaling_factor).sample
    return images.float().clamp(-1, 1)


def sample_pool(run: Run, n: int, seed: int) -> Tensor:
    """Draw trainable scenes ahead: sampling synchronises, and a captured step must not."""
    generator = torch.Generator(run.device).manual_seed(seed)
    return scenes.sample_scenes(n, generator, run.device)


def draw_from(pool: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Pick scenes from a pool and draw them again; return scenes and images."""
    index = torch.randint(len(pool), (n,), device=pool.device)
    batch = pool[index]
    with torch.no_grad(), torch.autocast(pool.device.type, enabled=False):
        return batch, drawing.draw_scenes(batch)


def reconstruction_loss(result: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Compare pictures with extra weight on edges, which are a small part of these pictures.

    Returns:
        The loss and the plain mean squared error.
    """
    difference = result - target
    along_x = target.diff(dim=3).abs().mean(1, keepdim=True)
    along_y = target.diff(dim=2).abs().mean(1, keepdim=True)
    edges = F.pad(along_x, (0, 1, 0, 0)) + F.pad(along_y, (0, 0, 0, 1))
    edges = F.max_pool2d(edges.clamp(max=1), 3, stride=1, padding=1)
    weight = 1 + EDGE_WEIGHT * edges
    absolute = (weight * difference.abs()).mean()
    squared = (weight * difference.square()).mean()
    gradients = difference.diff(dim=3).abs().mean() + difference.diff(dim=2).abs().mean()
    loss = absolute + SQUARED_WEIGHT * squared + GRADIENT_WEIGHT * gradients
    return loss, difference.square().mean()


def build_trainer(run: Run) -> tuple[Trainer, AutoencoderKL]:
    """Make the stage ready to train."""
    seed_everything(SEED)
    vae = build_vae().train().to(run.device)
    pool = sample_pool(run, run.pool_size(POOL), SEED)
    batch = run.batch_size(BATCH)
    encoder, decoder = run.callable(vae.encoder, "encoder"), run.callable(vae.decoder, "decoder")

    def loss() -> dict[str, Tensor]:
        _, images = draw_from(pool, batch)
        mean, log_variance = vae.quant_conv(encoder(images)).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 10)
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        result = decoder(vae.post_quant_conv(latents)).float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        reconstruction, squared = reconstruction_loss(result, images)
        return {"loss": reconstruction + KL_WEIGHT * kl, "mse": squared, "kl": kl}

    trainer = Trainer(
        run,
        "vae",
        {"vae": vae},
        loss,
        steps=run.step_count(STEPS),
        batch=batch,
        peak_lr=PEAK_LR,
        end_lr=END_LR,
        warmup=200,
        ema_decay=0.998,
        weight_decay=0.0,
    )
    return trainer, vae


@torch.no_grad()
def standardize_latents(run: Run, vae: AutoencoderKL, images: list[Tensor]) -> None:
    """Give every latent channel mean 0 and deviation 1, by rewriting the two 1 x 1 convolutions.

    Stable Diffusion's noise schedule never reaches pure noise, so a channel with a mean of its own
    would give the background away at the last timestep in training and not in generation. The
    pictures that the autoencoder makes do not change.
    """
    latents = torch.cat([encode(run, vae, batch) for batch in images])
    mean = latents.mean((0, 2, 3))
    deviation = latents.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    post.bias.add_(post.weight[:, :, 0, 0] @ mean)
    post.weight.mul_(deviation[None, :, None, None])
    quant.bias[:channels].sub_(mean).div_(deviation)
    quant.weight[:channels].div_(deviation[:, None, None, None])
    quant.bias[channels:].sub_(2 * deviation.log())


def psnr(result: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1] (higher is better)."""
    return -10 * math.log10(float((result - target).square().mean()) / 4)


def run_stage(run: Run) -> None:
    """Train, standardise the latents, measure, save."""
    trainer, vae = build_trainer(run)
    figures = trainer.train()
    generator = torch.Generator(run.device).manual_seed(SEED + 1)
    chunk = 4 if run.quick else 256
    chunks = run.pool_size(8192) // chunk + 1
    with trainer.averaged():
        vae.eval()
        batches = [
            drawing.draw_scenes(scenes.sample_scenes(chunk, generator, run.device), generator)
            for _ in range(chunks)
        ]
        standardize_latents(run, vae, batches)
        deviation = float(torch.cat([encode(run, vae, b) for b in batches]).std())
        vae.register_to_config(scaling_factor=1 / deviation)
        held_out = scenes.sample_scenes(chunk, generator, run.device, reserved=True)
        images = drawing.draw_scenes(held_out, generator)
        with torch.no_grad(), run.autocast():
            noise = float(vae.encode(images).latent_dist.std.float().mean())
        latents = encode(run, vae, images)
        figures["psnr_db"] = psnr(decode(run, vae, latents), images)
        figures["psnr_with_latent_noise_0.1_db"] = psnr(
            decode(run, vae, latents + 0.1 * torch.randn_like(latents)), images
        )
        figures["posterior_std"] = noise
        figures["scaling_factor"] = 1 / deviation
        state = {name: value.float() for name, value in vae.state_dict().items()}
        save_tensors(run, "vae", {**state, "scaling_factor": torch.tensor(1 / deviation)})
    save_figures(run, "vae", figures)
    say(f"[vae] {figures}")
