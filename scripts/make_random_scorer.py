#!/usr/bin/env python
"""Write one of open_clip's ViTs with random weights, as a folder that `--clip_model` takes.

To see a whole search at full size where no weights can be fetched; its scores mean nothing, and
take as long as real ones:

    python scripts/make_random_scorer.py --like ViT-L-14 --out build/scorer
    accel-search --pipe build/sdxl --clip_model build/scorer --prompts prompts.txt
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

PLAIN = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
"""What an architecture says that is a vision and a text transformer with their projections."""
COMMON = 0.5
"""Random components are about 1 in size: cosines of 0.5 ** 2 / (1 + 0.5 ** 2), scores of 20."""


def write_scorer(
    out: Path,
    config: Mapping[str, Any],
    preprocess: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> Path:
    """Write the folder and return it.

    Args:
        out: The folder; made if need be.
        config: An open_clip model's configuration, e.g. `open_clip.get_model_config("ViT-L-14")`.
        preprocess: What its pictures are normalised by; open_clip's own by default.
        seed: Of the weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config)
    _make_scores_positive(model)
    save_file(model.state_dict(), out / "open_clip_model.safetensors")
    content = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (out / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    return out


@torch.no_grad()
def _make_scores_positive(model: Any) -> None:
    """Give pictures and texts an embedding in common, since a relative loss needs scores above 0.

    The biases before both projections are chosen so that each component grows by `COMMON`.
    """
    common = torch.full((model.text_projection.shape[1], 1), COMMON)
    for norm, projection in (
        (model.visual.ln_post, model.visual.proj),
        (model.ln_final, model.text_projection),
    ):
        norm.bias.copy_(torch.linalg.lstsq(projection.T, common).solution[:, 0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, write, and say where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--like", default="ViT-L-14", metavar="MODEL", help="[%(default)s]")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    config = open_clip.get_model_config(options.like)
    if config is None or not PLAIN.issuperset(config):
        plain = (name for name in open_clip.list_models() if name.startswith("ViT-"))
        plain = (name for name in plain if PLAIN.issuperset(open_clip.get_model_config(name)))
        parser.error(f"--like {options.like}: not one of {', '.join(plain)}")
    write_scorer(options.out, config)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{options.out}: {options.like}, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
