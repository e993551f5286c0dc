"""Stages `guidance` and `evaluate`: score what the demo generates.

`guidance` works on what training left in the work folder and on development prompts; `evaluate` on
the finished folders, loaded as a user would load them, and on the prompts that are shipped.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import open_clip
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from training import drawing, model_card, package, scenes
from training.scorer import load_scorer, score
from training.tokenizer import CaptionEncoder
from training.training import Run, save_figures, say

GUIDANCE_SCALES = (2.0, 3.0, 4.0, 6.0)
FEWER_STEPS = (10, 5, 3)
SHEET_SIDE = 4
CPU_BATCH = 4
CPU_CALLS = 3


@torch.no_grad()
def generate(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    steps: int,
    guidance_scale: float,
    batch: int,
) -> Tensor:
    """Generate one picture a prompt, each from a seed of its own.

    Returns:
        float32 `[n, 3, IMAGE_SIZE, IMAGE_SIZE]` in [-1, 1], rounded to bytes as a file would be.
    """
    images = []
    for first in range(0, len(prompts), batch):
        chunk = prompts[first : first + batch]
        result = pipeline(
            prompt=chunk,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(first + i) for i in range(len(chunk))],
            output_type="pt",
        )
        images.append(result.images.float())
    return (torch.cat(images) * 255).round() / 127.5 - 1


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def to_pictures(images: Tensor) -> list[Image.Image]:
    """Turn pictures in [-1, 1] into what PIL works on."""
    arrays = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def _batch(run: Run) -> int:
    return 64 if run.device.type == "cuda" else 8


def save_sheet(images: Tensor, prompts: list[str], path: Path) -> None:
    """Save pictures in a square with their captions below them."""
    side, margin, text_height = 2 * scenes.IMAGE_SIZE, 12, 58
    cell = (side + margin, side + text_height + margin)
    sheet = Image.new(
        "RGB", (SHEET_SIDE * cell[0] + margin, SHEET_SIDE * cell[1] + margin), "white"
    )
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    shown = list(zip(to_pictures(images), prompts, strict=True))[: SHEET_SIDE**2]
    for index, (small, prompt) in enumerate(shown):
        x = margin + index % SHEET_SIDE * cell[0]
        y = margin + index // SHEET_SIDE * cell[1]
        picture = small.resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(picture, (x, y))
        pen.rectangle((x, y, x + side - 1, y + side - 1), outline="silver")
        lines = [""]
        for word in prompt.split():
            longer = f"{lines[-1]} {word}".strip()
            if pen.textlength(longer, font=font) > side:
                lines.append(word)
            else:
                lines[-1] = longer
        pen.multiline_text((x, y + side + 3), "\n".join(lines), fill="black", font=font, spacing=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


@torch.no_grad()
def run_guidance(run: Run) -> None:
    """Score the averaged weights on development prompts by guidance scale, to choose one."""
    # A smoke run only shows that this works.
    chosen = package.development_scenes()[: 2 if run.quick else None].to(run.device)
    prompts = scenes.captions(chosen)
    tokens = CaptionEncoder(run.device)(chosen)
    pipeline, scorer = package.build_pipeline(run), load_scorer(run)
    drawn = drawing.draw_scenes(chosen, torch.Generator(run.device).manual_seed(0))
    by_scale = {}
    for scale in GUIDANCE_SCALES[: 1 if run.quick else None]:
        images = generate(pipeline, prompts, package.DEFAULT_STEPS, scale, _batch(run))
        mean, error = mean_and_error(score(scorer, images, tokens))
        shuffled, _ = mean_and_error(score(scorer, images, tokens.roll(1, 0)))
        by_scale[str(scale)] = {"generated": mean, "error": error, "shuffled": shuffled}
    figures = {
        "prompts": len(prompts),
        "drawn": mean_and_error(score(scorer, drawn, tokens))[0],
        "by_scale": by_scale,
    }
    save_figures(run, "guidance", figures)
    say(f"[guidance] {figures}")


@torch.no_grad()
def measure_unet_share(pipeline: StableDiffusionPipeline, steps: int) -> float:
    """Measure the share of a call on a CPU that the UNet takes: the median of some calls."""
    prompts = scenes.captions(package.development_scenes()[:CPU_BATCH])
    forward = pipeline.unet.forward
    in_unet = 0.0

    def timed(*args: object, **kwargs: object) -> object:
        nonlocal in_unet
        start = time.perf_counter()
        result = forward(*args, **kwargs)
        in_unet += time.perf_counter() - start
        return result

    generate(pipeline, prompts, 1, package.DEFAULT_GUIDANCE, CPU_BATCH)  # first calls are slower
    pipeline.unet.forward = timed
    shares = []
    try:
        for _ in range(CPU_CALLS):
            in_unet, start = 0.0, time.perf_counter()
            generate(pipeline, prompts, steps, package.DEFAULT_GUIDANCE, CPU_BATCH)
            shares.append(in_unet / (time.perf_counter() - start))
    finally:
        del pipeline.unet.forward
    return sorted(shares)[CPU_CALLS // 2]


@torch.no_grad()
def run_stage(run: Run) -> None:
    """Load the finished folders, score all prompts, save the sheet and the model card."""
    guidance = package.DEFAULT_GUIDANCE
    pipeline = StableDiffusionPipeline.from_pretrained(run.out / "pipeline", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(run.device)
    name = f"local-dir:{run.out / 'scorer'}"
    scorer, _, preprocess = open_clip.create_model_and_transforms(name, device=run.device)
    scorer.eval()
    prompts = (run.out / "prompts.txt").read_text(encoding="utf-8").splitlines()
    prompts = prompts[: 2 if run.quick else None]
    tokens = open_clip.get_tokenizer(name)(prompts).to(run.device)
    chosen = scenes.parse_captions(prompts).to(run.device)

    def scored(images: Tensor, texts: Tensor) -> tuple[float, float]:
        # Through PIL and the scorer's own preprocessing: the way that a user's pictures take.
        pixels = torch.stack([preprocess(picture) for picture in to_pictures(images)])
        return mean_and_error(score(scorer, pixels.to(run.device), texts))

    drawn = drawing.draw_scenes(chosen, torch.Generator(run.device).manual_seed(0))
    images = generate(pipeline, prompts, package.DEFAULT_STEPS, guidance, _batch(run))
    mean, error = scored(images, tokens)
    figures: dict[str, object] = {
        "device": run.device.type,
        "prompts": len(prompts),
        "drawn": scored(drawn, tokens)[0],
        "generated": mean,
        "error": error,
        "shuffled": scored(images, tokens.roll(1, 0))[0],
        "by_steps": {
            str(steps): scored(generate(pipeline, prompts, steps, guidance, _batch(run)), tokens)[0]
            for steps in FEWER_STEPS
        },
    }
    if run.device.type == "cpu":
        figures["threads"] = torch.get_num_threads()
        figures["unet_share"] = measure_unet_share(
            pipeline, 1 if run.quick else package.DEFAULT_STEPS
        )
    say(f"[evaluate] {figures}")
    save_sheet(images, prompts, run.sheet)
    path = run.out / package.FIGURES
    all_figures = json.loads(path.read_text(encoding="utf-8")) | {"evaluate": figures}
    package.write_json(path, all_figures)
    (run.out / "README.md").write_text(model_card.text(all_figures), encoding="utf-8")
