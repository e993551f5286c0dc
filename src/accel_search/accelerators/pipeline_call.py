"""The pipeline call that a UNet call belongs to, as that call's own variables describe it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from types import FrameType
from typing import Any, NamedTuple

from accel_search.accelerators.patching import COMPILED
from accel_search.errors import AcceleratorError


class PipelineCall(NamedTuple):
    """What is asked of a pipeline call before its batch is touched."""

    pipe: weakref.ref[Any]
    """The pipeline that calls the UNet: not always the accelerated one, since `from_pipe` makes
    others that share it."""
    name: str
    """The pipeline's class."""
    images: int | None
    """Latents that it denoises; None where it does not say."""
    is_guided_at_start: bool | None
    """What it works out for itself where it has no `do_classifier_free_guidance`."""
    guess_mode: bool
    """ControlNet's: only the text half of the batch is controlled."""

    @property
    def is_guided(self) -> bool | None:
        """Return whether it guides as of now: a callback may end that; None if it doesn't say."""
        guided = getattr(self.pipe(), "do_classifier_free_guidance", self.is_guided_at_start)
        return None if guided is None else bool(guided)


def caller() -> tuple[Any, FrameType]:
    """Return the pipeline whose method calls the UNet, and that method's frame.

    The pipeline is None in a loop of the user's own, whose frame is returned then. A frame holds
    all variables of its call, so it is not to be kept.

    Raises:
        AcceleratorError: The UNet is called through torch.compile.
    """
    pipelines = sys.modules["diffusers"].DiffusionPipeline
    frame: FrameType | None = sys._getframe(1)
    loop: FrameType | None = None
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.startswith("torch._dynamo."):
            raise AcceleratorError(COMPILED)
        # At every UNet call, and a frame's variables are dear: those of ours are passed over.
        if not module.startswith(("accel_search.", "torch.")):
            if frame.f_code.co_varnames[:1] == ("self",):
                owner = frame.f_locals.get("self")
                if isinstance(owner, pipelines):
                    return owner, frame
            loop = loop or frame
        frame = frame.f_back
    return None, loop or sys._getframe(1)


def _variables(pipe: Any, frame: FrameType, name: str) -> Mapping[str, Any]:
    """Return the variables of the nearest method of a pipeline in progress that has one `name`.

    The loop may lie in one method, and the UNet be called in another.
    """
    outer: FrameType | None = frame
    while outer is not None:
        if outer.f_locals.get("self") is pipe and name in outer.f_locals:
            return outer.f_locals
        outer = outer.f_back
    return frame.f_locals


def take_back_processors(unet: Any) -> None:
    """Put back the attention processors that the pipeline's call in progress has exchanged.

    PAG's pipelines give the UNet others for the length of a call, and put its own back only where
    it ends well: one that is refused would keep them.

    Source:
        diffusers 0.42, `pipeline_pag_sd.py` and its like: the variable `original_attn_proc`.
    """
    own = _variables(*caller(), "original_attn_proc").get("original_attn_proc")
    if own is not None:
        unet.set_attn_processor(own)


def is_running(thread: int, frame_id: int) -> bool:
    """Return whether a thread is in a call whose frame had the id `frame_id`."""
    frame = sys._current_frames().get(thread)
    while frame is not None and id(frame) != frame_id:
        frame = frame.f_back
    return frame is not None


def describe(pipe: Any, frame: FrameType) -> PipelineCall:
    """Return what the variables of a pipeline's running call say of it."""
    variables = _variables(pipe, frame, "latents")
    shape = getattr(variables.get("latents"), "shape", None)
    guided = variables.get("do_classifier_free_guidance")
    return PipelineCall(
        pipe=weakref.ref(pipe),
        name=type(pipe).__name__,
        images=int(shape[0]) if shape else None,
        is_guided_at_start=guided if isinstance(guided, bool) else None,
        guess_mode=bool(variables.get("guess_mode")),
    )
