"""Which UNet call of which pipeline call is running, without asking the device."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import FrameType
from typing import Any

from accel_search.accelerators.patching import Layer, layered
from accel_search.accelerators.pipeline_call import (
    PipelineCall,
    caller,
    describe,
    is_running,
    take_back_processors,
)
from accel_search.errors import AcceleratorError

Listener = Callable[[], None]

NESTED = (
    "an accelerated UNet is called within a call of its pipeline: use a pipeline with a UNet of "
    "its own there"
)


class StepClock:
    """Counts UNet calls within a pipeline call and tells listeners of its begin, steps and end.

    Steps are counted, never looked up by timestep: a look-up waits for the device at every
    element compared, and finds the wrong step where timesteps repeat (Heun, PNDM, Karras sigmas
    rounded to whole timesteps). A pipeline call begins with the first UNet call after
    `scheduler.set_timesteps`, and within one call of the accelerated pipeline; a loop of the
    user's own begins with `set_timesteps`, and after the last of its timesteps.

    A UNet call counts one, so a second-order scheduler counts about two for each inference step.
    """

    index: int
    """UNet calls of this pipeline call before the one that runs: 0 in the first."""
    total: int
    """UNet calls that this pipeline call is to make; fewer than `len(scheduler.timesteps)` in
    image-to-image."""
    phase_start: int
    """Index of the latest restart: 0, or a step at which a subscriber asked for one, or at which
    the batch changed."""
    batch: int
    """Rows of the UNet's input."""
    latent_size: tuple[int, int]
    """Height and width of the UNet's input."""
    call: PipelineCall | None
    """The pipeline call; None in a loop of the user's own."""

    def __init__(self) -> None:
        self.index = self.total = self.phase_start = self.batch = 0
        self.latent_size = (0, 0)
        self.call = None
        self._begin: list[Listener] = []
        self._step: list[Listener] = []
        self._end: list[Listener] = []
        self._restarts: list[int] = []
        self._pipe: weakref.ref[Any] | None = None
        """The accelerated pipeline."""
        self._watched: weakref.WeakKeyDictionary[Any, layered] = weakref.WeakKeyDictionary()
        """Schedulers that have a layer of this clock."""
        self._lock = threading.Lock()
        self._thread: int | None = None
        """The thread whose call is in progress; None between calls."""
        self._is_pipelines_own = False
        """Whether that is a call of the accelerated pipeline, which says when it ends."""
        self._frame_id = 0
        """Of the frame of another pipeline's call, or of a loop."""
        self._is_counting = False
        """Whether a UNet call has been made, and further ones are to come."""
        self._is_spent = False
        """Whether a call of the accelerated pipeline has made all its UNet calls."""
        self._kind: Any = None
        """Rows, dtype and device of the latest UNet call's input."""
        self._timestep: Any = None
        """The latest UNet call's."""

    def subscribe(
        self,
        on_begin: Listener | None = None,
        on_step: Listener | None = None,
        on_end: Listener | None = None,
        restarts: Iterable[int] = (),
    ) -> AbstractContextManager[Any]:
        """Call the listeners for the length of a `with` block.

        Args:
            on_begin: Called before the first UNet call of a pipeline call; may refuse it by
                raising AcceleratorError.
            on_step: Called before every UNet call, when `index` and `phase_start` are up to
                date, in the order of subscription.
            on_end: Called once the last UNet call has returned, when a UNet call or the
                pipeline's loop raises, when the next pipeline call begins, and on leaving the
                block: drop what is cached, and do nothing until the next call.
            restarts: Steps at which caches that count in intervals have to start again, since
                the UNet's batch or what its modules cache changes there.
        """
        lists: list[tuple[list[Any], Any]] = [
            (self._begin, on_begin),
            (self._step, on_step),
            (self._end, on_end),
        ]
        entries = [(entries, entry) for entries, entry in lists if entry is not None]
        return _Subscription([*entries, *((self._restarts, step) for step in restarts)], on_end)

    def install(self, pipe: Any) -> AbstractContextManager[Any]:
        """Count the UNet calls of `pipe` until the block that is returned is left.

        To be installed after the layers that listen: its own layer has to be the outermost, so
        that they know the step before they run.
        """
        self._pipe = weakref.ref(pipe)
        with ExitStack() as stack:
            stack.callback(self._end_call)
            stack.callback(self._stop_watching)
            stack.enter_context(layered(pipe, _PipelineLayer(self)))
            stack.enter_context(layered(pipe.unet, _UNetLayer(self)))
            self._watch(pipe.scheduler)
            return stack.pop_all()

    def check_idle(self) -> None:
        """Raise AcceleratorError if another thread is in a call of the pipeline."""
        with self._lock:
            if self._is_busy_elsewhere():
                raise AcceleratorError(
                    "another thread is in a call of this accelerated pipeline: wait for its end"
                )

    @contextmanager
    def pipeline_call(self) -> Iterator[None]:
        """Count the UNet calls of one call of the accelerated pipeline.

        Raises:
            AcceleratorError: Another call of it is in progress.
        """
        if self._is_mine() and self._is_pipelines_own and self._is_listened_to():
            raise AcceleratorError(NESTED)
        self.restart()
        self._take(is_pipelines_own=True)
        try:
            yield
        finally:
            self._end_call()
            self._is_spent, self._thread = False, None

    def before_unet_call(self, sample: Any, timestep: Any) -> None:
        """Count a UNet call, and tell the listeners.

        Args:
            sample: The UNet's input, `[B, C, H, W]`.
            timestep: As the UNet gets it.

        Raises:
            AcceleratorError: It is no call that can be counted, or a listener refuses it.
        """
        size, kind = tuple(sample.shape[-2:]), (sample.shape[0], sample.dtype, sample.device)
        pipe, frame = caller()
        if self._continues(pipe, size, timestep):
            self.index += 1
            # Where guidance ends, say, the rows change, and what was kept is of the old ones.
            if self.index in self._restarts or kind != self._kind:
                self.phase_start = self.index
        else:
            self._begin_call(size, pipe, frame)
        self.batch = kind[0]
        self._kind, self._timestep = kind, timestep
        for listener in self._step:
            listener()

    def after_unet_call(self) -> None:
        """End the pipeline call if that was its last UNet call."""
        if self.index + 1 >= self.total:
            self.finish()
            self._is_spent = True

    def restart(self) -> None:
        """Expect the first UNet call of another pipeline call: timesteps have been set."""
        if self._thread is None or self._is_mine():
            self.finish()
            self._is_spent = False

    def finish(self) -> None:
        """End the pipeline call in progress, unless it is another thread's."""
        if self._is_mine():
            self._end_call()
            if not self._is_pipelines_own:
                self._thread = None

    def _begin_call(self, size: tuple[int, int], pipe: Any, frame: FrameType) -> None:
        if not self._is_mine():
            self._take(frame_id=id(frame))
        elif (
            self._is_pipelines_own
            and self._is_listened_to()
            and pipe is not (self._pipe and self._pipe())
        ):
            raise AcceleratorError(NESTED)
        self._end_call()
        if self._step and pipe is None:
            _refuse_gradients()
        self.call = None if pipe is None else describe(pipe, frame)
        scheduler = getattr(pipe or (self._pipe and self._pipe()), "scheduler", None)
        if scheduler is not None:
            self._watch(scheduler)
        if self._step and self._is_pipelines_own and self._is_spent:
            raise AcceleratorError(
                f"{type(pipe).__name__} makes more UNet calls than it has timesteps, so that steps "
                "cannot be counted: leave out deepcache and tgate there"
            )
        # Set by the pipeline itself just before its loop; older pipelines have none.
        total = getattr(pipe, "num_timesteps", None)
        if total is None:  # Without a scheduler, until timesteps are set.
            total = sys.maxsize if scheduler is None else len(scheduler.timesteps)
        self.total = total
        self.index = self.phase_start = 0
        self.latent_size = size
        self._is_counting = True
        for listener in self._begin:
            listener()

    def _end_call(self) -> None:
        if self._is_counting:
            self._is_counting = False
            self.call = self._timestep = None
            for listener in self._end:
                listener()

    def _continues(self, pipe: Any, size: tuple[int, int], timestep: Any) -> bool:
        """Return whether a UNet call is of the pipeline call in progress."""
        if not (
            self._is_counting
            and self._is_mine()
            and size == self.latent_size
            and pipe is self._pipe_of_call()
        ):
            return False
        if self._step and timestep is self._timestep and hasattr(timestep, "shape"):
            raise AcceleratorError(
                "the UNet is called twice at one timestep: give it both parts of the guidance in "
                "one batch, [unconditional, text], or leave out deepcache and tgate"
            )
        if self._is_pipelines_own:
            return True
        return _follows(timestep, self._timestep, is_pipelines=pipe is not None)

    def _pipe_of_call(self) -> Any:
        return None if self.call is None else self.call.pipe()

    def _is_listened_to(self) -> bool:
        return bool(self._begin or self._step or self._end)

    def _is_mine(self) -> bool:
        return self._thread == threading.get_ident()

    def _is_busy_elsewhere(self) -> bool:
        if self._thread is None or self._is_mine():
            return False
        # A loop or a pipeline that raised between two UNet calls did not report its end.
        return self._is_pipelines_own or is_running(self._thread, self._frame_id)

    def _take(self, is_pipelines_own: bool = False, frame_id: int = 0) -> None:
        with self._lock:
            if self._is_listened_to() and self._is_busy_elsewhere():
                raise AcceleratorError(
                    "two threads call one accelerated pipeline at a time: use a pipeline of its "
                    "own, with a UNet of its own, in each thread"
                )
            self._thread = threading.get_ident()
            self._is_pipelines_own, self._frame_id = is_pipelines_own, frame_id

    def _watch(self, scheduler: Any) -> None:
        """Hear when a scheduler's timesteps are set: the pipeline's can be exchanged."""
        if scheduler not in self._watched:
            layer = layered(scheduler, _SchedulerLayer(self), "set_timesteps")
            layer.__enter__()
            self._watched[scheduler] = layer

    def _stop_watching(self) -> None:
        for layer in list(self._watched.values()):
            layer.__exit__()
        self._watched.clear()


