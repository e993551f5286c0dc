"""Reversible changes to objects, and what kinds of UNet can be changed at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from accel_search.errors import AcceleratorError

_ABSENT = object()


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set `owner.name` on the instance; put back, or remove, what was there on exit.

    Writes `vars(owner)` directly: `torch.nn.Module.__setattr__` would file a module-valued
    attribute elsewhere (an attention processor with weights of its own lies in `_modules`),
    while an instance attribute shadows it and leaves it where it is.
    """
    own = vars(owner)
    before = own.get(name, _ABSENT)
    own[name] = value
    try:
        yield
    finally:
        if before is _ABSENT:
            del own[name]
        else:
            own[name] = before


def forward_name(module: Any) -> str:
    """Return the attribute under which a module's `forward` is to be patched.

    Under `enable_model_cpu_offload`, accelerate's `forward` moves the module to the GPU and then
    runs `_old_forward`. diffusers takes these hooks off and on again after every pipeline call,
    which drops a patch of `forward` and keeps one of `_old_forward`.
    """
    return "_old_forward" if "_old_forward" in vars(module) else "forward"


class ProcessorWrapper:
    """Base of attention processors that run another one, `inner`, within their own `process`.

    `Attention.forward` reads the signature of `processor.__call__` to decide which keyword
    arguments to pass on, so a wrapper has its inner processor's. That is a matter of the class:
    torch.compile can't trace calls of an object whose `__call__` is its own.
    """

    def __new__(cls, inner: Any, *_: Any) -> Any:
        """Return an instance of the subclass that has the signature of `inner`."""
        return super().__new__(_with_signature(cls, type(inner)))

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def process(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what the attention returns; to be overridden."""
        return self.inner(attn, hidden_states, *args, **kwargs)


_classes: dict[tuple[type, type], Any] = {}


def _with_signature(cls: type[ProcessorWrapper], inner: Any) -> Any:
    if (cls, inner) not in _classes:

        @wraps(inner.__call__)
        def call(self: ProcessorWrapper, *args: Any, **kwargs: Any) -> Any:
            return self.process(*args, **kwargs)

        name = f"{cls.__name__}Of{inner.__name__}"
        _classes[cls, inner] = type(name, (cls,), {"__call__": call})
    return _classes[cls, inner]


def check_pipeline(pipe: Any) -> None:
    """Raise AcceleratorError unless `pipe` has a UNet2DConditionModel and a scheduler."""
    from diffusers import UNet2DConditionModel

    unet = getattr(pipe, "unet", None)
    if not isinstance(unet, UNet2DConditionModel) or getattr(pipe, "scheduler", None) is None:
        raise AcceleratorError(
            f"{type(pipe).__name__} with a UNet of type {type(unet).__name__} cannot be "
            "accelerated: use a pipeline with a UNet2DConditionModel and a scheduler (SD or SDXL)"
        )


def attention_modules(unet: Any) -> list[Any]:
    """Return every `Attention` of `unet`, in module order.

    Raises:
        AcceleratorError: There is none, or one adds its input to its output or takes added keys
            and values: what its processor returns is then not a function of attention alone.
    """
    from diffusers.models.attention_processor import Attention

    found = []
    for name, module in unet.named_modules():
        if not isinstance(module, Attention):
            continue
        if module.residual_connection or module.added_kv_proj_dim is not None:
            kind = "a residual connection" if module.residual_connection else "added keys/values"
            raise AcceleratorError(
                f"attention {name!r} has {kind}, which T-GATE cannot cache: "
                "use a UNet of SD or SDXL type"
            )
        found.append(module)
    if not found:
        raise AcceleratorError("the UNet has no attention modules: use one of SD or SDXL type")
    return found


def transformers(unet: Any) -> list[Any]:
    """Return every `Transformer2DModel` of `unet`, in module order.

    Raises:
        AcceleratorError: There is none.
    """
    from diffusers import Transformer2DModel

    found = [module for module in unet.modules() if isinstance(module, Transformer2DModel)]
    if not found:
        raise AcceleratorError(
            "the UNet has no Transformer2DModel to merge tokens in: use one of SD or SDXL type"
        )
    return found
