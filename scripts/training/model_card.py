"""The model card, written from what the stages measured."""

from __future__ import annotations

from typing import Any

from training import denoiser, package, scenes, scorer, vae

_STAGES = ("vae", "scorer", "denoiser")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _score(value: float) -> str:
    return f"{value:.1f}"


def _parameters() -> list[tuple[str, str, float]]:
    parts = [
        (
            "UNet",
            f"SD1.5's blocks, channels {'-'.join(map(str, denoiser.CHANNELS))}, 2 layers a "
            f"block, heads of {denoiser.HEAD_WIDTH}",
            denoiser.build_unet(),
        ),
        (
            "text encoder",
            f"CLIPTextModel, width {denoiser.TEXT_WIDTH}, 3 layers",
            denoiser.build_text_encoder(),
        ),
        (
            "autoencoder",
            f"AutoencoderKL, channels {'-'.join(map(str, vae.CHANNELS))}, 1 layer a "
            "block, factor 8",
            vae.build_vae(),
        ),
        (
            "scorer",
            f"open_clip CLIP, ViT patch 16, width {scorer.WIDTH}, 4 + 3 layers",
            scorer.build_scorer(scorer.CaptionEncoder("cpu").vocab_size),
        ),
    ]
    return [(n, text, sum(p.numel() for p in m.parameters()) / 1e6) for n, text, m in parts]


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _duration(training: dict[str, Any]) -> str:
    minutes, seconds = divmod(round(training["seconds"]), 60)
    total = f"; the whole run took {minutes} min {seconds} s,\npreparing and compiling included"
    if training["stages_overlapped"]:
        total += ", its stages overlapping on that one GPU"
    return total


def _introduction() -> str:
    """Return what depends on no figure: contents, data and architecture."""
    return f"""# The embedded demo pipeline

A Stable Diffusion pipeline small enough to ship inside a package, trained from nothing, with an
open_clip model that scores its pictures. It draws one or two coloured shapes, or a row of them, as
a caption says, at {scenes.IMAGE_SIZE} × {
        scenes.IMAGE_SIZE
    } pixels. It exists so that accelerators, searches and reports can be tried
and tested with real images and real scores, on a CPU, with nothing to download. It is of no use for
anything else.

| | |
| --- | --- |
| `pipeline/` | `StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)` |
| `scorer/` | `open_clip.create_model_and_transforms("local-dir:" + folder)` |
| `prompts.txt` | prompts never seen in training; a search draws its own and held-out ones |
| `demo.json` | default number of steps and guidance scale, size of a picture |
| `training_figures.json` | what was measured in training and afterwards |

Licence: MIT, weights and data alike.

## Data

Everything is drawn by `scripts/training/drawing.py`: {len(scenes.COLORS)} colours
({", ".join(scenes.COLORS)}), {len(scenes.SHAPES)} shapes ({", ".join(scenes.SHAPES)}),
{len(scenes.BACKGROUNDS)} backgrounds ({", ".join(scenes.BACKGROUNDS)}), two sizes; a single object
in one of {len(scenes.PLACES)} places, a pair in one of {len(scenes.RELATIONS)} relations, or two to
four in a row or a column. Captions follow one grammar, with at most {scenes.MAX_WORDS} words, each
of them one token. One scene in {
        scenes.RESERVED_ONE_IN
    }, chosen by a hash of its meaning, is reserved:
no such scene is drawn or captioned in training, and all prompts are reserved scenes.

## Architecture

{
        _table(
            ("part", "architecture", "parameters"),
            [(name, text, f"{millions:.2f} M") for name, text, millions in _parameters()],
        )
    }

Weights are stored in float16. The scheduler is DDIM with Stable Diffusion 1.5's schedule."""


def text(figures: dict[str, Any]) -> str:
    """Write the card from the content of `training_figures.json`."""
    trained = [
        (stage, f"{f['steps']:,}", f"{f['batch']:,}", f"{f['seconds']:.0f}")
        for stage, f in ((stage, figures[stage]) for stage in _STAGES)
    ]
    result, denoised = figures["evaluate"], figures["denoiser"]
    measured = figures["scorer"]["measured"]
    scorer_rows = [
        (label, *(show(measured[pictures][key]) for pictures in ("drawn", "reconstructed")))
        for label, key, show in (
            ("true caption first of 64", "true_caption_first_of_64", _percent),
            ("score of the true caption", "true_caption", _score),
            ("score with one attribute wrong", "one_attribute_wrong", _score),
            (
                "true caption above one with one attribute wrong",
                "above_one_attribute_wrong",
                _percent,
            ),
            ("score of another picture's caption", "another_caption", _score),
        )
    ]
    quality_rows = [
        ("drawn", _score(result["drawn"])),
        (
            f"generated, {package.DEFAULT_STEPS} steps",
            f"{_score(result['generated'])} ± {_score(result['error'])}",
        ),
        *((f"generated, {n} steps", _score(value)) for n, value in result["by_steps"].items()),
        (
            f"generated, {package.DEFAULT_STEPS} steps, against another's caption",
            _score(result["shuffled"]),
        ),
    ]
    total = _duration(figures["training"]) if figures["training"] else ""
    unet_share = (
        f"\n\nThe UNet takes {_percent(result['unet_share'])} of a call on a CPU "
        f"({result['threads']} threads, {package.DEFAULT_STEPS} steps, 4 pictures)."
        if "unet_share" in result
        else ""
    )
    return f"""{_introduction()}

## Training

{_table(("stage", "steps", "batch", "seconds of steps"), trained)}

On one {denoised["device"]} with torch {denoised["torch"]}{total}.
Reproduce with

    python scripts/training/train_demo.py --stage all --work build/demo --out src/accel_search/demo

A GPU does not repeat a training bit for bit, so that this gives other weights. The ones here come
from a single run.

## Measured

Score: 100 × cosine similarity of picture and caption, mean (± its standard error) over the
{result["prompts"]} prompts of `prompts.txt`, at guidance {
        package.DEFAULT_GUIDANCE:g}. The scorer was made for these pictures: its scores
are not comparable with those of another.

{_table(("pictures", "score"), quality_rows)}

The autoencoder reconstructs drawn pictures at {figures["vae"]["psnr_db"]:.1f} dB.

The scorer, on scenes that training never saw:

{_table(("", "drawn", "reconstructed"), scorer_rows)}{unet_share}
"""
