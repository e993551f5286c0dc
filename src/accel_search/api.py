"""Applying settings to a pipeline: the two lines that a search hands back."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from accel_search.errors import ConfigurationError
from accel_search.records import Candidate, Params
from accel_search.results import find_settings


class Acceleration:
    """Settings applied to a pipeline until `undo`, or to the end of a `with` block."""

    def __init__(self, pipe: Any, candidate: Candidate) -> None:
        from accel_search.accelerators.compose import apply_candidate

        self.candidate = candidate
        """What is applied."""
        self._stack = ExitStack()
        self._stack.enter_context(apply_candidate(pipe, candidate))

    def undo(self) -> None:
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
        """Undo."""
        self.undo()


def accelerate(pipe: Any, **settings: Params) -> Acceleration:
    """Apply accelerators to a diffusers pipeline.

    The pipeline stays accelerated after the call; keep the result to `undo` it, or use it as
    a context manager.

    Args:
        pipe: A diffusers pipeline with a `UNet2DConditionModel` (SD1.5, SD2.1, SDXL type).
        settings: Accelerator name -> its parameters, e.g.
            `deepcache={"cache_interval": 3, "cache_branch_id": 0}`.

    Raises:
        ConfigurationError: An accelerator or a parameter is unknown, missing or out of range.
        AcceleratorError: The pipeline cannot be patched, or already is.
    """
    return Acceleration(pipe, Candidate(settings))


def load_best(
    path: str | Path = "search_params.json", pipe: Any = None, *, steps: int | None = None
) -> dict[str, dict[str, Any]]:
    """Return the fastest settings that a search has stored.

    Args:
        path: The result file of `accel-search`.
        pipe: The pipeline they are for: only results of its class and of its scheduler's
            class are taken. None takes any.
        steps: Only results for this many denoising steps are taken. None takes any.

    Returns:
        Accelerator name -> parameters, as `accelerate` takes them.

    Raises:
        ConfigurationError: The file holds no such result.
    """
    if not Path(path).exists():
        raise ConfigurationError(f"{path}: no such file; accel-search writes it")
    pipeline = None if pipe is None else type(pipe).__name__
    scheduler = None if pipe is None else type(pipe.scheduler).__name__
    return find_settings(Path(path), pipeline, scheduler, steps)