def _follows(timestep: Any, before: Any, is_pipelines: bool) -> bool:
    """Return whether a timestep comes after another in a loop.

    Loops go through a scheduler's timesteps, of which each is a view, so that nothing has to be
    asked of the device. The next loop has timesteps of its own.

    Args:
        timestep: A UNet call's.
        before: That of the call before.
        is_pipelines: Whether the loop is a pipeline's (`__call__` of one that shares the UNet, or
            DiffEdit's `invert`, whose timesteps rise); a user's may hand on copies that fall.
    """
    if hasattr(timestep, "untyped_storage") and hasattr(before, "untyped_storage"):
        storages = [value.untyped_storage().data_ptr() for value in (timestep, before)]
        if storages[0] == storages[1] and timestep.data_ptr() != before.data_ptr():
            return bool(timestep.data_ptr() > before.data_ptr())
    if is_pipelines:
        return False
    values = [
        float(value.reshape(-1)[0] if hasattr(value, "reshape") else value)
        for value in (timestep, before)
    ]
    return values[0] < values[1]


def _refuse_gradients() -> None:
    import torch

    if torch.is_grad_enabled():
        raise AcceleratorError(
            "an accelerated UNet is called with gradients, of which what is kept from one step to "
            "the next would be part: use torch.no_grad(), or restore(pipe) to train"
        )


