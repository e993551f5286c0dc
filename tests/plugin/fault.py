"""A plug-in that goes wrong, for trying out what a sweep makes of it.

What it does is decided by the scheduler: with DDIM the process crashes, with DPM-Solver++ it hangs
with a child of its own and is deaf to polite requests, with UniPC it asks for more memory than
there is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from accel_search.accelerators.base import ALONE, Accelerator, Context, Parameter
from accel_search.core.candidate import Params
from accel_search.core.workload import Workload


class Fault(Accelerator):
    """Crash, hang or run out of memory when it is applied."""

    name = "fault"
    parameters = (Parameter("strength", (1, 2), 1, None, "of no effect"),)
    order = 45

    def signature(
        self, params: Params, workload: Workload, context: Context = ALONE
    ) -> Hashable | None:
        """Return the parameter: its two points are two candidates."""
        return int(params["strength"])

    @contextmanager
    def apply(self, pipe: Any, params: Params, clock: Any) -> Iterator[None]:
        """Go wrong."""
        name = type(pipe.scheduler).__name__
        if name.startswith("DDIM"):
            os.kill(os.getpid(), signal.SIGSEGV)
        elif name.startswith("DPM"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(900)"])  # noqa: S603
            threading.Event().wait(900)
        else:
            import torch

            torch.empty(2**47)  # Half a pebibyte.
        yield
