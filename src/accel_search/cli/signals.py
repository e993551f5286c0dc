"""Ctrl-C and a polite kill end a program wherever they fall."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PAUSE_SECONDS = 0.01
"""Enough for the finalizer that an interrupt fell into to be over."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt in the body at Ctrl-C and at SIGTERM, and lose none of them.

    Python runs a handler in whatever the main thread is at. Where that is a finalizer or the
    callback of a weak reference, it prints the exception with its traceback and drops it: the
    user has pressed Ctrl-C, and nothing ends. Such an interrupt is delivered once more instead.
    """
    end_as_interrupted(signal.SIGTERM)
    main, before = threading.get_ident(), sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # Not by threading, whose lock this very thread may hold.
            _thread.start_new_thread(_deliver, (main, over))
        else:
            before(unraisable)

    over: list[bool] = []
    sys.unraisablehook = hook
    try:
        yield
    finally:
        over.append(True)
        sys.unraisablehook = before


def end_as_interrupted(number: signal.Signals) -> None:
    """Have a signal do what Ctrl-C does: what is finished is stored, nothing is half done."""
    signal.signal(number, signal.default_int_handler)


def _deliver(main: int, over: list[bool]) -> None:
    """Interrupt the main thread in a moment, unless it is past the body by then."""
    time.sleep(_PAUSE_SECONDS)
    if over:
        return
    # SIGTERM, as SIGINT may be ignored; a real one where there are any, to end a wait as well.
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, signal.SIGTERM)
    else:
        _thread.interrupt_main(signal.SIGTERM)
