"""Write a few images of a finished search as files for its report."""

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
"""Lists the images of a folder."""


def write_pictures(
    evaluator: PipelineEvaluator,
    candidates: Mapping[str, Candidate],
    count: int,
    folder: Path,
    log: logging.Logger,
) -> None:
    """Write PNG files of the first prompts, one per candidate and prompt, and their index.

    The search did not keep its images, which would fill the memory: they are made again, untimed.

    Args:
        evaluator: Makes the images.
        candidates: Role, such as `winner` -> candidate.
        count: Number of prompts.
        folder: Created if missing; files in it are replaced.
        log: Gets a warning of each candidate that fails.

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
                log.warning("no images of %s (%s): the report lacks them", candidate, error)
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
    """Return an image `[3, H, W]`, uint8, as a PNG file's bytes."""
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()
