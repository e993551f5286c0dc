"""Find, measure and apply training-free acceleration of Stable Diffusion pipelines."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

# First, so that no later import puts the package in place of the function.
from accel_search import search as _package

if TYPE_CHECKING:
    from accel_search.api import Acceleration, accelerate, compile_unet, load_best, restore
    from accel_search.live.functions import measure, search, verify
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
    "measure",
    "restore",
    "search",
    "verify",
]
_MODULES = {
    **dict.fromkeys(("load_results", "load_trials"), "storage.tables"),
    **dict.fromkeys(("measure", "search", "verify"), "live.functions"),
}
"""Public function -> its module; `api` is that of the others."""
del _package, search


def __getattr__(name: str) -> Any:
    """Import the public functions when they are first used: `--help` needs none of them."""
    if name != "__version__" and name in __all__:
        from importlib import import_module

        where = _MODULES.get(name, "api")
        if where == "live.functions":
            from accel_search.core.packages import check_packages

            check_packages(f"accel_search.{name}")
        return getattr(import_module(f"accel_search.{where}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
