"""Paths of the embedded demo pipeline, its scorer and its prompts."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from accel_search.errors import LoadError


def demo_folder() -> Path:
    """Return the folder with `pipeline/`, `scorer/`, `prompts.txt` and `demo.json`."""
    return Path(str(resources.files("accel_search"))) / "demo"


def demo_part(name: str) -> Path:
    """Return the path of one part of the demo.

    Raises:
        LoadError: The installation lacks it.
    """
    path = demo_folder() / name
    if not path.exists():
        raise LoadError(
            f"the demo's {name} is missing from this installation ({path}): reinstall accel-search"
        )
    return path


def default_guidance(pipeline_folder: Path) -> float | None:
    """Return `default_guidance_scale` of a `demo.json` beside a pipeline's folder, if any.

    Raises:
        LoadError: The file lacks that number.
    """
    path = pipeline_folder.parent / "demo.json"
    if not path.is_file():
        return None
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["default_guidance_scale"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(
            f"{path}: expected an object with the number default_guidance_scale: fix or remove it"
        ) from error
