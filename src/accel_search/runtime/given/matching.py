"""What tells a pipeline in memory from others, where a result file asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel_search.core.workload import IN_MEMORY


def digests_for(pipe: Any, file: Path) -> list[str]:
    """Return the digest of a pipeline, if a result file holds results of pipelines in memory.

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
