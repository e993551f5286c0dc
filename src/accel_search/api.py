"""Apply settings or a stored result to a pipeline."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from accel_search.cli.program import in_one_line
from accel_search.core.candidate import Candidate, Params
from accel_search.core.schedulers import class_and_options, parse_sampler, scheduler_class
from accel_search.core.workload import IMPLEMENTATIONS, IN_MEMORY
from accel_search.errors import ConfigurationError
from accel_search.runtime.matching import shown_by
from accel_search.storage.choice import SIZE, find_result, holds_any, warn_of_loras
from accel_search.storage.lookup import Result, Wanted, in_a_line

if TYPE_CHECKING:
    from accel_search.accelerators.compose import Patch

_logger = logging.getLogger(__name__)

_PREDICTION = ("prediction_type", "timestep_spacing", "rescale_betas_zero_snr")
"""Further ones, which a pipeline has from its model: known where a result says what it had."""
_SIGMAS_AND_NOISE = (
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"),
    *("algorithm_type", "solver_order", "solver_type", "final_sigmas_type"),
)
"""Options that change the sampler of a scheduler's class."""


class Acceleration:
    """Settings applied to a pipeline until `remove`, or to the end of a `with` block.

    The pipeline stays accelerated even if this object is discarded; `restore` then undoes it.
    """

    def __init__(
        self,
        pipe: Any,
        candidate: Candidate,
        scheduler: str | None = None,
        implementation: str = "own",
    ) -> None:
        from accel_search.accelerators.compose import Patch

        self.candidate = candidate
        """What is applied."""
        with ExitStack() as stack:
            exchanged = None
            if scheduler is not None:
                exchanged = _ExchangedScheduler(pipe, scheduler)
                stack.callback(exchanged.put_back)
            # The accelerators follow the scheduler that is set now.
            self._patch: Patch = Patch(pipe, candidate, implementation)
            if exchanged is not None:
                self._patch.on_remove(exchanged.put_back)
            stack.pop_all()

    def remove(self) -> None:
        """Restore the pipeline; a second call does nothing.

        Changes made by others since are kept, e.g. a scheduler that was set meanwhile.

        Raises:
            AcceleratorError: Another thread is in a call of the pipeline.
        """
        self._patch.remove()

    def __enter__(self) -> Acceleration:
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove what was applied."""
        self.remove()


class _ExchangedScheduler:
    """Give a pipeline the scheduler that a search makes for it.

    Needed even if its own is of that class, because a search disables its clipping.
    """

    def __init__(self, pipe: Any, name: str) -> None:
        from accel_search.accelerators.patching import check_pipeline
        from accel_search.runtime.loading.schedulers import build_scheduler, check_exchange

        check_pipeline(pipe)
        class_name, asked = _known_scheduler(name)
        check_exchange(f"scheduler {name!r}", pipe.scheduler, class_name)
        self._pipe = weakref.ref(pipe)
        self._own = pipe.scheduler
        self._ours = build_scheduler(class_name, self._own.config, type(pipe).__name__, asked=asked)
        pipe.scheduler = self._ours

    def put_back(self) -> None:
        """Restore the pipeline's own scheduler, unless another has been set since."""
        pipe = self._pipe()
        if pipe is not None and pipe.scheduler is self._ours:
            pipe.scheduler = self._own


def accelerate(
    pipe: Any,
    settings: Mapping[str, Params] | str | Path = "search_params.json",
    *,
    steps: int | None = None,
    scheduler: str | None = None,
    targets: Sequence[str] | None = None,
    req_score_loss: float | None = None,
    model: str | None = None,
    height: int | None = None,
    width: int | None = None,
    batch_size: int | None = None,
    guidance_scale: float | None = None,
    implementation: str | None = None,
    quiet: bool = False,
) -> Acceleration:
    """Apply accelerators to a diffusers pipeline, which is then called as before.

    The pipeline stays accelerated until `remove()` of the returned object, the end of its `with`
    block, or `restore(pipe)`.

    Args:
        pipe: A diffusers pipeline with a `UNet2DConditionModel` (SD1.5, SD2.1, SDXL type).
        settings: Accelerator name -> its parameters, e.g.
            `{"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}`; or a result file of
            `accel-search`: the result that fits (`load_best`) is taken, and named on stderr.
        steps: As in `load_best`.
        scheduler: A sampler as `--sched` takes it, or a class name: only results for it are taken,
            and the pipeline uses it, made as a search makes it, until the settings are removed.
            None keeps the pipeline's own and takes only results for it.
        targets: As in `load_best`.
        req_score_loss: As in `load_best`.
        model: As in `load_best`.
        height: As in `load_best`, as are `width`, `batch_size` and `guidance_scale`.
        width: See `height`.
        batch_size: See `height`.
        guidance_scale: See `height`.
        implementation: `own`, or `package` for DeepCache, tomesd and tgate themselves: only results
            measured with it are taken. None takes any result, applied as it was measured, and
            applies given settings by our own.
        quiet: Do not print the line that describes a file's result.

    Raises:
        ConfigurationError: The file holds no fitting result, an accelerator or parameter is
            unknown, missing or out of range, or there is no such scheduler.
        LoadError: The requested scheduler cannot be made from the configuration of the pipeline's
            own, or that is of a kind that is not searched (flow matching, EDM).
        AcceleratorError: The pipeline cannot be patched, or already is.
    """
    choice: dict[str, Any] = {"steps": steps, "targets": targets, "model": model}
    choice |= {"req_score_loss": req_score_loss, "height": height, "width": width}
    choice |= {"batch_size": batch_size, "guidance_scale": guidance_scale}
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ConfigurationError(
            f"accelerate: implementation is {implementation!r}; give {' or '.join(IMPLEMENTATIONS)}"
        )
    if isinstance(settings, str | Path):
        return _apply_result(pipe, settings, scheduler, implementation, quiet, choice)
    if any(value is not None for value in choice.values()):
        raise ConfigurationError(
            f"accelerate: {', '.join(choice)} choose among a file's results: give the path of "
            "one, or leave them out"
        )
    return Acceleration(pipe, Candidate(settings), scheduler, implementation or "own")


