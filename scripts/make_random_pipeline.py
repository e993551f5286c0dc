#!/usr/bin/env python
"""Write a pipeline of SD1.5's, SD2.1's or SDXL's architecture with random weights, as a folder.

A folder in the format of the published checkpoints, to try what loads them where they cannot be
fetched:

    python scripts/make_random_pipeline.py --like SDXL --width tiny --out build/sdxl --fp16
    accel-search --pipe build/sdxl --latency_only --steps 8

`tiny` has the published blocks, layers and traits (SD2.1's v-prediction, SDXL's two text encoders
and its VAE that is decoded in float32) at a few channels; `full` has the published size, up to
14 GB.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from accel_search.runtime.loading.random_weights import ARCHITECTURES, build_random
from accel_search.runtime.quiet import quiet_libraries

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LIMIT = "10GB"
"""Size up to which a component is one file, unless told otherwise."""


def write_pipeline(
    out: Path,
    like: str,
    *,
    is_tiny: bool = True,
    dtype: torch.dtype = torch.float32,
    fp16: bool = False,
    max_shard_size: str = LIMIT,
    seed: int = 0,
    device: str = "cpu",
) -> Path:
    """Write the folder and return it.

    Args:
        out: The folder; made if need be.
        like: One of `ARCHITECTURES`.
        is_tiny: A few channels wide in place of the published width.
        dtype: Of the plain files.
        fp16: Whether half-precision files lie beside them, as in the hub's repositories.
        max_shard_size: Size above which a component's weights are several files, e.g. `1MB`.
        seed: Of the weights.
        device: That draws the weights; a GPU takes seconds where a processor takes minutes.
    """
    torch.manual_seed(seed)
    with quiet_libraries():
        pipe = build_random(like, torch.device(device), dtype, is_tiny=is_tiny)
        pipe.save_pretrained(out, safe_serialization=True, max_shard_size=max_shard_size)
        if fp16:
            pipe.to(torch.float16)
            pipe.save_pretrained(
                out, safe_serialization=True, variant="fp16", max_shard_size=max_shard_size
            )
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, write, and say where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--like", choices=ARCHITECTURES, required=True)
    parser.add_argument("--width", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--fp16", action="store_true", help="write half-precision files beside the plain ones"
    )
    parser.add_argument(
        "--max_shard_size",
        default=LIMIT,
        metavar="SIZE",
        help="split weights above it, e.g. 1MB [%(default)s]",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the plain files [%(default)s]"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--device", default="cpu", help="that draws the weights: cpu or cuda [%(default)s]"
    )
    options = parser.parse_args(arguments)
    write_pipeline(
        options.out,
        options.like,
        is_tiny=options.width == "tiny",
        dtype=DTYPES[options.dtype],
        fp16=options.fp16,
        max_shard_size=options.max_shard_size,
        seed=options.seed,
        device=options.device,
    )
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.out}: {options.like}, {options.width}, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
