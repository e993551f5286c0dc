"""Compute in full float32, whatever the process allows otherwise."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

WHOLE = "ieee"


@contextmanager
def whole_float32() -> Iterator[None]:
    """Keep float32 products and convolutions from rounding to TF32 or bfloat16 in a `with` block.

    Torch has two sets of switches and checks that they agree: set the older ones where they can be
    read, and the newer ones, one per operation, where torch has them (from 2.9 on).

    Source:
        torch 2.11 and 2.15, notes on CUDA and on MKLDNN, "fp32_precision".
    """
    backends: Any = torch.backends  # Not all of its switches are annotated.
    named = [("cuda", "matmul"), ("cudnn", "conv"), ("cudnn", "rnn")]
    named += [("mkldnn", "matmul"), ("mkldnn", "conv")]
    found = [getattr(getattr(backends, backend), name, None) for backend, name in named]
    switches: list[Any] = [switch for switch in found if hasattr(switch, "fp32_precision")]
    before = [switch.fp32_precision for switch in switches]
    products, convolutions = _older()
    try:
        _set_older(None if products is None else "highest", None if convolutions is None else False)
        for switch in switches:
            switch.fp32_precision = WHOLE
        yield
    finally:
        _set_older(products, convolutions)
        for switch, precision in zip(switches, before, strict=True):
            # With "none" it follows the switch above it, as it may have before.
            switch.fp32_precision = "none"
            if switch.fp32_precision != precision:
                switch.fp32_precision = precision


def _older() -> tuple[str | None, bool | None]:
    """Return the older switches of products and of convolutions on CUDA.

    None where they raise, because the newer ones were set otherwise.
    """
    products = convolutions = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They are deprecated.
        with suppress(RuntimeError):
            products = torch.get_float32_matmul_precision()
        with suppress(RuntimeError):
            convolutions = torch.backends.cudnn.allow_tf32
    return products, convolutions


def _set_older(products: str | None, convolutions: bool | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
