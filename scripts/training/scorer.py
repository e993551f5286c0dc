"""Stage `scorer`: a small open_clip CLIP that scores a picture against a caption.

It learns from drawn pictures and from the autoencoder's reconstructions of them, which is what
generated pictures look like; against captions that are wrong in a single attribute; and from
pictures damaged by a known amount, whose score has to fall in proportion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from training import drawing, scenes
from training.tokenizer import CONTEXT_LENGTH, CaptionEncoder
from training.training import (
    Run,
    Trainer,
    load_tensors,
    save_figures,
    save_tensors,
    say,
    seed_everything,
)
from training.vae import decode, encode, load_vae, sample_pool

SEED = 202
STEPS = 900
BATCH = 1_536
POOL = 131_072
PEAK_LR = 2e-3
END_LR = 1e-5
# One picture in eight is damaged.
DAMAGED_ONE_IN = 8
DAMAGE_WEIGHT = 5.0
# Below this level of damage the score may stay: the autoencoder's own traces are not a defect.
HARMLESS_DAMAGE = 0.1

WIDTH = 96
# Heads of 16: attention kernels want a multiple of 8.
HEAD_WIDTH = 16


def model_config(vocab_size: int) -> dict[str, object]:
    """Return the `model_cfg` of open_clip_config.json."""
    return {
        "embed_dim": WIDTH,
        "vision_cfg": {
            "image_size": scenes.IMAGE_SIZE,
            "patch_size": 16,
            "width": WIDTH,
            "head_width": HEAD_WIDTH,
            "layers": 4,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            "width": WIDTH,
            "heads": WIDTH // HEAD_WIDTH,
            "layers": 3,
            # For a `local-dir:` model open_clip takes any name here to mean "the tokenizer in the
            # same folder", and without one it would use its own 49,408-token vocabulary.
            "hf_tokenizer_name": "local",
        },
    }


def build_scorer(vocab_size: int) -> open_clip.CLIP:
    """Build the untrained model."""
    return open_clip.CLIP(**model_config(vocab_size), output_dict=False)


def load_scorer(run: Run) -> open_clip.CLIP:
    """Load what this stage saved, frozen, in evaluation mode, on the device."""
    model = build_scorer(CaptionEncoder("cpu").vocab_size)
    model.load_state_dict(load_tensors(run, "scorer"))
    return model.eval().requires_grad_(False).to(run.device)


@dataclass(frozen=True)
class Pool:
    """Pictures made ahead.

    Attributes:
        scenes: int64 `[n, FIELDS]`.
        latents: float16 `[n, 4, 16, 16]`, of drawings of the scenes.
        images: uint8 `[n, 3, IMAGE_SIZE, IMAGE_SIZE]`, decoded from the latents.
    """

    scenes: Tensor
    latents: Tensor
    images: Tensor


@torch.no_grad()
def build_pool(run: Run, vae: AutoencoderKL, n: int, *, reserved: bool = False) -> Pool:
    """Draw scenes and pass them through the autoencoder."""
    generator = torch.Generator(run.device).manual_seed(SEED + reserved)
    pool = scenes.sample_scenes(n, generator, run.device, reserved=reserved)
    latents, images = [], []
    for batch in pool.split(512):
        latents.append(encode(run, vae, drawing.draw_scenes(batch, generator)).half())
        decoded = decode(run, vae, latents[-1].float())
        images.append(((decoded + 1) * 127.5).round().byte())
    return Pool(pool, torch.cat(latents), torch.cat(images))


def to_float(images: Tensor) -> Tensor:
    """Turn bytes into the range [-1, 1], as the scorer's preprocessing does."""
    return images.float() / 127.5 - 1


DAMAGES = ("latent noise", "mixed with another", "blurred", "latents smoothed")
DAMAGE_LEVELS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