def _known_scheduler(name: str) -> tuple[str, dict[str, Any]]:
    """Return the class of a sampler and its options, or raise ConfigurationError for none."""
    import diffusers

    from accel_search.runtime.loading.schedulers import check_options

    class_name, asked = class_and_options(name)
    if not (class_name.endswith("Scheduler") and hasattr(diffusers, class_name)):
        try:
            parse_sampler(name)
        except ValueError as error:
            raise ConfigurationError(
                f"scheduler {name!r}: expected {error}; or a scheduler class of diffusers"
            ) from error
    check_options(f"scheduler {name!r}", class_name, asked)
    return class_name, asked


def _apply_result(
    pipe: Any,
    path: str | Path,
    scheduler: str | None,
    implementation: str | None,
    quiet: bool,
    choice: Mapping[str, Any],
) -> Acceleration:
    """Apply the result that fits, with the warnings and the line that belong to it."""
    if scheduler is not None:
        _known_scheduler(scheduler)
    result = _find(path, pipe, implementation, scheduler=scheduler, **choice)
    entry = result.entry
    applied = Acceleration(pipe, entry.candidate, scheduler, entry.where.implementation)
    _warn_of_sampler(path, pipe.scheduler, entry.where.scheduler or {})
    if not quiet:
        print(in_one_line(f"accel-search: {path}: applied {in_a_line(result)}"), file=sys.stderr)
    return applied


def restore(pipe: Any) -> None:
    """Restore an accelerated pipeline, as `remove()` of the object that `accelerate` returned.

    Does nothing to a pipeline that is not accelerated. Of two pipelines that share a UNet, either
    restores the other.

    Raises:
        AcceleratorError: Another thread is in a call of the pipeline.
    """
    from accel_search.accelerators.compose import remove_from

    remove_from(pipe)


def compile_unet(pipe: Any) -> None:
    """Compile the UNet of a pipeline as a search with `--compile` does, on any device.

    Its transformer blocks are compiled permanently, in the first calls that need them. `accelerate`
    works as on any other pipeline.

    Args:
        pipe: A diffusers pipeline with a `UNet2DConditionModel`.
    """
    from accel_search.runtime import compiling

    compiling.compile_unet(pipe)


