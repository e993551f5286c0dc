"""Find, measure and apply training-free acceleration of Stable Diffusion pipelines."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel_search.api import Acceleration, accelerate, compile_unet, load_best, restore
    from accel_search.storage.tables import load_results, load_trials

__version__ = version("accel-search")

__all__ = [
    "Acceleration",
    "__version__",
    "accelerate",
    "compile_unet",
    "load_best",
    "load_results",
    "load_trials",
    "restore",
]
_TABLES = ("load_results", "load_trials")


def __getattr__(name: str) -> Any:
    """Import the public functions when they are first used: `--help` needs none of them."""
    if name != "__version__" and name in __all__:
        from importlib import import_module

        module = import_module(f"accel_search.{'storage.tables' if name in _TABLES else 'api'}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