@torch.no_grad()
def damage(
    run: Run, vae: AutoencoderKL, latents: Tensor, level: Tensor, kind: Tensor
) -> tuple[Tensor, Tensor]:
    """Spoil pictures by a level between 0 (not at all) and 1.

    Args:
        run: Shared options.
        vae: Autoencoder.
        latents: Scaled latents `[n, 4, 16, 16]`.
        level: `[n]`, in [0, 1].
        kind: `[n]`, index into `DAMAGES`.

    Returns:
        Pictures in [-1, 1], and the share of its score `[n]` that each should keep.
    """
    amount = level[:, None, None, None]
    which = kind[:, None, None, None]
    noisy = latents + 1.2 * amount * torch.randn_like(latents)
    mixed = torch.lerp(latents, latents.roll(1, 0), amount)
    smooth = torch.lerp(latents, F.avg_pool2d(latents, 5, 1, 2, count_include_pad=False), amount)
    spoilt = torch.where(which == 0, noisy, latents)
    spoilt = torch.where(which == 1, mixed, torch.where(which == 3, smooth, spoilt))
    images = decode(run, vae, spoilt)
    coarse = F.interpolate(F.avg_pool2d(images, 16), scale_factor=16, mode="bilinear")
    images = torch.where(which == 2, torch.lerp(images, coarse, amount), images)
    harm = ((level - HARMLESS_DAMAGE) / (1 - HARMLESS_DAMAGE)).clamp(min=0)
    # Mixed entirely with another picture nothing is left; a blurred one still shows its colours.
    severity = torch.where(kind == 1, 1.0, torch.where(kind == 0, 0.9, 0.6))
    return images, 1 - severity * harm


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, codes: Tensor, usable: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE in which captions that mean the same are no negatives of each other.

    Args:
        image_features: Normalised `[n, d]`.
        text_features: Normalised `[2 n, d]`: the true captions, then the hard negatives.
        codes: Meaning of each caption `[2 n]`.
        usable: bool `[2 n]`, false for captions that must not be learnt from.
        scale: Multiplies cosines.

    Returns:
        The loss and the share of pictures whose own caption ranks first.
    """
    n = len(image_features)
    logits = scale * image_features.float() @ text_features.float().T
    own = torch.arange(n, device=logits.device)
    same = codes[None, :] == codes[:n, None]
    hidden = same | ~usable[None, :]
    hidden = hidden & (own[:, None] != torch.arange(2 * n, device=logits.device)[None, :])
    logits = logits.masked_fill(hidden, -1e4)
    by_image = F.cross_entropy(logits, own)
    by_text = F.cross_entropy(logits[:, :n].T, own)
    return (by_image + by_text) / 2, (logits.argmax(1) == own).float().mean()


def build_trainer(run: Run) -> tuple[Trainer, open_clip.CLIP, AutoencoderKL]:
    """Make the stage ready to train."""
    seed_everything(SEED)
    vae = load_vae(run)
    tokens_of = CaptionEncoder(run.device)
    model = build_scorer(tokens_of.vocab_size).train().to(run.device)
    pool = build_pool(run, vae, run.pool_size(POOL))
    drawn_pool = sample_pool(run, run.pool_size(POOL * 4), SEED + 7)
    batch = run.batch_size(BATCH)
    half, damaged = batch // 2, max(1, batch // DAMAGED_ONE_IN)
    image_encoder = run.callable(model.visual, "image encoder")

    def augment(images: Tensor) -> Tensor:
        blurred = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
        weight = torch.rand(len(images), 1, 1, 1, device=images.device)
        # Half of the pictures stay as they are.
        weight = (weight * 2 - 1).clamp(min=0)
        images = torch.lerp(images, blurred, weight)
        return images + 0.06 * weight * torch.randn_like(images)

    def loss() -> dict[str, Tensor]:
        with torch.no_grad():
            index = torch.randint(len(pool.scenes), (batch - half,), device=run.device)
            drawn = drawn_pool[torch.randint(len(drawn_pool), (half,), device=run.device)]
            with torch.autocast(run.device.type, enabled=False):
                images = torch.cat([to_float(pool.images[index]), drawing.draw_scenes(drawn)])
            level = torch.rand(damaged, device=run.device)
            kind = torch.randint(len(DAMAGES), (damaged,), device=run.device)
            spoilt, kept = damage(run, vae, pool.latents[index[:damaged]].float(), level, kind)
            images = torch.cat([augment(images), spoilt])
            batch_scenes = torch.cat([pool.scenes[index], drawn])
            wrong = scenes.mutate(batch_scenes)
            learnable = ~scenes.is_reserved(wrong)
            usable = torch.cat([torch.ones(batch, device=run.device).bool(), learnable])
            texts = torch.cat([batch_scenes, wrong])
            codes = scenes.scene_code(texts)
            tokens = tokens_of(texts)
        image_features = F.normalize(image_encoder(images).float(), dim=-1)
        text_features = F.normalize(model.encode_text(tokens).float(), dim=-1)
        scale = model.logit_scale.exp().clamp(max=100)
        contrastive, first = contrastive_loss(
            image_features[:batch], text_features, codes, usable, scale
        )
        cosine = (image_features[:batch] * text_features[:batch]).sum(-1)
        expected = cosine[:damaged].detach().clamp(min=0) * kept
        similarity = (image_features[batch:] * text_features[:damaged]).sum(-1)
        proportion = (similarity - expected).square().mean()
        return {
            "loss": contrastive + DAMAGE_WEIGHT * proportion,
            "contrastive": contrastive,
            "proportion": proportion,
            "first": first,
            "cosine": cosine.mean(),
            "scale": scale,
        }

    trainer = Trainer(
        run,
        "scorer",
        {"scorer": model},
        loss,
        steps=run.step_count(STEPS),
        batch=batch,
        peak_lr=PEAK_LR,
        end_lr=END_LR,
        warmup=200,
        ema_decay=0.998,
        weight_decay=0.05,
    )
    return trainer, model, vae


@torch.no_grad()
def score(model: open_clip.CLIP, images: Tensor, tokens: Tensor) -> Tensor:
    """Score pictures in [-1, 1] against captions: 100 x cosine similarity, `[n]`."""
    image_features = F.normalize(model.encode_image(images).float(), dim=-1)
    text_features = F.normalize(model.encode_text(tokens).float(), dim=-1)
    return 100 * (image_features * text_features).sum(-1)


@torch.no_grad()
def measure(
    run: Run, model: open_clip.CLIP, vae: AutoencoderKL, n: int = 1024
) -> dict[str, object]:
    """Measure the scorer on reserved scenes, which it has never seen.

    Args:
        run: Shared options.
        model: The scorer in evaluation mode.
        vae: The autoencoder.
        n: Number of scenes, a multiple of 64 for ranking each caption among 64.

    Returns:
        Shares of pictures whose own caption ranks first among 64, mean scores of the true caption,
        of one with a single attribute wrong and of another picture's, and scores by damage.
    """
    tokens_of = CaptionEncoder(run.device)
    generator = torch.Generator(run.device).manual_seed(SEED + 3)
    pool = build_pool(run, vae, n, reserved=True)
    drawn = drawing.draw_scenes(pool.scenes, generator)
    tokens = tokens_of(pool.scenes)
    wrong = tokens_of(scenes.mutate(pool.scenes, generator))
    text_features = F.normalize(model.encode_text(tokens).float(), dim=-1)
    codes = scenes.scene_code(pool.scenes)
    figures: dict[str, object] = {}
    for name, images in (("drawn", drawn), ("reconstructed", to_float(pool.images))):
        features = F.normalize(model.encode_image(images).float(), dim=-1)
        first = []
        for part in torch.arange(n, device=run.device).split(64):
            cosine = features[part] @ text_features[part].T
            twins = codes[part][:, None] == codes[part][None, :]
            cosine = cosine.masked_fill(twins & ~torch.eye(len(part), device=run.device).bool(), -1)
            first.append(cosine.argmax(1) == torch.arange(len(part), device=run.device))
        true, false = score(model, images, tokens), score(model, images, wrong)
        figures[name] = {
            "true_caption_first_of_64": float(torch.cat(first).float().mean()),
            "true_caption": float(true.mean()),
            "true_caption_std": float(true.std()),
            "one_attribute_wrong": float(false.mean()),
            "above_one_attribute_wrong": float((true > false).float().mean()),
            "another_caption": float(score(model, images, tokens.roll(1, 0)).mean()),
        }
    size = min(n, 256)
    by_damage: dict[str, dict[str, float]] = {}
    for kind, name in enumerate(DAMAGES):
        by_damage[name] = {}
        for level in (0.5,) if run.quick else DAMAGE_LEVELS:
            torch.manual_seed(SEED)
            images, _ = damage(
                run,
                vae,
                pool.latents[:size].float(),
                torch.full((size,), level, device=run.device),
                torch.full((size,), kind, device=run.device),
            )
            by_damage[name][str(level)] = float(score(model, images, tokens[:size]).mean())
    figures["score_by_damage"] = by_damage
    return figures


def run_stage(run: Run) -> None:
    """Train, measure, save."""
    trainer, model, vae = build_trainer(run)
    figures = trainer.train()
    with trainer.averaged():
        model.eval()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        # Measured as it is trained, saved as it is shipped.
        state = {name: value.half() for name, value in model.state_dict().items()}
        save_tensors(run, "scorer", state)
        figures["measured"] = measure(run, model, vae, 4 if run.quick else 1024)
    save_figures(run, "scorer", figures)
    say(f"[scorer] {figures}")
