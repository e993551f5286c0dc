"""Silence other libraries' notices."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence diffusers, transformers and open_clip in a `with` block.

    open_clip uses `logging.info` and the like, which install a handler on a root logger without
    one; that would print every library's lines from then on. Our own loggers have their own level
    and are not affected by the root's.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    root = logging.getLogger()
    with quiet_hub(), ExitStack() as stack:
        handler = logging.NullHandler()
        root.addHandler(handler)
        stack.callback(root.removeHandler, handler)
        stack.callback(root.setLevel, root.level)
        root.setLevel(logging.CRITICAL + 1)
        for library in (diffusers_logging, transformers_logging):
            stack.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity(logging.CRITICAL)
            if library.is_progress_bar_enabled():
                stack.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        stack.enter_context(warnings.catch_warnings())
        # SDXL calls a deprecated method of its own in every half-precision decode.
        warnings.filterwarnings("ignore", message=".*upcast_vae.*", category=FutureWarning)
        # diffusers fixes older configurations with a long warning.
        warnings.filterwarnings("ignore", message="(?s).*update the config.*")
        yield


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence the hub client's line per retry, but not its progress bars."""
    from huggingface_hub.utils import logging as hub_logging

    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)
