"""Layers around methods of objects, each removable by itself; and the UNets that can be changed."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from accel_search.errors import AcceleratorError

_LAYERS = "_accel_search_layers"
"""In `vars()` of a layered object."""
_PLAIN = "_accel_search_plain"
"""On the class of a layered object: its class without layers."""


class Layer:
    """What runs around one method of one object: override `run`, and call `self.inner` in it.

    Layers lie on the object's class. Other libraries wrap or replace instance attributes
    (`forward`, `_old_forward`, `processor`): whatever they put there or take away, before or
    after, stays theirs and runs inside the layer. Of the object itself a layer keeps nothing, so
    that it is freed as if it had none.
    """

    inner: Callable[..., Any]
    """The method as it is inside this layer; takes the object first. Set while it is applied."""
    below: Layer | None = None
    """The next layer inside; None where `inner` is the object's own method."""

    def run(self, owner: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Return what the method returns."""
        return self.inner(owner, *args, **kwargs)


class _Layers(dict[str, Layer]):
    """Method name -> its outermost layer.

    Not copied with the `vars()` of an object, which MultiDiffusion keeps of a scheduler for each
    view and puts back: layers are of one object.
    """

    def __deepcopy__(self, _: dict[int, Any]) -> _Layers:
        return self


class layered(AbstractContextManager[None]):  # noqa: N801 - used like a function
    """Run `layer` around `owner.method`, outside of the layers there are, for a `with` block.

    Layers can be removed in any order. While it has any, the object is of a subclass of its class
    that has the same name; copies of it are plain, and it refuses to be pickled.

    Args:
        owner: A module, a scheduler or a pipeline; only a weak reference is kept.
        layer: Around this object and no other.
        method: Looked up on the class, as `owner(...)` looks up `__call__`.
    """

    def __init__(self, owner: Any, layer: Layer, method: str = "__call__") -> None:
        self._owner = weakref.ref(owner)
        self._layer = layer
        self._method = method

    def __enter__(self) -> None:
        """Put the layer on."""
        owner = self._owner()
        layers = vars(owner).setdefault(_LAYERS, _Layers())
        layer, below = self._layer, layers.get(self._method)
        layer.below = below
        layer.inner = getattr(_plain(owner), self._method) if below is None else below.run
        layers[self._method] = layer
        _set_class(owner)

    def __exit__(self, *_: object) -> None:
        """Take the layer off, and nothing else; does nothing where it is off already."""
        owner = self._owner()
        layers: dict[str, Layer] = {} if owner is None else vars(owner).get(_LAYERS, {})
        layer, above = layers.get(self._method), None
        while layer is not None and layer is not self._layer:
            layer, above = layer.below, layer
        if layer is None:
            return
        if above is not None:
            above.below, above.inner = layer.below, layer.inner
        elif layer.below is not None:
            layers[self._method] = layer.below
        else:
            del layers[self._method]
        if not layers:
            del vars(owner)[_LAYERS]
        _set_class(owner)


def layers_of(owner: Any, method: str = "__call__") -> list[Layer]:
    """Return the layers around `owner.method`, the outermost first."""
    layers = []
    layer = vars(owner).get(_LAYERS, {}).get(method)
    while layer is not None:
        layers.append(layer)
        layer = layer.below
    return layers


def _plain(owner: Any) -> type:
    plain: type = getattr(type(owner), _PLAIN, type(owner))
    return plain


def _set_class(owner: Any) -> None:
    """Give an object the class that its layers ask for."""
    if _PLAIN not in vars(type(owner)) and hasattr(owner, _PLAIN):
        return  # Somebody has derived a class from ours since: it runs the layers there are.
    plain, methods = _plain(owner), frozenset(vars(owner).get(_LAYERS, ()))
    # Not by `owner.__class__ =`, which pipelines and modules look into.
    object.__setattr__(owner, "__class__", _layered_class(plain, methods) if methods else plain)


@functools.cache
def _layered_class(plain: type, methods: frozenset[str]) -> type:
    """Return the subclass of `plain` whose `methods` run the layers of the object.

    One for all objects of a class: torch.compile makes a graph of its own for each class.
    """
    namespace: dict[str, Any] = {
        name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")
    }
    namespace |= {method: _layered_method(plain, method) for method in methods}
    namespace |= {
        _PLAIN: plain,
        _LAYERS: {},  # Where an object has none any more, but others still hold its method.
        # `type(scheduler).from_config(...)`, as is usual, makes a plain one.
        "__new__": lambda _, *args, **kwargs: plain(*args, **kwargs),
        "__copy__": _shallow_copy,
        "__deepcopy__": _deep_copy,
        "__reduce_ex__": _refuse_to_pickle,
    }
    made: type = _equal_class(type(plain))(plain.__name__, (plain,), namespace)
    return made


@functools.cache
def _equal_class(metaclass: type) -> Any:
    """Return a metaclass whose classes equal the plain ones: `from_pipe` compares types by `==`."""
    namespace = {
        "__eq__": lambda cls, other: other is cls or other is vars(cls)[_PLAIN],
        "__hash__": lambda cls: hash(vars(cls)[_PLAIN]),
    }
    return type(metaclass.__name__, (metaclass,), namespace)


def _layered_method(plain: type, method: str) -> Callable[..., Any]:
    own = getattr(plain, method)

    # `retrieve_timesteps` asks for the signature, which `wraps` hands on.
    @functools.wraps(own)
    def run_layers(self: Any, *args: Any, **kwargs: Any) -> Any:
        layer = self._accel_search_layers.get(method)
        return own(self, *args, **kwargs) if layer is None else layer.run(self, *args, **kwargs)

    return run_layers


def _state_of(owner: Any) -> dict[str, Any]:
    return {name: value for name, value in owner.__getstate__().items() if name != _LAYERS}


def _deep_copy(self: Any, memo: dict[int, Any]) -> Any:
    """Return a copy without layers, for `copy.deepcopy`."""
    plain = _plain(self)
    twin: Any = object.__new__(plain)
    memo[id(self)] = twin
    state = copy.deepcopy(_state_of(self), memo)
    if hasattr(twin, "__setstate__"):
        twin.__setstate__(state)
    else:
        vars(twin).update(state)
    return twin


def _shallow_copy(self: Any) -> Any:
    """Return a copy without layers of an object that has no modules to share, for `copy.copy`."""
    if "_modules" in vars(self):
        raise AcceleratorError(
            f"this {type(self).__name__} is accelerated, and a shallow copy shares its modules: "
            "use copy.deepcopy, or call accel_search.restore(pipe) first"
        )
    twin: Any = object.__new__(_plain(self))
    vars(twin).update(_state_of(self))
    return twin


def _refuse_to_pickle(self: Any, _: Any) -> Any:
    raise AcceleratorError(
        f"this {type(self).__name__} is accelerated and cannot be pickled: "
        "call accel_search.restore(pipe) first, and accelerate what is loaded"
    )


COMPILED = (
    "the UNet is compiled as a whole, which hides what is accelerated in it: leave out "
    "torch.compile, and call accel_search.compile_unet(pipe)"
)


def check_pipeline(pipe: Any) -> None:
    """Raise AcceleratorError unless `pipe` has a UNet2DConditionModel and a scheduler."""
    from diffusers import UNet2DConditionModel

    unet = getattr(pipe, "unet", None)
    # `torch.compile(unet)` is another module around it; `unet.compile()` sets a call of its own.
    if hasattr(unet, "_orig_mod") or getattr(unet, "_compiled_call_impl", None) is not None:
        raise AcceleratorError(COMPILED)
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

    modules = []
    for name, module in unet.named_modules():
        if not isinstance(module, Attention):
            continue
        if module.residual_connection or module.added_kv_proj_dim is not None:
            kind = "a residual connection" if module.residual_connection else "added keys/values"
            raise AcceleratorError(
                f"attention {name!r} has {kind}, which T-GATE cannot cache: "
                "use a UNet of SD or SDXL type"
            )
        modules.append(module)
    if not modules:
        raise AcceleratorError("the UNet has no attention modules: use one of SD or SDXL type")
    return modules


def transformers(unet: Any) -> list[Any]:
    """Return every `Transformer2DModel` of `unet`, in module order.

    Raises:
        AcceleratorError: There is none.
    """
    from diffusers import Transformer2DModel

    transformers = [module for module in unet.modules() if isinstance(module, Transformer2DModel)]
    if not transformers:
        raise AcceleratorError(
            "the UNet has no Transformer2DModel to merge tokens in: use one of SD or SDXL type"
        )
    return transformers
