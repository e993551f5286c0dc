"""End a program at Ctrl-C and SIGTERM, whatever it is doing at that moment."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PAUSE_SECONDS = 0.01
"""Long enough for the finalizer that an interrupt fell into to end."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt in the body at Ctrl-C and at SIGTERM, and lose none of them.

    Python runs a handler in whatever the main thread is doing. In a finalizer or the callback of a
    weak reference it prints the exception and drops it, so that Ctrl-C would end nothing. Such an
    interrupt is delivered again.
    """
    end_as_interrupted(signal.SIGTERM)
    main, before = threading.get_ident(), sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # Not by threading, whose lock this thread may hold.
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
    """Make a signal raise KeyboardInterrupt, as Ctrl-C does."""
    signal.signal(number, signal.default_int_handler)


def _deliver(main: int, over: list[bool]) -> None:
    """Interrupt the main thread after a moment, unless it has left the body by then."""
    time.sleep(_PAUSE_SECONDS)
    if over:
        return
    # SIGTERM, as SIGINT may be ignored; a real signal where possible, to end a wait as well.
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, signal.SIGTERM)
    else:
        _thread.interrupt_main(signal.SIGTERM)
