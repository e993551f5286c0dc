"""Which of torch's attention kernels the UNet uses, and which it would choose by itself."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from accel_search.errors import ConfigurationError
from accel_search.runtime.devices import dtype_name
from accel_search.runtime.quiet import first_line

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Name on the command line -> kernel of torch's scaled_dot_product_attention."""


def use_kernel(pipe: Any, name: str) -> None:
    """Let the UNet's attention use one kernel from now on; `auto` leaves torch its choice.

    The decoder's attention, with one head of 512 channels, is left alone: not every kernel has it.

    Args:
        pipe: On its device.
        name: `auto`, or a key of `KERNELS`.

    Raises:
        ConfigurationError: The kernel does not take this UNet's heads, dtype or device.
    """
    if name == "auto":
        return
    unet, kernel = pipe.unet, KERNELS[name]
    for size in _head_sizes(unet):
        try:
            with sdpa_kernel(kernel), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch gives each kernel's reasons as warnings.
                same = _queries(unet, size, 64)
                torch.nn.functional.scaled_dot_product_attention(same, same, same)
        except RuntimeError as error:
            raise ConfigurationError(
                f"--attention {name}: torch {torch.__version__} has no such kernel for heads of "
                f"{size} channels in {dtype_name(unet.dtype)} on {unet.device} "
                f"({first_line(error, 120)}): use auto or another of {', '.join(KERNELS)}"
            ) from error
    forward = unet.forward

    @functools.wraps(forward)
    def with_kernel(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(kernel):
            return forward(*args, **kwargs)

    unet.forward = with_kernel


def describe_attention(unet: Any, name: str, tokens: int) -> str:
    """Return what computes the UNet's attention, for a provenance.

    Args:
        unet: The UNet.
        name: What `use_kernel` was told.
        tokens: Of its largest self-attention.

    Returns:
        `native` for torch's own attention, with the kernel in brackets where one was asked for, or
        where it runs on a GPU and torch tells which it would choose; else the names of the
        processors in use.
    """
    names = {type(processor).__name__ for processor in unet.attn_processors.values()}
    if not names <= {"AttnProcessor2_0"}:
        return "+".join(sorted(names))
    if name == "auto" and unet.device.type == "cuda":
        name = _chosen(unet, tokens)
    return "native" if name == "auto" else f"native ({name})"


def _chosen(unet: Any, tokens: int) -> str:
    choice = getattr(torch, "_fused_sdp_choice", None)
    if choice is None:
        return "auto"
    same = _queries(unet, _head_sizes(unet)[0], tokens)
    chosen = choice(same, same, same)
    return next((name for name, kernel in KERNELS.items() if kernel.value == chosen), "auto")


def _head_sizes(unet: Any) -> list[int]:
    """Return the channels of a head of each attention that there is, in module order."""
    from diffusers.models.attention_processor import Attention

    attentions = [module for module in unet.modules() if isinstance(module, Attention)]
    return list(dict.fromkeys(each.inner_dim // each.heads for each in attentions))


def _queries(unet: Any, size: int, tokens: int) -> torch.Tensor:
    """Return what may stand for queries, keys and values of one head: `[2, 1, tokens, size]`."""
    return torch.zeros(2, 1, tokens, size, device=unet.device, dtype=unet.dtype)
