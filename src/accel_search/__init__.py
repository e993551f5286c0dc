"""Find, measure and apply training-free acceleration of Stable Diffusion pipelines."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel_search.api import Acceleration, accelerate, compile_unet, load_best

__version__ = version("accel-search")

__all__ = ["Acceleration", "__version__", "accelerate", "compile_unet", "load_best"]


def __getattr__(name: str) -> Any:
    """Import the public functions when they are first used: `--help` needs none of them."""
    if name != "__version__" and name in __all__:
        from accel_search import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
