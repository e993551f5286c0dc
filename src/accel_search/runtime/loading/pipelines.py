"""Load a pipeline without accelerators, and describe its workload."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from accel_search.core.tasks import SCALE, TEXT, numbered, with_scale
from accel_search.core.workload import PromptSet, Workload
from accel_search.errors import ConfigurationError, LoadError, OutOfMemoryError, first_line
from accel_search.runtime.demo import default_guidance
from accel_search.runtime.devices import (
    dtype_name,
    execution_device,
    resolve_device,
    resolve_dtype,
)
from accel_search.runtime.loading.adapters import as_task, find_adapters, with_adapters
from accel_search.runtime.loading.compatibility import check_fits
from accel_search.runtime.loading.components import load_model, load_part
from accel_search.runtime.loading.lora.files import LoraFile
from accel_search.runtime.loading.lora.load import load_loras
from accel_search.runtime.loading.pipeline_folder import PipelineFolder, find_pipeline
from accel_search.runtime.loading.random_weights import build_random
from accel_search.runtime.loading.schedulers import build_scheduler
from accel_search.runtime.loading.single_file.load import PipelineFile, load_file, open_file
from accel_search.runtime.memory import is_out_of_memory, parse_shortage
from accel_search.runtime.quiet import quiet_libraries
from accel_search.settings import Settings

NO_SAFETY_CHECKER: dict[str, Any] = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}

OFFLOADED = (
    "--offload: parts wait in main memory until they are called; moving them to the GPU is part of "
    "every timed call, baseline and candidate alike, so speedups are smaller than without it"
)


def import_libraries() -> None:
    """Import diffusers' and transformers' classes, which takes seconds, before loading starts."""
    from diffusers import (  # noqa: F401
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import (  # noqa: F401
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )


def load_pipeline(
    settings: Settings,
    log: logging.Logger,
    task: str = TEXT,
    loras: Sequence[LoraFile] = (),
) -> tuple[Any, PipelineFolder | PipelineFile]:
    """Load the pipeline of `settings.pipe` with the scheduler of `settings.sched`, for a task.

    Only safetensors weights and classes of diffusers and transformers are loaded. The safety
    checker is left out, which would take time and blacken images, and so is SDXL's invisible
    watermark, which depends on an optional package.

    Args:
        settings: What to load, where, and in what precision.
        log: Gets what is fetched, left out and offloaded.
        task: What it makes pictures of, one of `tasks.TASKS`.
        loras: Those of `settings.lora`, from `find_loras`.

    Returns:
        The pipeline, of the task's class, and its folder or file.

    Raises:
        LoadError: It cannot be found, fetched or safely loaded, or the device is missing.
        ConfigurationError: A LoRA is of another model, or diffusers cannot load it.
        OutOfMemoryError: Its weights do not fit the device.
    """
    import diffusers

    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    half = dtype is not torch.float32
    given = f"--pipe {settings.pipe}"
    with quiet_libraries():
        adapters = find_adapters(settings, half, log)
        source = open_file(settings, half, log, task) or find_pipeline(settings, half, log)
        try:
            scheduler = scheduler_of(settings, source.scheduler, source.pipeline_class)
            vae = None
            if source.vae is not None:
                cls, path = diffusers.AutoencoderKL, source.vae.path
                vae = load_model(f"--vae {settings.vae}", path, cls, half, dtype)
            if isinstance(source, PipelineFile):
                pipe = load_file(given, source, dtype, scheduler, vae)
            else:
                pipe = _load_folder(given, source, half, dtype, scheduler, vae)
            pipe = with_adapters(as_task(pipe, task, adapters, half, dtype), adapters, half, dtype)
            pipe.register_to_config(_name_or_path=str(source.path))
            _make_plain(pipe)
            load_loras(pipe, loras, settings.pipe)
            source = replace(source, adapters=adapters.names)
            _place(pipe, device, offload=settings.offload)
        except (LoadError, ConfigurationError):
            raise
        except Exception as error:  # Mismatched parts raise many classes.
            if is_out_of_memory(error):
                raise weights_do_not_fit(settings.pipe, device, error) from error
            raise LoadError(
                f"{given}: {source.path} could not be loaded ({first_line(error)}): fetch or save "
                "it again"
            ) from error
    _say_what_differs(settings, source, half, log)
    check_fits(pipe, given, settings.vae, source)
    return pipe, source


def _say_what_differs(
    settings: Settings, source: PipelineFolder | PipelineFile, half: bool, log: logging.Logger
) -> None:
    """Log what a pipeline is measured without, or otherwise than it is usually called."""
    xl = source.pipeline_class == "StableDiffusionXLPipeline"
    if source.has_safety_checker and not xl:
        log.info("--pipe %s: its safety checker is left out of every measurement", settings.pipe)
    rounded = [*source.half_parts, *(["vae"] if source.vae and source.vae.is_half else [])]
    if rounded and not half:
        log.warning(
            "--pipe %s: its %s has only half-precision files, so --dtype float32 computes with "
            "rounded weights",
            settings.pipe,
            ", ".join(rounded),
        )
    if settings.offload:
        log.info(OFFLOADED)


def _load_folder(
    given: str,
    folder: PipelineFolder,
    half: bool,
    dtype: torch.dtype,
    scheduler: Any,
    vae: Any,
) -> Any:
    """Return the pipeline of a folder, part by part; `vae` replaces its own, if not None."""
    import diffusers

    xl = folder.pipeline_class == "StableDiffusionXLPipeline"
    parts = {
        name: load_part(given, folder.path / name, name, part, half, dtype)
        for name, part in folder.parts.items()
        if name != "scheduler"
    }
    parts |= {"scheduler": scheduler} | ({} if vae is None else {"vae": vae})
    return getattr(diffusers, folder.pipeline_class)(
        **parts,
        **({"add_watermarker": False} if xl else NO_SAFETY_CHECKER),
        **folder.options,
    )


def scheduler_of(settings: Settings, own: Mapping[str, Any], pipeline_class: str) -> Any:
    """Return the scheduler that `--sched` asks for; arguments and errors as `build_scheduler`."""
    sampler = settings.sampler_asked
    given = f"--pipe {settings.pipe}"
    return build_scheduler(sampler.class_name, own, pipeline_class, given, sampler.options)


def _place(pipe: Any, device: torch.device, *, offload: bool) -> None:
    """Move a pipeline to its device, or make each part move there when it is called."""
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)


def random_pipeline(settings: Settings, loras: Sequence[LoraFile] = ()) -> Any:
    """Return the full-size architecture of `settings.pipe` with random weights.

    Raises:
        LoadError: The device is missing.
        ConfigurationError: A LoRA is of another model, or diffusers cannot load it.
        OutOfMemoryError: Its weights do not fit the device.
    """
    device = resolve_device(settings.device)
    made_on = torch.device("cpu") if settings.offload else device
    try:
        with quiet_libraries():
            pipe = build_random(settings.pipe, made_on, resolve_dtype(settings.dtype, device))
            pipe.disable_attention_slicing()
            _make_plain(pipe)
            load_loras(pipe, loras, settings.pipe)
            if settings.offload:
                _place(pipe, device, offload=True)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise weights_do_not_fit(settings.pipe, device, error) from error
        raise
    return pipe


def weights_do_not_fit(
    pipeline: str, device: torch.device, error: BaseException
) -> OutOfMemoryError:
    """Return the error for weights that do not fit, with the allocator's figures."""
    shortage = parse_shortage(str(error))
    return OutOfMemoryError(
        f"--pipe {pipeline}: its weights do not fit {device} ({shortage}): use --offload, or a "
        "GPU with more memory free",
        bytes_asked=shortage.bytes_asked,
        bytes_free=shortage.bytes_free,
    )


