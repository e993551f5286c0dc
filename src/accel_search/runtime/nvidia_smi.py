"""Query the GPU driver's own tool, without loading torch."""

from __future__ import annotations

import subprocess


def query(field: str) -> list[str]:
    """Return a field of every GPU; an empty list where the tool is missing or fails.

    Args:
        field: One of those that `nvidia-smi --help-query-gpu` lists.
    """
    try:
        output = subprocess.run(  # noqa: S603
            ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.splitlines() if line.strip()]
