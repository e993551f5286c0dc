"""Names that may be paths on this machine."""

from __future__ import annotations

from pathlib import Path

PIPELINES = ("demo", "SD1.5", "SD2.1", "SDXL")
"""What a shell completes; folders and hub ids are taken too."""
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
"""Endings of files that `torch.save` wrote."""


def local_path(name: str) -> Path:
    """Return a name as a path, a leading `~` or `~user` replaced where there is such a user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def local_folder(name: str) -> Path | None:
    """Return the folder that a name of a pipeline or a part is; None where there is none."""
    path = local_path(name)
    return path if path.is_dir() else None


def local_file(name: str) -> Path | None:
    """Return the file that a name of a pipeline is; None where there is none."""
    path = local_path(name)
    return path if path.is_file() else None
