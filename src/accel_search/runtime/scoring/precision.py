"""Whole float32 arithmetic for a while, whatever a process allows itself otherwise."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

WHOLE = "ieee"


@contextmanager
def whole_float32() -> Iterator[None]:
    """Let no product or convolution of float32 round to TF32 or bfloat16 within a `with` block.

    Torch has two sets of switches for that and checks that they agree: the older one is moved
    where it says something, and the newer one, which has a switch for each operation, in any case.

    Source:
        torch 2.11 and 2.15, notes on CUDA and on MKLDNN, "fp32_precision".
    """
    backends: Any = torch.backends  # Not all of its switches are annotated.
    switches = (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    )
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
            # One that follows the switch above it goes on to follow it.
            switch.fp32_precision = "none"
            if switch.fp32_precision != precision:
                switch.fp32_precision = precision


def _older() -> tuple[str | None, bool | None]:
    """Return what the older switches say: of products, of convolutions on CUDA.

    None where they are not to be asked: the newer ones were used to say something else.
    """
    products = convolutions = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That they are the older ones.
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
