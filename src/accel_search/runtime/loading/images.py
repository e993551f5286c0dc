"""Read images of the user's, safely. Imports no torch."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from accel_search.core.workload import ImageFile
from accel_search.errors import ConfigurationError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 2**28
"""Largest file that is read."""
MAX_PIXELS = 2**26
"""Most pixels of an image: a small file can hold a picture that fills the memory."""


def read_image(path: Path, mode: str = "RGB") -> Image:
    """Return an image as diffusers' `load_image` does: upright, in the mode that is asked for.

    Args:
        path: A PNG, JPEG or WebP file.
        mode: `RGB`, or `L` for a mask.

    Raises:
        ConfigurationError: It is missing, truncated, too large, or of another format.
    """
    return _decoded(path, _content(path), mode)


def read_same(file: ImageFile, mode: str = "RGB") -> Image:
    """Return the image of a case; raises as `read_image`, and where its file was changed since."""
    path = Path(file.path)
    content = _content(path)
    if _digest(content) != file.digest:
        raise ConfigurationError(f"{path}: was changed during the run: start it again")
    return _decoded(path, content, mode)


def described(path: Path, mode: str = "RGB") -> tuple[ImageFile, tuple[int, int]]:
    """Return a file with the digest of its content, and the picture's height and width.

    The whole picture is decoded, so that a truncated one is found now; raises as `read_image`.
    """
    content = _content(path)
    width, height = _decoded(path, content, mode).size
    return ImageFile(str(path), _digest(content)), (height, width)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigurationError(f"{path}: is larger than {MAX_BYTES >> 20} MiB: make it less")
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error


def _decoded(path: Path, content: bytes, mode: str) -> Image:
    from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of sizes, which are checked here, and of metadata.
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ConfigurationError(
                        f"{path}: is {image.width} × {image.height} pixels; at most "
                        f"{MAX_PIXELS:,} in all are read"
                    )
                if getattr(image, "n_frames", 1) > 1:
                    raise ConfigurationError(f"{path}: holds several frames: give one picture")
                image.load()
                return ImageOps.exif_transpose(image).convert(mode)
    except UnidentifiedImageError as error:
        raise ConfigurationError(
            f"{path}: is no {', '.join(FORMATS[:-1])} or WebP image: save it as one"
        ) from error
    except ConfigurationError:
        raise
    except Exception as error:  # Pillow's decoders raise many classes.
        raise ConfigurationError(
            f"{path}: is truncated or corrupt ({first_line(error, 120)}): save it again"
        ) from error
