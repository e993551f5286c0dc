"""Read the JSON files of a pipeline's folder, and refuse code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accel_search.errors import LoadError, first_line


def read_object(given: str, file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
        given: Option and value, for messages.
        file: The file.

    Raises:
        LoadError: It cannot be read or holds no object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(
            f"{given}: {file} cannot be read ({first_line(error, 120)}): fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise LoadError(
            f"{given}: {file}: expected an object, not {str(content)[:40]!r}: fetch it again"
        )
    return content


def refuse_code(given: str, folder: Path) -> None:
    """Raise LoadError for a component with code, or whose configuration is no object.

    With a text in place of an object, diffusers would look for a repository of that name.
    """
    if any(folder.glob("*.py")):
        raise LoadError(
            f"{given}: {folder} holds Python code, which is never run: use a pipeline of "
            "diffusers' own classes"
        )
    for file in folder.glob("*config.json"):
        if "auto_map" in read_object(given, file):
            raise LoadError(
                f"{given}: {file} asks for its own code (auto_map), which is never run: use a "
                "pipeline of diffusers' own classes"
            )