def _make_plain(pipe: Any) -> None:
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
            component.requires_grad_(False)


def describe_workload(
    pipe: Any,
    settings: Settings,
    folder: PipelineFolder | PipelineFile | None,
    prompts: PromptSet | None = None,
) -> Workload:
    """Return what the search measures.

    Args:
        pipe: As returned by `load_pipeline`; not changed.
        settings: The options.
        folder: Where the pipeline came from; None for random weights.
        prompts: What pictures are made of; None is of texts alone.

    Raises:
        ConfigurationError: The scheduler or the pipeline does not support the steps or the size.
    """
    factor = pipe.vae_scale_factor
    height, width = (prompts and prompts.size) or (settings.height, settings.width)
    if height is None or width is None:
        own = default_size(pipe, settings.pipe)
        height, width = height or own[0], width or own[1]
    for name, value in (("height", height), ("width", width)):
        multiple = max(factor, 8)
        if value % multiple:
            raise ConfigurationError(
                f"--{name} {value}: expected a multiple of {multiple} for this pipeline"
            )
    guidance_scale = settings.guidance_scale
    if guidance_scale is None and folder is not None:
        guidance_scale = default_guidance(folder.path)
    if guidance_scale is None:
        guidance_scale = float(default_of(pipe, "guidance_scale"))
    call = _further_arguments(pipe, settings, guidance_scale, prompts)
    return Workload(
        pipeline=settings.pipe,
        pipeline_class=type(pipe).__name__,
        scheduler_class=type(pipe.scheduler).__name__,
        steps=settings.steps,
        unet_calls=len(timesteps(pipe, settings.steps, dict(call).get("strength"))),
        height=height,
        width=width,
        batch_size=settings.batch_size,
        guidance_scale=guidance_scale,
        dtype=dtype_name(pipe.unet.dtype),
        device=str(execution_device(pipe)),
        latent_height=height // factor,
        latent_width=width // factor,
        attention_downsamples=attention_downsamples(pipe.unet),
        call=call,
    )