class _PipelineLayer(Layer):
    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def run(self, pipe: Any, /, *args: Any, **kwargs: Any) -> Any:
        with self.clock.pipeline_call():
            return self.inner(pipe, *args, **kwargs)


class _SchedulerLayer(Layer):
    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def run(self, scheduler: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.clock.restart()
        return self.inner(scheduler, *args, **kwargs)


class _UNetLayer(Layer):
    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def run(self, unet: Any, /, *args: Any, **kwargs: Any) -> Any:
        clock = self.clock
        try:
            sample = args[0] if args else kwargs["sample"]
            clock.before_unet_call(sample, args[1] if len(args) > 1 else kwargs.get("timestep"))
            output = self.inner(unet, *args, **kwargs)
        except AcceleratorError:
            clock.finish()
            take_back_processors(unet)
            raise
        except BaseException:
            clock.finish()
            raise
        clock.after_unet_call()
        return output


class _Subscription(AbstractContextManager[None]):
    def __init__(self, entries: list[tuple[list[Any], Any]], on_end: Listener | None) -> None:
        self._entries, self._on_end = entries, on_end

    def __enter__(self) -> None:
        for listeners, entry in self._entries:
            listeners.append(entry)

    def __exit__(self, *_: object) -> None:
        for listeners, entry in reversed(self._entries):
            listeners.remove(entry)
        if self._on_end is not None:
            self._on_end()
