"""Stage `package`: put the trained parts into the folders that diffusers and open_clip load."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from training import scenes
from training.denoiser import LATENT_SIZE, build_scheduler, load_denoiser
from training.scorer import load_scorer, model_config
from training.tokenizer import build_tokenizer, save_tokenizer
from training.training import Run, load_figures, load_tensors, say
from training.vae import load_vae

PROMPT_SEED = 777
PROMPTS = 160
DEVELOPMENT_PROMPTS = 32
DEFAULT_STEPS = 20
# Stage `guidance` found scales from 2 to 6 alike, within the standard error of their scores.
DEFAULT_GUIDANCE = 3.0
# What the stages measured, for the model card. "training" is about the whole run.
FIGURES = "training_figures.json"
MEASURED = ("vae", "scorer", "denoiser", "training", "guidance")
SIZE_LIMIT_BYTES = int(15.5 * 2**20)


def prompt_scenes() -> torch.Tensor:
    """Scenes of `prompts.txt`, int64 `[PROMPTS, FIELDS]`, reserved."""
    return scenes.held_out_scenes(PROMPTS, PROMPT_SEED)


def development_scenes() -> torch.Tensor:
    """Further reserved scenes, for choices made while training: not in `prompts.txt`."""
    return scenes.held_out_scenes(PROMPTS + DEVELOPMENT_PROMPTS, PROMPT_SEED)[PROMPTS:]


def build_pipeline(run: Run) -> StableDiffusionPipeline:
    """Assemble the pipeline from what the stages saved."""
    unet, text_encoder = load_denoiser(run)
    pipeline = StableDiffusionPipeline(
        vae=load_vae(run),
        text_encoder=text_encoder,
        tokenizer=build_tokenizer(),
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_json(path: Path, content: object) -> None:
    """Write a file that people can read too."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _edit_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(changes)
    write_json(path, content)


def _save_pipeline(run: Run, folder: Path) -> None:
    pipeline = build_pipeline(replace(run, device=torch.device("cpu")))
    pipeline.unet.register_to_config(sample_size=LATENT_SIZE)
    pipeline.vae.register_to_config(force_upcast=False)
    pipeline.to(torch.float16).save_pretrained(folder)
    save_tokenizer(pipeline.tokenizer, folder / "tokenizer")
    # transformers 5 would otherwise load the text encoder in float16 beside float32 networks.
    _edit_json(folder / "text_encoder" / "config.json", dtype="float32")
    # Any version of transformers loads the names that Stable Diffusion 1.5's own files have.
    path = folder / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def _save_scorer(run: Run, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    load_scorer(run)  # fails here rather than at the user's
    tensors = {key: value.half() for key, value in load_tensors(run, "scorer").items()}
    save_file(tensors, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    config = {
        "model_cfg": model_config(len(tokenizer.get_vocab())),
        "preprocess_cfg": {
            "size": scenes.IMAGE_SIZE,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    write_json(folder / "open_clip_config.json", config)
    save_tokenizer(tokenizer, folder)


def size_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run_stage(run: Run) -> None:
    """Write the demo's folders.

    Raises:
        RuntimeError: The demo is larger than a package may carry.
    """
    for name in ("pipeline", "scorer"):
        shutil.rmtree(run.out / name, ignore_errors=True)
    _save_pipeline(run, run.out / "pipeline")
    _save_scorer(run, run.out / "scorer")
    prompts = scenes.captions(prompt_scenes())
    (run.out / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    defaults = {
        "default_guidance_scale": DEFAULT_GUIDANCE,
        "default_steps": DEFAULT_STEPS,
        "height": scenes.IMAGE_SIZE,
        "width": scenes.IMAGE_SIZE,
    }
    write_json(run.out / "demo.json", defaults)
    write_json(run.out / FIGURES, {name: load_figures(run, name) for name in MEASURED})
    for path in run.out.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors leaves its files readable by their owner only
    sizes = {name: size_bytes(run.out / name) for name in ("pipeline", "scorer")}
    say(f"[package] {run.out}: {sizes}, {sum(sizes.values()) / 2**20:.2f} MiB in all")
    if sum(sizes.values()) > SIZE_LIMIT_BYTES:
        raise RuntimeError(
            f"the demo weighs {sum(sizes.values())} bytes: {SIZE_LIMIT_BYTES} allowed"
        )
