"""Check that the parts of a pipeline fit together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from accel_search.core.tasks import task_of
from accel_search.errors import LoadError
from accel_search.runtime.loading.pipeline_folder import PipelineFolder
from accel_search.runtime.loading.single_file.load import PipelineFile

COLOURS = 3


def check_fits(
    pipe: Any, given: str, vae: str | None, folder: PipelineFolder | PipelineFile
) -> None:
    """Refuse a pipeline whose parts do not take each other's outputs.

    Args:
        pipe: The pipeline.
        given: Option and value, for messages.
        vae: Value of `--vae`, if any.
        folder: Where the pipeline came from.

    Raises:
        LoadError: The message names the part that does not fit.
    """
    _check_unet(pipe, given)
    _check_vae(pipe, given, vae)
    if vae is not None:
        _check_replaced_vae(pipe, given, vae, folder)
    wanted, widths = _text_width(pipe.unet.config), _text_widths(pipe)
    if wanted != {sum(widths)}:
        raise LoadError(
            f"{given}: its UNet takes texts of width {_listed(wanted)}, its text encoder makes "
            f"{sum(widths)}: they are of different models"
        )
    for tokenizer, encoder in _text_parts(pipe):
        _check_tokenizer(tokenizer, encoder.config, given)


def _check_unet(pipe: Any, given: str) -> None:
    unet, task = pipe.unet.config, task_of(type(pipe).__name__)
    # Some models of inpainting are given the masked picture and the mask as well.
    paints = unet.in_channels == 2 * unet.out_channels + 1
    if unet.in_channels != unet.out_channels and not (paints and task == "inpaint"):
        way_out = (
            "give images and masks in the prompts file (--pipe_class inpaint)"
            if paints
            else "only models that draw from text alone can be searched"
        )
        raise LoadError(
            f"{given}: its UNet takes {unet.in_channels} channels and makes {unet.out_channels}, "
            f"as those of inpainting, editing or upscaling do; {way_out}"
        )
    if unet.class_embed_type is not None or unet.num_class_embeds is not None:
        raise LoadError(
            f"{given}: its UNet draws classes (class_embed_type {unet.class_embed_type!r}); only "
            "models that draw from text alone can be searched"
        )


def _check_vae(pipe: Any, given: str, vae: str | None) -> None:
    made, taken = pipe.unet.config.out_channels, pipe.vae.config.latent_channels
    colours = getattr(pipe.vae.config, "out_channels", COLOURS)
    whose, remedy = f"--vae {vae}: it", "give one made for this pipeline"
    if vae is None:
        whose, remedy = f"{given}: its VAE", "replace it with --vae"
    if made != taken:
        raise LoadError(
            f"{whose} decodes latents of {taken} channels, but the UNet of {given} makes {made}: "
            f"{remedy}"
        )
    if colours != COLOURS:
        raise LoadError(
            f"{whose} makes pictures of {colours} channels; expected {COLOURS}, for red, green and "
            f"blue: {remedy}"
        )


def _check_replaced_vae(
    pipe: Any, given: str, vae: str, folder: PipelineFolder | PipelineFile
) -> None:
    """Refuse a VAE for other latents, which would decode noise."""
    own, replacement = folder.scaling_factor, pipe.vae.config.scaling_factor
    if not math.isclose(own, replacement, rel_tol=1e-3):
        raise LoadError(
            f"--vae {vae}: its latents are scaled by {replacement}, those of {given} by {own}: "
            "give one made for this pipeline"
        )
    if folder.pixels_per_latent != pipe.vae_scale_factor:
        raise LoadError(
            f"--vae {vae}: one of its latents stands for {pipe.vae_scale_factor} pixels, one of "
            f"{given} for {folder.pixels_per_latent}: give one made for this pipeline"
        )


def _text_width(unet: Any) -> set[int]:
    """Return the widths of texts that the blocks expect: one, if they agree."""
    width = unet.encoder_hid_dim or unet.cross_attention_dim
    return {width} if isinstance(width, int) else set(_flat(width))


def _flat(value: Any) -> Iterable[int]:
    for width in value:
        yield from [width] if isinstance(width, int) else _flat(width)


def _text_widths(pipe: Any) -> list[int]:
    return [encoder.config.hidden_size for _, encoder in _text_parts(pipe)]


def _text_parts(pipe: Any) -> list[tuple[Any, Any]]:
    names = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
    return [
        (getattr(pipe, tokenizer), getattr(pipe, encoder))
        for tokenizer, encoder in names
        if hasattr(pipe, encoder)
    ]


def _check_tokenizer(tokenizer: Any, encoder: Any, given: str) -> None:
    if len(tokenizer) > encoder.vocab_size:
        raise LoadError(
            f"{given}: a tokenizer knows {len(tokenizer)} tokens, its text encoder "
            f"{encoder.vocab_size}: they are of different models"
        )
    if tokenizer.model_max_length > encoder.max_position_embeddings:
        raise LoadError(
            f"{given}: the tokenizer_config.json of a tokenizer gives no model_max_length of up to "
            f"{encoder.max_position_embeddings}, the tokens that its text encoder takes: fetch or "
            "save it again"
        )


def _listed(numbers: set[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers))
