"""Whether this machine has an NVIDIA driver."""

from __future__ import annotations

import ctypes


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


HAS_DRIVER = _has_driver()
