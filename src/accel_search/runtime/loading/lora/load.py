"""Load LoRAs into a pipeline, as a script does by `load_lora_weights` and `set_adapters`.

They are not fused: the sums would be rounded otherwise, and the pictures be others than the
script's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from accel_search.errors import ConfigurationError, first_line
from accel_search.runtime.loading.lora.active import COMPONENTS
from accel_search.runtime.loading.lora.files import LoraFile
from accel_search.runtime.loading.lora.fit import Shapes, check_fits, model_of
from accel_search.runtime.memory import is_out_of_memory


def load_loras(pipe: Any, loras: Sequence[LoraFile], given_pipe: str) -> None:
    """Load LoRAs and set their scales; without any, nothing is done.

    Args:
        pipe: The pipeline, before its parts are offloaded.
        loras: In the order in which their layers are added.
        given_pipe: Value of `--pipe`, for messages.

    Raises:
        ConfigurationError: One is of another model, or diffusers cannot load it.
    """
    if not loras:
        return
    model = model_of(
        {
            part: _shapes(module)
            for part in COMPONENTS
            # One that it lacks has no layers: SDXL's LoRAs are not for SD1.5.
            for module in [getattr(pipe, part, None)]
        }
    )
    for lora in loras:
        check_fits(lora.given, given_pipe, lora.layers, model)
    names = [f"lora_{place}" for place, _ in enumerate(loras)]
    for name, lora in zip(names, loras, strict=True):
        try:
            with warnings.catch_warnings():
                # peft warns of every second LoRA, which is no mistake.
                warnings.simplefilter("ignore")
                # By its path alone, with which diffusers reads safetensors whatever its ending.
                pipe.load_lora_weights(
                    str(lora.path), adapter_name=name, use_safetensors=True, local_files_only=True
                )
        except Exception as error:  # diffusers and peft raise many classes.
            if is_out_of_memory(error):
                raise
            raise ConfigurationError(
                f"{lora.given}: diffusers cannot load it ({first_line(error, 160)}): give another "
                "LoRA, or convert it to diffusers' format"
            ) from error
        loaded = _layers_with(pipe, name)
        if loaded != len(lora.layers):
            raise ConfigurationError(
                f"{lora.given}: diffusers loads {loaded} of its {len(lora.layers)} layers: convert "
                "it to diffusers' format, or give another"
            )
    pipe.set_adapters(names, [lora.scale for lora in loras])
    for module in _components(pipe):
        # A LoRA's dropout is for training. Its gradients are left as a script has them: without,
        # torch takes other kernels on a processor, which round otherwise.
        module.eval()


def _shapes(module: torch.nn.Module | None) -> Shapes:
    tensors = {} if module is None else module.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _layers_with(pipe: Any, adapter: str) -> int:
    """Return how many layers of a pipeline have an adapter."""
    modules = (module for component in _components(pipe) for module in component.modules())
    return sum(adapter in getattr(module, "lora_A", ()) for module in modules)


def _components(pipe: Any) -> list[torch.nn.Module]:
    """Return the components that LoRAs may change."""
    found = (getattr(pipe, name, None) for name in COMPONENTS)
    return [component for component in found if component is not None]
