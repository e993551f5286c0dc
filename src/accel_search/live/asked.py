"""A pipeline in memory, and what is asked of it."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from accel_search.cli.logging_utils import logging_to
from accel_search.errors import ConfigurationError
from accel_search.live.options import settings_of
from accel_search.settings import Settings

if TYPE_CHECKING:
    from accel_search.runtime.given.calls import Generate
    from accel_search.runtime.given.cases import Given
    from accel_search.runtime.measuring.evaluator import PipelineEvaluator


@dataclass(frozen=True)
class Asked:
    """A pipeline in memory, and what is asked of it."""

    pipe: Callable[[], Any]
    """Returns the pipeline, which this does not keep alive; None once it is gone."""
    settings: Settings
    prompts: Given
    call: Mapping[str, Any]
    generate: Generate | None
    options: Mapping[str, Any]
    """The options as they were given."""

    @property
    def names_sampler(self) -> bool:
        """Return whether it is measured with a sampler that was named, not with its own."""
        return self.options.get("sched") is not None

    @contextmanager
    def opened(self) -> Iterator[tuple[PipelineEvaluator, logging.Logger]]:
        """Borrow the pipeline, and log, for the length of a `with` block."""
        from accel_search.runtime.given.calls import OwnersCalls
        from accel_search.runtime.given.cases import prompt_set
        from accel_search.runtime.given.open import borrowed, open_given

        settings, pipe = self.settings, self.pipe()
        if pipe is None:
            raise ConfigurationError("the pipeline is gone: give it again")
        prompts, cases = prompt_set(self.prompts, settings)
        calls = OwnersCalls(self.call, self.generate, cases)
        with ExitStack() as stack:
            log_file, level = settings.log_file, settings.log_level
            try:
                logger = stack.enter_context(logging_to(log_file, level, console=False))
            except OSError as error:
                raise ConfigurationError(
                    f"log_file={log_file!r}: cannot be written: {error.strerror}"
                ) from error
            stack.enter_context(borrowed(pipe, settings, own_scheduler=not self.names_sampler))
            yield open_given(pipe, prompts, settings, calls, logger), logger

    def again(self, settings: Settings) -> Asked:
        """Return the same asked with other settings."""
        return replace(self, settings=settings)


def ask(
    pipe: Any,
    prompts: Given,
    call: Mapping[str, Any] | None,
    generate: Generate | None,
    options: Mapping[str, Any],
) -> Asked:
    """Return what is asked of a pipeline.

    Raises:
        AcceleratorError: It is no pipeline that can be accelerated.
        ConfigurationError: An option is unknown, or its value not allowed; there are too few
            prompts.
    """
    from accel_search.accelerators.patching import check_pipeline
    from accel_search.runtime.given.cases import SOURCE, is_source, samples_of
    from accel_search.runtime.given.open import name_of, sampler_of

    check_pipeline(pipe)
    given = dict(options)
    if is_source(prompts):
        given["prompts"] = prompts
    elif given.get("num_samples") is None and given.get("held_out_samples") is None:
        given["num_samples"] = samples_of(prompts)
    given.setdefault("prompts", SOURCE)
    settings = settings_of(name_of(pipe), sampler_of(pipe), given)
    further = {**dict(settings.call), **(call or {})}
    return Asked(weakref.ref(pipe), settings, prompts, further, generate, options)