def _further_arguments(
    pipe: Any, settings: Settings, guidance_scale: float, prompts: PromptSet | None
) -> tuple[tuple[str, str | int | float], ...]:
    """Return further arguments of every call, after checking that they change something."""
    if settings.negative_prompt is not None and guidance_scale <= 1:
        raise ConfigurationError(
            f"--negative_prompt: without guidance (--guidance_scale {guidance_scale:g}) it changes "
            "nothing: leave it out"
        )
    if prompts is not None and "negative_prompt" in prompts.columns and guidance_scale <= 1:
        raise ConfigurationError(
            f"--prompts {prompts.source}: without guidance (--guidance_scale {guidance_scale:g}) "
            "its column negative_prompt changes nothing: leave it out"
        )
    layers = pipe.text_encoder.config.num_hidden_layers
    if settings.clip_skip is not None and settings.clip_skip >= layers:
        raise ConfigurationError(
            f"--clip_skip {settings.clip_skip}: the text encoder has {layers} layers; give "
            f"{layers - 1} or less"
        )
    is_xl = hasattr(pipe, "text_encoder_2")
    if settings.clip_skip is not None and not (is_xl or hasattr(pipe.text_encoder, "text_model")):
        import diffusers
        import transformers

        raise ConfigurationError(
            f"--clip_skip: the StableDiffusionPipeline of diffusers {diffusers.__version__} fails "
            f"with it beside transformers {transformers.__version__}, whose text encoder has no "
            "text_model: leave it out, or install transformers 4"
        )
    scales = [with_scale(name)[1] for name in settings.controlnet]
    call = (*settings.call, *zip(numbered(SCALE, len(scales)), scales, strict=True))
    if not takes(pipe, "strength"):
        return call
    strength = None if prompts is None else prompts.strength
    own = float(default_of(pipe, "strength")) if strength is None else strength
    return (*call, ("strength", own))


def takes(pipe: Any, name: str) -> bool:
    """Return whether a pipeline's call has an argument of that name."""
    return name in inspect.signature(type(pipe).__call__).parameters


def default_of(pipe: Any, name: str) -> Any:
    """Return the default of an argument of a pipeline's call."""
    return inspect.signature(type(pipe).__call__).parameters[name].default


def default_size(pipe: Any, name: str) -> tuple[int, int]:
    """Return the height and width in pixels that the UNet was trained for.

    Raises:
        ConfigurationError: Its configuration lacks them.
    """
    size = pipe.unet.config.sample_size
    if not size:
        raise ConfigurationError(
            f"--pipe {name}: its UNet's config.json has no sample_size: give --height and --width"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


def timesteps(pipe: Any, steps: int, strength: Any = None) -> list[float]:
    """Return the timestep of each UNet call of a pipeline call; the pipeline is not changed.

    Args:
        pipe: The pipeline.
        steps: Asked of its scheduler.
        strength: From an image on, the share of them that the pipeline makes; None is all.

    Raises:
        ConfigurationError: The scheduler does not support that many steps, or none are left.
    """
    scheduler = copy.deepcopy(pipe.scheduler)
    most = scheduler.config.num_train_timesteps
    try:
        if steps > most:  # Some schedulers would repeat timesteps.
            raise ValueError
        scheduler.set_timesteps(steps)
    except (ValueError, IndexError) as error:
        raise ConfigurationError(
            f"--steps {steps}: {type(scheduler).__name__} cannot make that many; its model was "
            f"trained with {most} timesteps"
        ) from error
    made = scheduler.timesteps
    if strength is not None:
        # The pipeline's own rule, on a scheduler that it does not keep.
        made = type(pipe).get_timesteps(
            SimpleNamespace(scheduler=scheduler), steps, strength, "cpu"
        )
        made = made[0]
    if not len(made):
        raise ConfigurationError(
            f"--steps {steps}: a strength of {strength:g} leaves no step of them: give more steps, "
            "or more strength"
        )
    return made.tolist()  # type: ignore[no-any-return]


def attention_downsamples(unet: Any) -> tuple[int, ...]:
    """Return the downsampling factors at which the UNet has transformer blocks, ascending."""
    from diffusers.models.attention import BasicTransformerBlock

    def attends(block: Any) -> bool:
        return any(isinstance(module, BasicTransformerBlock) for module in block.modules())

    factors = set()
    factor = 1
    for block in unet.down_blocks:
        if attends(block):
            factors.add(factor)
        if getattr(block, "downsamplers", None) is not None:
            factor *= 2
    if unet.mid_block is not None and attends(unet.mid_block):
        factors.add(factor)
    for block in unet.up_blocks:
        if attends(block):
            factors.add(factor)
        if getattr(block, "upsamplers", None) is not None:
            factor //= 2
    return tuple(sorted(factors))