def load_best(
    path: str | Path = "search_params.json",
    pipe: Any = None,
    *,
    steps: int | None = None,
    scheduler: str | None = None,
    targets: Sequence[str] | None = None,
    req_score_loss: float | None = None,
    model: str | None = None,
    height: int | None = None,
    width: int | None = None,
    batch_size: int | None = None,
    guidance_scale: float | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the fastest settings that a search has stored, of those measured by our accelerators.

    Of results of several devices, those of the pipeline's GPU are taken; if there are none, those
    of the device that was measured last, with a warning. Of those, the ones of the pipeline's
    weights, precision and scheduler options; and of several workloads that are left, the one that
    was measured last, with a warning that names the arguments which choose.

    Args:
        path: The result file of `accel-search`.
        pipe: The pipeline they are for: only results of its class are taken, and of several models
            those of the model that it was loaded from; a warning says where the only one may be of
            another model. Where the file holds none of its class (image-to-image, inpainting,
            ControlNet …), results of the text-to-image pipeline of the same UNet are taken, with a
            warning. None takes any.
        steps: Only results for this many denoising steps are taken. None takes any.
        scheduler: Only results for this scheduler are taken: `DDIM`, `DPM-Solver++`, `UniPC`, or
            a class name. None takes the pipeline's.
        targets: Only results of a search of exactly these accelerators are taken. None takes any.
        req_score_loss: Only results of a search within this bound on the loss of score, a
            fraction, are taken. None suffices where all that fit are within one bound.
        model: Hub id or folder of the model as it was searched, where the pipeline was loaded
            from elsewhere. None takes the pipeline's own.
        height: Only results for pictures of this height in pixels are taken. None takes any.
        width: The same of their width.
        batch_size: Only results for this many images a call are taken. None takes any.
        guidance_scale: Only results for this guidance scale are taken. None takes any.

    Returns:
        Accelerator name -> parameters, as `accelerate` takes them.

    Raises:
        ConfigurationError: The file holds no such result, or results of several other models, or
            results within several bounds.
    """
    return _find(
        path,
        pipe,
        "own",
        steps=steps,
        scheduler=scheduler,
        targets=targets,
        req_score_loss=req_score_loss,
        model=model,
        height=height,
        width=width,
        batch_size=batch_size,
        guidance_scale=guidance_scale,
    ).entry.settings


def _find(
    path: str | Path,
    pipe: Any,
    implementation: str | None,
    *,
    scheduler: str | None,
    **choice: Any,
) -> Result:
    """Return the result that `load_best` takes its settings from."""
    asked = {name: choice.pop(name) for name in SIZE} | {"implementation": implementation}
    choice["provenance"] = {name: value for name, value in asked.items() if value is not None}
    if not Path(path).exists():
        raise ConfigurationError(f"{path}: no such file; accel-search writes it")
    if pipe is None:
        return find_result(Path(path), Wanted(scheduler_class=_class_of(scheduler), **choice))
    own = type(pipe).__name__
    name = type(pipe.scheduler).__name__ if scheduler is None else scheduler
    wanted = [
        Wanted(pipeline_class=searched, scheduler_class=_class_of(name), **choice)
        for searched in _searched_as(pipe)
    ]
    taken = next((query for query in wanted if holds_any(Path(path), query)), wanted[-1])
    # A hub id or a path; empty where it was not loaded from either.
    loaded_from = str(getattr(pipe, "config", {}).get("_name_or_path") or "")
    near = shown_by(pipe, loaded_from, scheduler, Path(path))
    result = find_result(Path(path), taken, loaded_from, _gpu_of(pipe), near)
    _warn_of_weights(path, result.entry.where.weights, near.get("weights", ()))
    if not (result.entry.where.weights or "").startswith(IN_MEMORY):  # Theirs count as weights.
        warn_of_loras(Path(path), result.entry.where.loras, near["loras"])
    if taken.pipeline_class != own:
        _logger.warning(
            "%s: searched on %s and applied to %s: speed and loss can differ there, so compare a "
            "few images",
            path,
            taken.pipeline_class,
            own,
        )
    return result


def _warn_of_weights(path: str | Path, measured: str | None, here: Sequence[str]) -> None:
    """Warn where a pipeline's files hold other weights than a result was measured with."""
    if measured and here and measured not in here:
        _logger.warning(
            "%s: measured with other weights than the pipeline's folder holds now: speed and loss "
            "can differ, so search them",
            path,
        )


def _class_of(scheduler: str | None) -> str | None:
    return None if scheduler is None else scheduler_class(scheduler)


def _searched_as(pipe: Any) -> Iterator[str]:
    """Yield the classes whose results fit a pipeline: its own, then the one that is searched."""
    yield type(pipe).__name__
    config = getattr(getattr(pipe, "unet", None), "config", None)
    is_xl = getattr(config, "addition_embed_type", None) == "text_time"
    searched = f"StableDiffusion{'XL' if is_xl else ''}Pipeline"
    if searched != type(pipe).__name__:
        yield searched


def _warn_of_sampler(path: str | Path, scheduler: Any, measured: Mapping[str, Any]) -> None:
    """Warn where a scheduler of the searched class is another sampler than the one measured."""
    import inspect

    defaults = inspect.signature(type(scheduler).__init__).parameters
    known = {
        name: measured.get(name, defaults[name].default)
        for name in (*_SIGMAS_AND_NOISE, *(_PREDICTION if measured else ()))
        if name in defaults and name in scheduler.config
    }
    others = {
        name: scheduler.config[name]
        for name, value in known.items()
        if scheduler.config[name] not in (value, None)
    }
    if others:
        _logger.warning(
            "%s: measured with %s of %s, and this pipeline's has %s: another sampler, under which "
            "speed and loss can differ",
            path,
            type(scheduler).__name__,
            ", ".join(f"{name}={known[name]!r}" for name in others),
            ", ".join(f"{name}={value!r}" for name, value in others.items()),
        )


def _gpu_of(pipe: Any) -> str | None:
    """Return the name of the GPU that a pipeline is on; None if it is on none yet."""
    device: Any = getattr(pipe, "device", None)
    if getattr(device, "type", None) != "cuda":
        return None
    from accel_search.runtime.provenance import device_name

    return device_name(device)
