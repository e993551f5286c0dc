#!/usr/bin/env python
r"""Write a pipeline of SD1.5's, SD2.1's or SDXL's architecture with random weights, as a folder.

A folder in the format of the published checkpoints, to try what loads them where they cannot be
fetched:

    python scripts/make_random_pipeline.py --like SDXL --width tiny --out build/sdxl --fp16
    accel-search --pipe build/sdxl --latency_only --steps 8

`tiny` has the published blocks, layers and traits (SD2.1's v-prediction, SDXL's two text encoders
and its VAE that is decoded in float32) at a few channels; `full` has the published size, up to
14 GB. `narrow` is between them: a single file does not say how many heads and groups of norms a
model has, so those are as published.

`--controlnet FOLDER` and `--ip_adapter FOLDER` write a ControlNet and an IP-Adapter for it, with
random weights too.

`--single_file FILE` writes the same weights as one file too, in the layout of the original code:

    python scripts/make_random_pipeline.py --like SD1.5 --width narrow --out build/sd15 \
        --single_file build/sd15.safetensors
    accel-search --pipe build/sd15.safetensors --latency_only --steps 8

`--lora FILE` writes a LoRA for it too, of random numbers, in kohya's names or, with
`--lora_names peft`, in diffusers':

    python scripts/make_random_pipeline.py --like SD1.5 --width narrow --out build/sd15 \
        --lora build/lora.safetensors
    accel-search --pipe build/sd15 --lora build/lora.safetensors:0.8 --latency_only --steps 8
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from accel_search.runtime.loading.random_weights import ARCHITECTURES, build_random
from accel_search.runtime.loading.single_file.load import places
from accel_search.runtime.loading.single_file.names import TEXT_ENCODERS, UNET, unet_places
from accel_search.runtime.quiet import quiet_libraries

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WIDTHS: dict[str, dict[str, bool]] = {
    "tiny": {"is_tiny": True},
    "narrow": {"is_narrow": True},
    "full": {},
}
LIMIT = "10GB"
"""Size up to which a component is one file, unless told otherwise."""


def write_pipeline(
    out: Path,
    like: str,
    *,
    width: str = "tiny",
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
        width: One of `WIDTHS`.
        dtype: Of the plain files.
        fp16: Whether half-precision files lie beside them, as in the hub's repositories.
        max_shard_size: Size above which a component's weights are several files, e.g. `1MB`.
        seed: Of the weights.
        device: That draws the weights; a GPU takes seconds where a processor takes minutes.
    """
    torch.manual_seed(seed)
    with quiet_libraries():
        pipe = build_random(like, torch.device(device), dtype, **WIDTHS[width])
        pipe.save_pretrained(out, safe_serialization=True, max_shard_size=max_shard_size)
        if fp16:
            pipe.to(torch.float16)
            pipe.save_pretrained(
                out, safe_serialization=True, variant="fp16", max_shard_size=max_shard_size
            )
    return out


