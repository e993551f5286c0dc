"""A module's output that is handed out again in later UNet calls, whatever is done to it there."""

from __future__ import annotations

from typing import Any

from accel_search.errors import AcceleratorError


class Kept:
    """An output kept from one UNet call of a pipeline call to later ones.

    Code behind the module may change its output in place (FreeU scales the features that it gets,
    a T2I-Adapter adds to them): a tensor that is kept would be changed again at every use. The
    first output of a pipeline call is therefore kept as a copy; where the original has been
    changed by the next UNet call, copies are kept and handed out from then on, else the tensors.
    """

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Let go of everything: the next output is the first of another pipeline call."""
        self._value: Any = None
        self._handed_out: list[tuple[Any, int | None]] = []
        self._is_changed: bool | None = None
        """Whether others change it in place; None before that is known."""

    def store(self, output: Any) -> None:
        """Keep what a module returns: a tensor, or a tuple of tensors and tuples."""
        if self._value is None:
            self._handed_out = _versions(output)
            self._value = _copied(output, {})
            return
        self._find_out()
        self._value = _copied(output, {}) if self._is_changed else output
        self._handed_out = [] if self._is_changed else _versions(output)

    def get(self) -> Any:
        """Return what was stored last.

        Raises:
            AcceleratorError: It has been changed in place by something that did not do so in the
                first UNet call.
        """
        self._find_out()
        if self._is_changed:
            return _copied(self._value, {})
        if _are_changed(self._handed_out):
            raise AcceleratorError(
                "features that are kept for later steps were changed in place in the middle of a "
                "pipeline call: make such changes (FreeU …) before the call"
            )
        return self._value

    def _find_out(self) -> None:
        if self._is_changed is None:
            self._is_changed = _are_changed(self._handed_out)
            self._handed_out = [] if self._is_changed else _versions(self._value)


def _tensors(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if hasattr(value, "data_ptr") else []


def _versions(value: Any) -> list[tuple[Any, int | None]]:
    """Return each tensor of `value` and how often it was changed in place; None: not known."""
    return [(tensor, None if tensor.is_inference() else tensor._version)
            for tensor in _tensors(value)]  # fmt: skip


def _are_changed(versions: list[tuple[Any, int | None]]) -> bool:
    return any(version is None or tensor._version != version for tensor, version in versions)


def _copied(value: Any, copies: dict[int, Any]) -> Any:
    """Return a copy of tensors and tuples in which what is one tensor stays one."""
    if isinstance(value, tuple | list):
        return type(value)(_copied(item, copies) for item in value)
    if not hasattr(value, "clone"):
        return value
    if id(value) not in copies:
        copies[id(value)] = value.clone()
    return copies[id(value)]
