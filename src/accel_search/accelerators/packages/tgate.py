"""T-GATE by the package `tgate`, alone or with DeepCache: its loaders and `pipe.tgate`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accel_search.accelerators.deepcache import skipped_modules
from accel_search.accelerators.packages.leftovers import restored
from accel_search.accelerators.patching import Layer, attention_modules, layered
from accel_search.core.candidate import Params, Value


@contextmanager
def apply(pipe: Any, params: Params, cached: Params | None = None) -> Iterator[None]:
    """Send the pipeline's calls to `pipe.tgate` for the length of a `with` block.

    That replaces `forward` of every attention at every step, and leaves it, its cached value and,
    with DeepCache, an enabled helper.

    Args:
        pipe: A StableDiffusionPipeline or StableDiffusionXLPipeline.
        params: T-GATE's.
        cached: DeepCache's; None is without.

    Raises:
        AcceleratorError: An attention or a branch is one that the package would get wrong.
    """
    import tgate

    attentions = attention_modules(pipe.unet)
    touched = attentions
    if cached is not None:
        skipped_modules(pipe.unet, int(cached["cache_branch_id"]))
        touched = list(pipe.unet.modules())
    is_xl = hasattr(pipe, "text_encoder_2")
    loader = getattr(tgate, loader_name(is_xl=is_xl, cached=cached is not None))
    with restored([pipe], "tgate", "deepcache"), restored(touched, "forward", "cache"):
        loader(pipe, **(cached or {}))
        try:
            with layered(pipe, _ByTGate(arguments_of(params))):
                yield
        finally:
            if cached is not None:
                pipe.deepcache.disable()


class _ByTGate(Layer):
    """Calls `pipe.tgate` in place of the pipeline, with the same arguments."""

    def __init__(self, arguments: dict[str, Value]) -> None:
        self.arguments = arguments

    def run(self, pipe: Any, /, *args: Any, **kwargs: Any) -> Any:
        for attention in attention_modules(pipe.unet):
            vars(attention).pop("cache", None)  # Of an earlier call, which DeepCache would reuse.
        bound = inspect.signature(type(pipe).__call__).bind(pipe, *args, **kwargs)
        named = dict(bound.arguments)
        named.pop("self")
        return pipe.tgate(**named.pop("kwargs", {}), **named, **self.arguments)


def loader_name(*, is_xl: bool, cached: bool) -> str:
    """Return the package's loader for a kind of pipeline, with DeepCache or without."""
    return f"TgateSD{'XL' if is_xl else ''}{'DeepCache' if cached else ''}Loader"


def arguments_of(params: Params) -> dict[str, Value]:
    """Return T-GATE's parameters as arguments of `pipe.tgate`, which spells `warmup` otherwise."""
    return {"warm_up" if name == "warmup" else name: value for name, value in params.items()}