def write_single_file(
    out: Path, folder: Path, like: str, *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a pipeline's weights as one file in the layout of the original code, and return it.

    Args:
        out: The file.
        folder: The pipeline's, as `write_pipeline` wrote it.
        like: Its architecture.
        metadata: Of the file's header.
    """
    from safetensors.torch import save_file

    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(original_tensors(folder, like), out, metadata=dict(metadata or {"format": "pt"}))
    return out


def write_controlnet(out: Path, folder: Path, *, seed: int = 0) -> Path:
    """Write a ControlNet with random weights for a pipeline's UNet, as a folder, and return it.

    Args:
        out: The folder; made if need be.
        folder: The pipeline's, as `write_pipeline` wrote it.
        seed: Of the weights.
    """
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

    with quiet_libraries():
        unet = UNet2DConditionModel.from_pretrained(folder / "unet")
        halvings = len(AutoencoderKL.load_config(folder / "vae")["block_out_channels"]) - 1
        torch.manual_seed(seed)
        net = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=(8,) * (halvings + 1)
        )
        # A new one changes nothing: it ends in convolutions of zeros.
        with torch.no_grad():
            for parameter in net.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.1)
        net.save_pretrained(out)
    return out


def write_ip_adapter(out: Path, folder: Path, *, plus: bool = False, seed: int = 0) -> Path:
    """Write an IP-Adapter with random weights for a pipeline, and return its file.

    Args:
        out: The folder; its image encoder is in `image_encoder`.
        folder: The pipeline's, as `write_pipeline` wrote it.
        plus: Whether it looks at the patches of an image, not at the whole.
        seed: Of the weights.
    """
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=24,
    )
    with quiet_libraries():
        CLIPVisionModelWithProjection(config).save_pretrained(out / "image_encoder")
        unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    width = int(unet.config.cross_attention_dim)
    tensors = _plus_projection(width) if plus else _projection(width)
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    modules = dict(unet.named_modules())
    processors = list(unet.attn_processors)
    for name in names:
        inner = modules[name.removesuffix(".processor")].inner_dim
        for part in ("to_k_ip", "to_v_ip"):
            key = f"ip_adapter.{processors.index(name)}.{part}.weight"
            tensors[key] = torch.randn(inner, width) * width**-0.5
    file = out / "ip-adapter.safetensors"
    save_file(tensors, file)
    return file


def _projection(width: int) -> dict[str, torch.Tensor]:
    return {
        "image_proj.proj.weight": torch.randn(4 * width, 24),
        "image_proj.proj.bias": torch.randn(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }


def _plus_projection(width: int, inner: int = 64) -> dict[str, torch.Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (1, 4, inner),
        "proj_in.weight": (inner, 16),
        "proj_in.bias": (inner,),
        "proj_out.weight": (width, inner),
        "proj_out.bias": (width,),
        "norm_out.weight": (width,),
        "norm_out.bias": (width,),
    }
    block = {
        "0.norm1.weight": (inner,),
        "0.norm1.bias": (inner,),
        "0.norm2.weight": (inner,),
        "0.norm2.bias": (inner,),
        "0.to_q.weight": (inner, inner),
        "0.to_kv.weight": (2 * inner, inner),
        "0.to_out.weight": (inner, inner),
        "1.0.weight": (inner,),
        "1.0.bias": (inner,),
        "1.1.weight": (4 * inner, inner),
        "1.3.weight": (inner, 4 * inner),
    }
    # diffusers takes it to have four blocks.
    for layer in range(4):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
    return {f"image_proj.{name}": torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def original_tensors(folder: Path, like: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a pipeline's folder as the original code names and shapes them."""
    tensors: dict[str, torch.Tensor] = {}
    for part in ("unet", "vae", *TEXT_ENCODERS[like]):
        own = _tensors(folder / part)
        thirds: dict[str, dict[int, torch.Tensor]] = {}
        for name, place in places(like, part, own).items():
            tensor = own[name].T.contiguous() if place.is_transposed else own[name]
            if place.third is not None:
                thirds.setdefault(place.name, {})[place.third] = tensor
                continue
            # The attention of the original's VAE is a convolution of one pixel.
            is_matrix = part == "vae" and ".attn_1." in place.name and tensor.ndim == 2
            tensors[place.name] = tensor[:, :, None, None] if is_matrix else tensor
        for name, rows in thirds.items():
            tensors[name] = torch.cat([rows[third] for third in range(3)])
    return tensors


LORA_NAMES = ("kohya", "peft")
_CHANGED = re.compile(
    r".*(attn\d\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)|proj_(in|out)"
    r"|resnets\.\d+\.(conv1|time_emb_proj)|self_attn\.(q|k|v|out)_proj|mlp\.fc[12])\.weight"
)
"""Weights that a LoRA changes: those of the LCM-LoRAs, and of the text encoders."""


def write_lora(
    out: Path, folder: Path, like: str, *, names: str = "kohya", rank: int = 4, seed: int = 0
) -> Path:
    """Write a LoRA of random numbers for a pipeline's UNet and text encoders, and return it.

    Args:
        out: The file.
        folder: The pipeline's, as `write_pipeline` wrote it.
        like: Its architecture.
        names: One of `LORA_NAMES`. kohya's are those of the original code for SDXL's UNet, as its
            trainer has them, and of diffusers for others.
        rank: Of its matrices.
        seed: Of its numbers.
    """
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for part in ("unet", *TEXT_ENCODERS[like]):
        shapes = {
            name: tuple(weight.shape)
            for name, weight in _tensors(folder / part).items()
            if _CHANGED.fullmatch(name)
        }
        places = unet_places(_tensors(folder / part)) if part == "unet" and like == "SDXL" else {}
        for name, (made, *taken) in shapes.items():
            kernel = [1] * (len(taken) - 1)
            down = torch.randn(rank, *taken, generator=generator) * 0.1
            up = torch.randn(made, rank, *kernel, generator=generator) * 0.1
            layer = name.removesuffix(".weight")
            if part != "unet":
                layer = f"text_model.{layer.removeprefix('text_model.')}"
            if names == "peft":
                tensors |= {f"{part}.{layer}.lora_A.weight": down}
                tensors |= {f"{part}.{layer}.lora_B.weight": up}
                continue
            if name in places:
                layer = places[name].name.removeprefix(UNET).removesuffix(".weight")
            second = "1" if like == "SDXL" else ""
            prefix = {"unet": "unet", "text_encoder": f"te{second}"}.get(part, "te2")
            layer = f"lora_{prefix}_{layer.replace('.', '_')}"
            tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
            tensors |= {f"{layer}.alpha": torch.tensor(rank / 2)}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out, metadata={"format": "pt"})
    return out


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if ".fp16" not in file.name:
            tensors |= load_file(file)
    return tensors


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, write, and say where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--like", choices=ARCHITECTURES, required=True)
    parser.add_argument("--width", choices=WIDTHS, default="tiny")
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
    parser.add_argument(
        "--single_file", type=Path, metavar="FILE", help="write the weights as one file too"
    )
    parser.add_argument("--lora", type=Path, metavar="FILE", help="write a LoRA for it too")
    parser.add_argument(
        "--lora_names", choices=LORA_NAMES, default="kohya", help="of its tensors [%(default)s]"
    )
    parser.add_argument(
        "--controlnet", type=Path, metavar="FOLDER", help="write a ControlNet for it there"
    )
    parser.add_argument(
        "--ip_adapter", type=Path, metavar="FOLDER", help="write an IP-Adapter for it there"
    )
    options = parser.parse_args(arguments)
    if options.single_file is not None and options.width == "tiny":
        parser.error(
            "--single_file: its shapes do not tell the heads of --width tiny: give narrow or full"
        )
    write_pipeline(
        options.out,
        options.like,
        width=options.width,
        dtype=DTYPES[options.dtype],
        fp16=options.fp16,
        max_shard_size=options.max_shard_size,
        seed=options.seed,
        device=options.device,
    )
    if options.single_file is not None:
        write_single_file(options.single_file, options.out, options.like)
    if options.lora is not None:
        names, seed = options.lora_names, options.seed
        write_lora(options.lora, options.out, options.like, names=names, seed=seed)
    if options.controlnet is not None:
        write_controlnet(options.controlnet, options.out, seed=options.seed)
    if options.ip_adapter is not None:
        write_ip_adapter(options.ip_adapter, options.out, seed=options.seed)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.out}: {options.like}, {options.width}, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
