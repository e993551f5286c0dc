"""Load the parts of a pipeline from their folders, and refuse incomplete ones.

diffusers' loader of whole pipelines does not report missing tensors, and transformers fills them
with random numbers. So each part is loaded by its own class.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from accel_search.errors import LoadError, first_line
from accel_search.runtime.loading.pipeline_folder import Part
from accel_search.runtime.loading.weight_files import variant_of
from accel_search.runtime.memory import is_out_of_memory

SHOWN = 3
"""Missing tensors that a message names."""


def load_part(
    given: str, folder: Path, name: str, part: Part, half: bool, dtype: torch.dtype
) -> Any:
    """Return a component of a pipeline, any but its scheduler.

    Args:
        given: Option and value, for messages.
        folder: The component's folder, checked by `pipeline_folder.check_folder`.
        name: The component's name in `model_index.json`.
        part: Its entry there.
        half: As in `find_pipeline`.
        dtype: Dtype of its weights, if it has any.

    Raises:
        LoadError: It cannot be loaded.
    """
    import diffusers
    import transformers

    kinds = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.ModelMixin,
        "tokenizer": transformers.PreTrainedTokenizerBase,
        "text_encoder": transformers.PreTrainedModel,
    }
    kind = kinds[name.removesuffix("_2")]
    library = importlib.import_module(part.library)
    cls = getattr(library, part.class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise LoadError(
            f"{given}: its {name} is {part.library}.{part.class_name}, which is no "
            f"{kind.__name__} of {part.library} {library.__version__}: give a pipeline with one, "
            f"or install the version of {part.library} that it was saved with"
        )
    if issubclass(cls, torch.nn.Module):
        return load_model(given, folder, cls, half, dtype)
    try:
        return cls.from_pretrained(folder, local_files_only=True)  # type: ignore[attr-defined]
    except Exception as error:  # Corrupt files raise errors of six libraries.
        raise _not_loaded(given, folder, error) from error


def load_model(given: str, folder: Path, cls: Any, half: bool, dtype: torch.dtype) -> Any:
    """Return a model of diffusers or transformers with all its weights.

    Raises:
        LoadError: It cannot be loaded.
    """
    default = torch.get_default_dtype()
    try:
        model, info = cls.from_pretrained(
            folder,
            # Explicit, or transformers would keep the file's; by the name that version 4 knows too.
            torch_dtype=dtype,
            variant=variant_of(folder, half),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # See above.
        if is_out_of_memory(error):
            raise
        raise _not_loaded(given, folder, error) from error
    finally:
        torch.set_default_dtype(default)  # diffusers does not restore it where it raises.
    # diffusers leaves tensors without data that an index of shards lists but no shard has.
    empty = (name for name, tensor in model.named_parameters() if tensor.is_meta)
    missing = sorted({*info["missing_keys"], *empty})
    if missing:
        more = ", …" if len(missing) > SHOWN else ""
        raise LoadError(
            f"{given}: {folder} lacks {len(missing)} of the tensors that its config.json asks for "
            f"({', '.join(missing[:SHOWN])}{more}): fetch or save it again"
        )
    return model


def _not_loaded(given: str, folder: Path, error: Exception) -> LoadError:
    return LoadError(
        f"{given}: {folder} could not be loaded ({first_line(error)}): fetch or save it again"
    )
