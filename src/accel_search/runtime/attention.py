"""Choose and describe the attention kernel of the UNet."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from accel_search.errors import ConfigurationError, first_line
from accel_search.runtime.devices import dtype_name, execution_device

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Name on the command line -> kernel of torch's scaled_dot_product_attention."""


def use_kernel(pipe: Any, name: str) -> None:
    """Make the UNet's attention use one kernel; `auto` leaves the choice to torch.

    The decoder's attention is unchanged: not every kernel supports its head of 512 channels.

    Args:
        pipe: On its device.
        name: `auto`, or a key of `KERNELS`.

    Raises:
        ConfigurationError: The kernel does not support this UNet's heads, dtype or device.
    """
    if name == "auto":
        return
    unet, kernel = pipe.unet, KERNELS[name]
    refusal = _refusal(pipe, name)
    if refusal is not None:
        others = [kernel for kernel in KERNELS if kernel != name and _refusal(pipe, kernel) is None]
        raise ConfigurationError(
            f"--attention {name}: torch {torch.__version__} has no such kernel for {refusal}: use "
            + " or ".join(["auto", *others])
        )
    # Under CPU offload, accelerate's `forward` moves the module and runs `_old_forward`; diffusers
    # renews these hooks after every call, which would drop a patch of `forward`.
    where = "_old_forward" if "_old_forward" in vars(unet) else "forward"
    forward = getattr(unet, where)

    @functools.wraps(forward)
    def with_kernel(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(kernel):
            return forward(*args, **kwargs)

    setattr(unet, where, with_kernel)


def describe_attention(pipe: Any, name: str, tokens: int) -> str:
    """Return what computes the UNet's attention, for a provenance.

    Args:
        pipe: On its device.
        name: The argument of `use_kernel`.
        tokens: Number in its largest self-attention.

    Returns:
        `native` for torch's own attention, with the kernel in brackets where one was requested or
        where torch tells its choice (on a GPU); else the names of the processors.
    """
    names = {type(processor).__name__ for processor in pipe.unet.attn_processors.values()}
    if not names <= {"AttnProcessor2_0", "IPAdapterAttnProcessor2_0"}:
        return "+".join(sorted(names))
    device = execution_device(pipe)
    if name == "auto" and device.type == "cuda":
        name = _chosen(pipe.unet, device, tokens)
    return "native" if name == "auto" else f"native ({name})"


def _refusal(pipe: Any, name: str) -> str | None:
    """Return which of the UNet's heads a kernel does not support and why, or None."""
    unet, device = pipe.unet, execution_device(pipe)
    for size in _head_sizes(unet):
        try:
            with sdpa_kernel(KERNELS[name]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of each kernel's reasons.
                same = _queries(unet, device, size, 64)
                torch.nn.functional.scaled_dot_product_attention(same, same, same)
        except RuntimeError as error:
            return (
                f"heads of {size} channels in {dtype_name(unet.dtype)} on {device} "
                f"({first_line(error, 120)})"
            )
    return None


def _chosen(unet: Any, device: torch.device, tokens: int) -> str:
    choice = getattr(torch, "_fused_sdp_choice", None)
    if choice is None:
        return "auto"
    same = _queries(unet, device, _head_sizes(unet)[0], tokens)
    chosen = choice(same, same, same)
    return next((name for name, kernel in KERNELS.items() if kernel.value == chosen), "auto")


def _head_sizes(unet: Any) -> list[int]:
    """Return the distinct channels per head, in module order."""
    from diffusers.models.attention_processor import Attention

    attentions = [module for module in unet.modules() if isinstance(module, Attention)]
    return list(dict.fromkeys(attention.inner_dim // attention.heads for attention in attentions))


def _queries(unet: Any, device: torch.device, size: int, tokens: int) -> torch.Tensor:
    """Return dummy queries, keys and values of one head, `[2, 1, tokens, size]`."""
    return torch.zeros(2, 1, tokens, size, device=device, dtype=unet.dtype)
