"""A few pictures of a finished search, written as files for whoever reads its report."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel_search.core.candidate import Candidate
from accel_search.errors import ConfigurationError, OutOfMemoryError, TrialFailure
from accel_search.runtime.measuring.evaluator import PipelineEvaluator
from accel_search.storage.json_files import write_atomically

INDEX = "pictures.json"
"""Lists the pictures of a folder."""


def write_pictures(
    evaluator: PipelineEvaluator,
    candidates: Mapping[str, Candidate],
    count: int,
    folder: Path,
    log: logging.Logger,
) -> None:
    """Write PNG files of the first prompts, one a candidate and prompt, and an index of them.

    The pictures were scored while the search ran and not kept: hundreds of candidates' would fill
    the memory. They are made once more, one call a batch, outside all timing.

    Args:
        evaluator: Makes them.
        candidates: What to show, by the part it plays.
        count: Prompts.
        folder: Is made; files in it are replaced.
        log: Is told of a candidate that cannot be pictured.

    Raises:
        ConfigurationError: The folder cannot be written to.
    """
    prompts = evaluator.prompts.search[:count]
    columns: list[dict[str, Any]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, candidate in candidates.items():
            try:
                images = evaluator.pictures(candidate, len(prompts))
            except (TrialFailure, OutOfMemoryError) as error:
                log.warning("no pictures of %s (%s): the report is without them", candidate, error)
                continue
            files = [f"{part}-{number}.png" for number in range(len(prompts))]
            for file, image in zip(files, images, strict=True):
                write_atomically(folder / file, _png(image))
            columns.append({"part": part, "candidate": candidate.as_dict(), "files": files})
        index = {
            "prompts": [{"text": prompt.text, "seed": prompt.seed} for prompt in prompts],
            "columns": columns,
        }
        write_atomically(folder / INDEX, json.dumps(index, indent=1) + "\n")
    except OSError as error:
        raise ConfigurationError(f"--run_dir: {folder}: {error.strerror}") from error


def _png(image: Any) -> bytes:
    """Return a picture `[3, H, W]`, uint8, as a PNG file's bytes."""
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()
