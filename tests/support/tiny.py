"""Tiny random SD and SDXL pipelines, and the upstream packages' own way to accelerate them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from accel_search.core.workload import Workload

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Of the libraries' own imports.
    import diffusers
    from diffusers import (
        AutoencoderKL,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

torch.set_num_threads(1)

WIDTH = 32
SIZE = 16
STEPS = 7
"""Enough for the least gate step that is searched, 5, with steps on both sides of it."""
KINDS = ("SD", "SDXL")
SCHEDULERS = ("DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
BASE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def make_scheduler(name: str, **options: Any) -> Any:
    extra: dict[str, Any] = {"steps_offset": 1}
    if name == "DDIMScheduler":
        extra |= {"clip_sample": False, "set_alpha_to_one": False}
    return getattr(diffusers, name)(**BASE, **extra, **options)


def _unet(kind: str) -> Any:
    common: dict[str, Any] = {
        "sample_size": SIZE,
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "cross_attention_dim": WIDTH,
    }
    if kind == "SD":  # SD1.5's layout: attention at 1, 2, 4 and, in the middle, 8.
        return UNet2DConditionModel(
            block_out_channels=(16, 16, 32, 32),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            attention_head_dim=2,
            **common,
        )
    return UNet2DConditionModel(  # SDXL's layout: attention at 2 and 4.
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 2, 4),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + WIDTH,
        **common,
    )


def make_pipe(kind: str = "SD", scheduler: str = "DDIMScheduler", **options: Any) -> Any:
    """Build a pipeline with random weights, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = _unet(kind)
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
        )
    parts: dict[str, Any] = {
        "unet": unet.eval(),
        "vae": vae.eval(),
        "scheduler": make_scheduler(scheduler, **options),
        "text_encoder": None,
        "tokenizer": None,
    }
    if kind == "SD":
        pipe: Any = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    else:
        pipe = StableDiffusionXLPipeline(
            **parts, text_encoder_2=None, tokenizer_2=None, add_watermarker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_img2img() -> Any:
    pipe = make_pipe()
    image_pipe = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    image_pipe.set_progress_bar_config(disable=True)
    return image_pipe


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(kind: str, images: tuple[int, ...]) -> dict[str, Any]:
    """Inputs of a call; each image has its own prompt, noise and generator."""

    def stack(offset: int, *shape: int) -> torch.Tensor:
        return torch.stack([_noise(offset + image, *shape) for image in images])

    found: dict[str, Any] = {
        "prompt_embeds": stack(1000, 7, WIDTH),
        "negative_prompt_embeds": _noise(1, 7, WIDTH).expand(len(images), -1, -1).clone(),
        "latents": stack(2000, 4, SIZE, SIZE),
        "generator": [torch.Generator().manual_seed(image) for image in images],
    }
    if kind == "SDXL":
        found["pooled_prompt_embeds"] = stack(3000, WIDTH)
        found["negative_pooled_prompt_embeds"] = _noise(2, WIDTH).expand(len(images), -1).clone()
    return found


def kind_of(pipe: Any) -> str:
    return "SDXL" if isinstance(pipe, StableDiffusionXLPipeline) else "SD"


def render(
    pipe: Any,
    images: tuple[int, ...] = (0, 1),
    steps: int = 20,
    guidance_scale: float = 5.0,
    call: str = "__call__",
    **options: Any,
) -> torch.Tensor:
    """Return the latents [N, 4, 16, 16] of `images`."""
    result: torch.Tensor = getattr(pipe, call)(
        **inputs(kind_of(pipe), images),
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        output_type="latent",
        return_dict=False,
        **options,
    )[0]
    return result


def difference(left: torch.Tensor, right: torch.Tensor) -> float:
    """Largest absolute difference; NaN counts as infinite."""
    gap = (left - right).abs().max().item()
    return gap if gap == gap else float("inf")


def workload(kind: str = "SD", steps: int = 20, **changes: Any) -> Workload:
    values: dict[str, Any] = {
        "pipeline": "tiny",
        "pipeline_class": f"StableDiffusion{'XL' if kind == 'SDXL' else ''}Pipeline",
        "scheduler_class": "DDIMScheduler",
        "steps": steps,
        "unet_calls": steps,
        "height": SIZE * 8,
        "width": SIZE * 8,
        "batch_size": 2,
        "guidance_scale": 5.0,
        "dtype": "float32",
        "device": "cpu",
        "latent_height": SIZE,
        "latent_width": SIZE,
        "attention_downsamples": (2, 4) if kind == "SDXL" else (1, 2, 4, 8),
    }
    return Workload(**(values | changes))


def snapshot(pipe: Any) -> dict[str, Any]:
    """`vars()` of the pipeline, its scheduler and all modules, to be compared before and after.

    Values are kept themselves, so that identity can be compared; containers (hooks, parameters,
    submodules) are copied one level deep, since they are changed in place.
    """
    owners = {"pipe": pipe, "scheduler": pipe.scheduler}
    for part in ("unet", "vae"):
        owners |= {f"{part}.{name}": module for name, module in getattr(pipe, part).named_modules()}
    return {
        name: (
            type(owner),
            list(vars(owner)),
            {k: dict(v) if isinstance(v, dict) else v for k, v in vars(owner).items()},
        )
        for name, owner in owners.items()
    }


CALL_STATE = {"pipe", "scheduler"}
"""Owners whose values, though not whose attributes, a plain call changes too."""


def assert_same(before: dict[str, Any], after: dict[str, Any], called: bool = True) -> None:
    assert before.keys() == after.keys()
    for name, (cls, keys, values) in before.items():
        after_cls, after_keys, after_values = after[name]
        assert after_cls is cls, name
        assert after_keys == keys, name
        if called and name in CALL_STATE:
            continue
        for key, value in values.items():
            now = after_values[key]
            if isinstance(value, dict):
                assert list(value) == list(now), f"{name}.{key}"
                assert all(value[item] is now[item] for item in value), f"{name}.{key}"
            else:
                assert now is value or (type(value) in (int, float, bool) and now == value), (
                    f"{name}.{key}"
                )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def upstream(
    kind: str,
    scheduler: str,
    candidate: Mapping[str, Mapping[str, Any]],
    steps: int = 20,
    images: tuple[int, ...] = (0, 1),
    **options: Any,
) -> torch.Tensor:
    """Latents that the upstream packages make, on a pipeline of their own that is thrown away."""
    import DeepCache
    import tgate
    import tomesd

    pipe = make_pipe(kind, scheduler)
    call, extra = "__call__", {}
    with quiet():
        if "tome" in candidate:
            from accel_search.accelerators.tome import SEED

            tomesd.apply_patch(pipe, **candidate["tome"])
            generator = torch.Generator().manual_seed(SEED)
            pipe.unet._tome_info["args"]["generator"] = generator
        if "tgate" in candidate:
            extra = dict(candidate["tgate"])
            extra["warm_up"] = extra.pop("warmup")
            call = "tgate"
            if "deepcache" in candidate:
                loader = getattr(tgate, f"Tgate{kind}DeepCacheLoader")
                loader(pipe, **candidate["deepcache"])
            else:
                getattr(tgate, f"Tgate{kind}Loader")(pipe)
        elif "deepcache" in candidate:
            helper = DeepCache.DeepCacheSDHelper(pipe=pipe)
            helper.set_params(**candidate["deepcache"])
            helper.enable()
        return render(pipe, images, steps, call=call, **extra, **options)


def tgate_params(gate_step: int, sp_interval: int, fi_interval: int, warmup: int) -> dict[str, int]:
    return {
        "gate_step": gate_step,
        "sp_interval": sp_interval,
        "fi_interval": fi_interval,
        "warmup": warmup,
    }


def runs(module: Any) -> list[int]:
    """Append to the list returned, at each run of `module`, the rows it gets."""
    seen: list[int] = []
    forward = module.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append((args[0] if args else kwargs["hidden_states"]).shape[0])
        return forward(*args, **kwargs)

    module.forward = counted
    return seen
