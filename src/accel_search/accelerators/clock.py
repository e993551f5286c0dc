"""Which UNet call of which pipeline call is running, without asking the device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from accel_search.accelerators.patching import attribute, forward_name

Listener = Callable[[], None]


class StepClock:
    """Counts UNet calls within a pipeline call and tells listeners of its begin, steps and end.

    Steps are counted, never looked up by timestep: a look-up waits for the device at every
    element compared, and finds the wrong step where timesteps repeat (Heun, PNDM, Karras sigmas
    rounded to whole timesteps). A pipeline call begins with the first UNet call after
    `scheduler.set_timesteps`, or after the last expected call of the one before.

    A UNet call counts one, so a second-order scheduler counts about two for each inference step.
    """

    index: int
    """UNet calls of this pipeline call before the one that runs: 0 in the first."""
    total: int
    """UNet calls that this pipeline call is to make; fewer than `len(scheduler.timesteps)` in
    image-to-image."""
    phase_start: int
    """Index of the latest restart: 0, or a step at which a subscriber asked for one."""
    latent_size: tuple[int, int]
    """Height and width of the UNet's input."""

    def __init__(self) -> None:
        self.index = self.total = self.phase_start = 0
        self.latent_size = (0, 0)
        self._running = False
        self._begin: list[Listener] = []
        self._step: list[Listener] = []
        self._end: list[Listener] = []
        self._restarts: list[int] = []

    @contextmanager
    def subscribe(
        self,
        on_begin: Listener | None = None,
        on_step: Listener | None = None,
        on_end: Listener | None = None,
        restarts: Iterable[int] = (),
    ) -> Iterator[None]:
        """Call the listeners for the length of a `with` block.

        Args:
            on_begin: Called before the first UNet call of a pipeline call.
            on_step: Called before every UNet call, when `index` and `phase_start` are up to
                date, in the order of subscription.
            on_end: Called once the last UNet call has returned, when a UNet call or the
                pipeline's loop raises, when the next pipeline call begins, and on leaving the
                block: drop what is cached.
            restarts: Steps at which caches that count in intervals have to start anew, since
                the UNet's batch or what its modules cache changes there.
        """
        entries: list[tuple[list[Any], Any]] = [(self._restarts, step) for step in restarts]
        for listeners, listener in (
            (self._begin, on_begin),
            (self._step, on_step),
            (self._end, on_end),
        ):
            if listener is not None:
                entries.append((listeners, listener))
        for listeners, entry in entries:
            listeners.append(entry)
        try:
            yield
        finally:
            for listeners, entry in reversed(entries):
                listeners.remove(entry)
            if on_end is not None:
                on_end()

    @contextmanager
    def install(self, pipe: Any) -> Iterator[None]:
        """Count the UNet calls of `pipe` for the length of a `with` block.

        To be entered after the patches that listen: its wrapper of `unet.forward` has to be the
        outermost, so that they know the step before they run.
        """
        scheduler, unet = pipe.scheduler, pipe.unet
        name = forward_name(unet)
        set_timesteps, forward, progress_bar = (
            scheduler.set_timesteps,
            getattr(unet, name),
            pipe.progress_bar,
        )

        # `retrieve_timesteps` asks for the signature, which `wraps` hands on.
        @functools.wraps(set_timesteps)
        def counted_set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self._finish()
            return set_timesteps(*args, **kwargs)

        @functools.wraps(forward)
        def counted_forward(*args: Any, **kwargs: Any) -> Any:
            try:
                self._tick(pipe, args[0] if args else kwargs["sample"])
                output = forward(*args, **kwargs)
            except BaseException:
                self._finish()
                raise
            if self.index + 1 >= self.total:
                self._finish()
            return output

        # The pipeline's loop runs inside its progress bar, which is left however the loop ends:
        # also when a callback raises between two UNet calls.
        @functools.wraps(progress_bar)
        @contextmanager
        def counted_progress_bar(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                with progress_bar(*args, **kwargs) as bar:
                    yield bar
            finally:
                self._finish()

        with ExitStack() as stack:
            stack.callback(self._finish)
            stack.enter_context(attribute(pipe, "progress_bar", counted_progress_bar))
            stack.enter_context(attribute(scheduler, "set_timesteps", counted_set_timesteps))
            stack.enter_context(attribute(unet, name, counted_forward))
            yield

    def _tick(self, pipe: Any, sample: Any) -> None:
        if self._running:
            self.index += 1
            if self.index in self._restarts:
                self.phase_start = self.index
        else:
            self._running = True
            self.index = self.phase_start = 0
            # Set by the pipeline itself just before its loop; older pipelines have none.
            total = getattr(pipe, "num_timesteps", None)
            self.total = len(pipe.scheduler.timesteps) if total is None else total
            self.latent_size = (sample.shape[-2], sample.shape[-1])
            for listener in self._begin:
                listener()
        for listener in self._step:
            listener()

    def _finish(self) -> None:
        if self._running:
            self._running = False
            for listener in self._end:
                listener()
