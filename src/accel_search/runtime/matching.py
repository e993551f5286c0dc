"""What a pipeline in memory shows of itself, by which its result is found in a file.

Importing this loads nothing heavy: applying a result needs few packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from accel_search.core.paths import local_folder
from accel_search.core.schedulers import class_and_options
from accel_search.core.workload import IN_MEMORY
from accel_search.errors import AccelSearchError
from accel_search.runtime.loading.lora.active import active_scales


def shown_by(
    pipe: Any, loaded_from: str, scheduler: str | None, file: Path
) -> dict[str, Sequence[Any]]:
    """Return the fields of a provenance that a pipeline shows, in order, with what they may be.

    Args:
        pipe: A diffusers pipeline.
        loaded_from: Its folder or hub id; empty if unknown.
        scheduler: The sampler that it gets; None keeps its own.
        file: The result file.
    """
    near: dict[str, Sequence[Any]] = {
        "weights": [*_digests_of_files(loaded_from), *_digests_in_memory(pipe, file)],
        "loras": active_scales(pipe),
    }
    dtype = getattr(getattr(pipe, "unet", None), "dtype", None)
    if dtype is not None:
        near["dtype"] = [str(dtype).removeprefix("torch.")]
    own: Any = getattr(pipe, "scheduler", None)
    if hasattr(own, "config"):
        from accel_search.runtime.loading.schedulers import build_scheduler, options_of

        with suppress(AccelSearchError):  # It is said where the scheduler is exchanged.
            name, asked = class_and_options(scheduler or type(own).__name__)
            # As a search of its files makes it; one in memory is measured with its own.
            made = build_scheduler(name, own.config, type(pipe).__name__, asked=asked)
            near["scheduler"] = [options_of(made), options_of(own)]
    return near


def _digests_of_files(loaded_from: str) -> list[str]:
    """Return the digests that the weights in a pipeline's folder may have been measured by.

    Only of files that were read before: hashing gigabytes takes seconds.
    """
    folder = local_folder(loaded_from) if loaded_from else None
    if folder is None:
        return []
    from accel_search.runtime.loading.pipeline_folder import check_folder
    from accel_search.storage.digests import digest_of

    found = []
    for half in (False, True):
        with suppress(AccelSearchError, OSError):
            files = check_folder(folder, loaded_from, half, None).files
            found += [digest for digest in [digest_of(files, only_known=True)] if digest]
    return found


def _digests_in_memory(pipe: Any, file: Path) -> list[str]:
    """Return the digest of the pipeline itself, if the file holds results of any in memory.

    Else none is computed, which takes seconds for gigabytes, and needs xxhash.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # Which is said where its results are read.
        return []
    if f'"{IN_MEMORY}' not in text:
        return []
    from accel_search.runtime.given.fingerprint import digest_of_pipeline

    return [digest_of_pipeline(pipe)]
