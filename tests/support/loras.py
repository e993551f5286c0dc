"""Narrow pipelines as folders and files, LoRAs for them, and scripts that load those."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from scripts.make_random_pipeline import write_lora, write_pipeline, write_single_file

from accel_search.runtime.quiet import quiet_libraries

LIKE = {"sd": "SD1.5", "xl": "SDXL"}


def make(folder: Path, *kinds: str) -> Path:
    """Write `sd/`, `sd.safetensors`, `sd_kohya.safetensors`, `sd_peft.safetensors`; or `xl`'s."""
    for kind in kinds:
        write_pipeline(folder / kind, LIKE[kind], width="narrow")
        write_single_file(folder / f"{kind}.safetensors", folder / kind, LIKE[kind])
        for seed, names in enumerate(("kohya", "peft")):
            file = folder / f"{kind}_{names}.safetensors"
            write_lora(file, folder / kind, LIKE[kind], names=names, seed=seed)
    return folder


def by_hand(folder: Path, kind: str, loras: Sequence[tuple[str, float]], *, file: bool) -> Any:
    """Return the pipeline of a script, nothing of this project in it."""
    is_xl = kind == "xl"
    cls = getattr(diffusers, f"StableDiffusion{'XL' if is_xl else ''}Pipeline")
    options = {"add_watermarker": False} if is_xl else {"safety_checker": None}
    with quiet_libraries():
        if file:
            # With the configurations that diffusers would fetch taken from the folder.
            options |= {"config": str(folder / kind), "local_files_only": True}
            pipe = cls.from_single_file(str(folder / f"{kind}.safetensors"), **options)
        else:
            pipe = cls.from_pretrained(str(folder / kind), **options)
        for name, _ in loras:
            path = str(folder / f"{kind}_{name}.safetensors")
            pipe.load_lora_weights(path, adapter_name=name)
        if loras:
            pipe.set_adapters([name for name, _ in loras], [scale for _, scale in loras])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, steps: int = 4, seed: int = 0, **options: Any) -> torch.Tensor:
    """Return one picture `[1, 3, 64, 64]`."""
    arguments = {"prompt": "a red ring", "height": 64, "width": 64, **options}
    generator = torch.Generator("cpu").manual_seed(seed)
    picture: torch.Tensor = pipe(
        num_inference_steps=steps, generator=generator, output_type="pt", **arguments
    ).images
    return picture
