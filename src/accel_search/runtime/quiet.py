"""Keep other libraries' notices out of our own output."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence diffusers, transformers and open_clip below an error; put all back on exit.

    open_clip logs through `logging.info` and the like, which install a handler on the root
    logger if it has none, and would then print every library's lines for ever after. Our own
    loggers have a level of their own, so raising the root's does not touch them.
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
        # SDXL calls its own deprecated method in every half-precision decode.
        warnings.filterwarnings("ignore", message=".*upcast_vae.*", category=FutureWarning)
        # What older configurations say otherwise diffusers mends, and tells at length.
        warnings.filterwarnings("ignore", message="(?s).*update the config.*")
        yield


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence the hub client's line for each retry; its progress bars stay, a fetch is long."""
    from huggingface_hub.utils import logging as hub_logging

    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)
