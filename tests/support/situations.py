"""What users and other libraries do to a pipeline, before or after it is accelerated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor

from tests.support.tiny import WIDTH, make_scheduler

FREEU = {"s1": 0.6, "s2": 0.4, "b1": 1.1, "b2": 1.2}


@dataclass(frozen=True)
class Change:
    """Something that other code does to a pipeline and takes back."""

    make: Callable[[Any], Any]
    unmake: Callable[[Any], Any]
    call: dict[str, Any] = field(default_factory=dict)
    """Arguments that a call needs meanwhile."""
    leaves_traces: bool = False
    """Whether `unmake` itself leaves `vars()` of modules other than they were."""


def group_offload(pipe: Any, kind: str) -> None:
    groups = {} if kind == "leaf_level" else {"num_blocks_per_group": 1}
    pipe.unet.enable_group_offload(torch.device("cpu"), offload_type=kind, **groups)


def no_group_offload(pipe: Any) -> None:
    from diffusers.hooks import HookRegistry

    for module in pipe.unet.modules():
        if hasattr(module, "_diffusers_hook"):
            registry = HookRegistry.check_if_exists_or_initialize(module)
            for name in list(registry.hooks):
                registry.remove_hook(name, recurse=False)


def no_offload(pipe: Any) -> None:
    pipe.remove_all_hooks()
    pipe._all_hooks = []


def lora(pipe: Any) -> None:
    from peft import LoraConfig

    with torch.random.fork_rng():
        torch.manual_seed(5)
        pipe.unet.add_adapter(
            LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
        )


def ip_adapter(pipe: Any, tokens: int = 4, width: int = 16) -> None:
    """Load an IP-Adapter of random weights, with no image encoder."""
    generator = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    unet, layers, number = pipe.unet, {}, 1
    widths = list(unet.config.block_out_channels)
    for name in unet.attn_processors:
        if name.endswith("attn1.processor"):
            continue
        part, _, rest = name.partition(".")
        levels = {"mid_block": [widths[-1]], "up_blocks": widths[::-1]}.get(part, widths)
        size = levels[0 if part == "mid_block" else int(rest[0])]
        layers[f"{number}.to_k_ip.weight"] = weight(size, WIDTH)
        layers[f"{number}.to_v_ip.weight"] = weight(size, WIDTH)
        number += 2
    projection = {
        "proj.weight": weight(WIDTH * tokens, width),
        "proj.bias": weight(WIDTH * tokens),
        "norm.weight": torch.ones(WIDTH),
        "norm.bias": torch.zeros(WIDTH),
    }
    pipe.load_ip_adapter(
        {"image_proj": projection, "ip_adapter": layers},
        subfolder=None, weight_name=None, image_encoder_folder=None,
    )  # fmt: skip
    pipe.set_ip_adapter_scale(0.7)


IMAGE = torch.cat(
    [
        torch.zeros(1, 1, 16),
        torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(3)),
    ]
)


def processors(pipe: Any) -> None:
    """Another attention processor: the one that does without torch's fused attention."""
    pipe._own_processors = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(AttnProcessor())


def own_processors(pipe: Any) -> None:
    pipe.unet.set_attn_processor(vars(pipe).pop("_own_processors"))


def wrapped(pipe: Any) -> None:
    """What other tools do: put a function of theirs in `forward`'s place."""
    for module in (pipe.unet, pipe.unet.mid_block, pipe.unet.up_blocks[0]):
        forward = module.forward

        def theirs(*args: Any, _forward: Any = forward, **kwargs: Any) -> Any:
            return _forward(*args, **kwargs)

        module.forward = theirs


def unwrapped(pipe: Any) -> None:
    for module in (pipe.unet, pipe.unet.mid_block, pipe.unet.up_blocks[0]):
        del module.forward


def hooked(pipe: Any) -> None:
    def double(_: Any, __: Any, output: Any) -> Any:
        return output * 1.01

    pipe._handles = [
        module.register_forward_hook(double)
        for module in (pipe.unet.mid_block, pipe.unet.down_blocks[0].resnets[0])
    ]


def unhooked(pipe: Any) -> None:
    for handle in vars(pipe).pop("_handles"):
        handle.remove()


def other_scheduler(pipe: Any, name: str) -> None:
    pipe.scheduler = make_scheduler(name)


CHANGES = {
    "model offload": Change(
        lambda pipe: pipe.enable_model_cpu_offload(device="cpu"), no_offload, leaves_traces=True
    ),
    "group offload by leaf": Change(
        partial(group_offload, kind="leaf_level"), no_group_offload, leaves_traces=True
    ),
    "group offload by block": Change(
        partial(group_offload, kind="block_level"), no_group_offload, leaves_traces=True
    ),
    "lora": Change(lora, lambda pipe: pipe.unet.delete_adapters("default"), leaves_traces=True),
    "ip-adapter": Change(
        ip_adapter,
        lambda pipe: pipe.unload_ip_adapter(),
        {"ip_adapter_image_embeds": [IMAGE]},
        leaves_traces=True,
    ),
    "freeu": Change(
        lambda pipe: pipe.enable_freeu(**FREEU),
        lambda pipe: pipe.disable_freeu(),
        leaves_traces=True,
    ),
    "attention slicing": Change(
        lambda pipe: pipe.enable_attention_slicing(1),
        lambda pipe: pipe.disable_attention_slicing(),
        leaves_traces=True,
    ),
    "fused qkv": Change(
        lambda pipe: pipe.unet.fuse_qkv_projections(),
        lambda pipe: pipe.unet.unfuse_qkv_projections(),
        leaves_traces=True,
    ),
    "processors": Change(processors, own_processors),
    "wrapped forward": Change(wrapped, unwrapped),
    "forward hooks": Change(hooked, unhooked),
    "another scheduler": Change(
        partial(other_scheduler, name="UniPCMultistepScheduler"),
        partial(other_scheduler, name="DDIMScheduler"),
        leaves_traces=True,
    ),
}
