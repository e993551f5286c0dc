"""Applying settings to a pipeline: the two lines that a search hands back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from accel_search.core.candidate import Candidate, Params
from accel_search.core.schedulers import SCHEDULERS, scheduler_class
from accel_search.errors import ConfigurationError
from accel_search.storage.lookup import Wanted, find_settings


class Acceleration:
    """Settings applied to a pipeline until `remove`, or to the end of a `with` block."""

    def __init__(self, pipe: Any, candidate: Candidate, scheduler: str | None = None) -> None:
        from accel_search.accelerators.compose import apply_candidate

        self.candidate = candidate
        """What is applied."""
        with ExitStack() as stack:
            if scheduler is not None:
                stack.enter_context(_exchanged_scheduler(pipe, scheduler))
            # The scheduler that is in place here is the one that the accelerators watch.
            stack.enter_context(apply_candidate(pipe, candidate))
            self._stack = stack.pop_all()

    def remove(self) -> None:
        """Bring the pipeline back to what it was; a second call does nothing."""
        self._stack.close()

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


@contextmanager
def _exchanged_scheduler(pipe: Any, name: str) -> Iterator[None]:
    """Give a pipeline the scheduler that a search makes for it; its own one comes back on exit.

    Also where its own is of that class: a search makes it so that it does not clip.
    """
    import diffusers

    from accel_search.accelerators.patching import check_pipeline
    from accel_search.runtime.loading.schedulers import build_scheduler

    class_name = scheduler_class(name)
    if not (class_name.endswith("Scheduler") and hasattr(diffusers, class_name)):
        known = ", ".join(SCHEDULERS)
        raise ConfigurationError(f"scheduler {name!r}: give {known} or a scheduler of diffusers")
    check_pipeline(pipe)
    own = pipe.scheduler
    pipe.scheduler = build_scheduler(class_name, own.config, type(pipe).__name__)
    try:
        yield
    finally:
        pipe.scheduler = own


def accelerate(
    pipe: Any,
    settings: Mapping[str, Params] | str | Path = "search_params.json",
    *,
    steps: int | None = None,
    scheduler: str | None = None,
    targets: Sequence[str] | None = None,
    req_score_loss: float | None = None,
    model: str | None = None,
) -> Acceleration:
    """Apply accelerators to a diffusers pipeline, which is then called as always.

    The pipeline stays accelerated after the call; keep the result to `remove` them, or use it as
    a context manager.

    Args:
        pipe: A diffusers pipeline with a `UNet2DConditionModel` (SD1.5, SD2.1, SDXL type).
        settings: Accelerator name -> its parameters, e.g.
            `{"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}`; or a result file of
            `accel-search`, of which the fastest fitting result is taken (`load_best`).
        steps: As in `load_best`.
        scheduler: `DDIM`, `DPM-Solver++`, `UniPC` or a class name: only results for it are taken,
            and the pipeline has it, made as a search makes it, until the settings are removed.
            None keeps the pipeline's own, and takes only results for that.
        targets: As in `load_best`.
        req_score_loss: As in `load_best`.
        model: As in `load_best`.

    Raises:
        ConfigurationError: The file holds no fitting result; or an accelerator or a parameter is
            unknown, missing or out of range; or there is no such scheduler.
        LoadError: The pipeline's own scheduler has no configuration that makes the one asked for.
        AcceleratorError: The pipeline cannot be patched, or already is.
    """
    choice: dict[str, Any] = {
        "steps": steps,
        "targets": targets,
        "req_score_loss": req_score_loss,
        "model": model,
    }
    if isinstance(settings, str | Path):
        settings = load_best(settings, pipe, scheduler=scheduler, **choice)
    elif any(each is not None for each in choice.values()):
        raise ConfigurationError(
            f"accelerate: {', '.join(choice)} choose among a file's results: give the path of one, "
            "or leave them out"
        )
    return Acceleration(pipe, Candidate(settings), scheduler)


def compile_unet(pipe: Any) -> None:
    """Compile the UNet of a pipeline as a search with `--compile` does; before or after it moves.

    Its transformer blocks are compiled for as long as it lives, in the first calls that need them.
    `accelerate` works on it as on any other pipeline.

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
) -> dict[str, dict[str, Any]]:
    """Return the fastest settings that a search has stored.

    Where results of several devices fit, those of the GPU that the pipeline is on are taken; if it
    is on none of theirs, those of the device that was measured on last, with a warning.

    Args:
        path: The result file of `accel-search`.
        pipe: The pipeline they are for: only results of its class are taken, and where the file
            has results of several models, those of the model that it was loaded from. Where the
            only one may be of another model, a warning says so. None takes any.
        steps: Only results for this many denoising steps are taken. None takes any.
        scheduler: Only results for this scheduler are taken: `DDIM`, `DPM-Solver++`, `UniPC`, or
            a class name. None takes the pipeline's.
        targets: Only results of a search of exactly these accelerators are taken. None takes any.
        req_score_loss: Only results of a search within this bound on the loss of score, a
            fraction, are taken. None will do where those that fit are all within one bound.
        model: Hub id or folder of the model that results are wanted of, as it was searched,
            where the pipeline was loaded from elsewhere. None takes the pipeline's own.

    Returns:
        Accelerator name -> parameters, as `accelerate` takes them.

    Raises:
        ConfigurationError: The file holds no such result, or only results of several models none
            of which is this one's, or results within several bounds.
    """
    if not Path(path).exists():
        raise ConfigurationError(f"{path}: no such file; accel-search writes it")
    if scheduler is None and pipe is not None:
        scheduler = type(pipe.scheduler).__name__
    wanted = Wanted(
        pipeline_class=None if pipe is None else type(pipe).__name__,
        scheduler_class=None if scheduler is None else scheduler_class(scheduler),
        steps=steps,
        targets=targets,
        req_score_loss=req_score_loss,
        model=model,
    )
    loaded_from = None
    if pipe is not None:  # A path, where that was what it was loaded by; None where by nothing.
        loaded_from = str(getattr(pipe, "config", {}).get("_name_or_path") or "")
    return find_settings(Path(path), wanted, loaded_from, _gpu_of(pipe))


def _gpu_of(pipe: Any) -> str | None:
    """Return the name of the GPU that a pipeline is on; None where it is on none, as yet."""
    device: Any = getattr(pipe, "device", None)
    if getattr(device, "type", None) != "cuda":
        return None
    from accel_search.runtime.provenance import device_name

    return device_name(device)
