"""JSON files that several processes share, replaced as a whole and checked when read."""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from accel_search.errors import ConfigurationError, first_line
from accel_search.storage.typed import Mismatch, convert

LOCK_SECONDS = 60.0
"""How long a writer waits for another; a dead process's lock is released by the system."""
DEPTH = 64
"""Levels that a file may be nested; ours have seven."""

_logger = logging.getLogger(__name__)
K = TypeVar("K")
T = TypeVar("T")


class Unreadable(ValueError):
    """A file, or a part of one, is corrupt; the message is one line."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a result file; `{}` where there is no file.

    A file without a JSON object is moved aside, with a warning that names it; so is one with NaN or
    an infinite number, or nested too deep, which could not be written back.

    Raises:
        ConfigurationError: The file cannot be read, or a corrupt one cannot be moved aside.
    """
    content, wrong = _parsed(path)
    if not wrong:
        return content
    with _locked(path):
        return _read(path)


def _read(path: Path) -> dict[str, Any]:
    """Do as `read_json`, under the lock: another process may have replaced the file."""
    content, wrong = _parsed(path)
    if wrong:
        aside = path.with_name(f"{path.name}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
        path.replace(aside)
        _logger.warning("%s does not parse (%s); it is kept as %s", path, wrong, aside)
    return content


def _parsed(path: Path) -> tuple[dict[str, Any], str]:
    """Return a file's object, and what is wrong with the file, if anything."""
    try:
        return as_type(load_json(path), dict[str, Any]), ""
    except Unreadable as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}, ""
        if isinstance(error.__cause__, OSError):
            reason = error.__cause__.strerror
            raise ConfigurationError(f"{path}: cannot be read: {reason}") from error
        return {}, str(error)


def parse_json(text: str) -> Any:
    """Return the value of a JSON text with finite numbers, nested at most `DEPTH` levels.

    Raises:
        ValueError, RecursionError: It is not one.
    """

    def finite(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError(f"{digits} is no finite number")
        return value

    content = json.loads(text, parse_float=finite, parse_constant=finite)
    level = [content]
    for _ in range(DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return content
    raise ValueError(f"it is nested more than {DEPTH} levels deep")


def update_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Read a result file, change its object and replace the file, under its lock.

    A reader sees the old file or the new one, never a part, and no writer loses the entries of
    another.

    Args:
        path: The file; its folder is created.
        change: Changes the object in place.

    Raises:
        ConfigurationError: The folder cannot be written to, or another process holds the lock.
    """
    with _locked(path):
        content = _read(path)
        change(content)
        write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def load_json(path: Path) -> Any:
    """Return the content of a JSON file, compressed if its name ends in `.gz`.

    Raises:
        Unreadable: It cannot be read, or `parse_json` refuses it.
    """
    try:
        raw = path.read_bytes()
        return parse_json((gzip.decompress(raw) if path.suffix == ".gz" else raw).decode())
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise Unreadable(first_line(error)) from error


def as_type(value: Any, kind: type[T]) -> T:
    """Return a value of a file converted to a type, every field checked.

    Raises:
        Unreadable: It does not fit the type.
    """
    try:
        converted: T = convert(value, kind)
        return converted
    except Mismatch as error:
        raise Unreadable(str(error)) from error


def readable(values: Mapping[K, Any], kind: type[T], *, strict: bool = False) -> dict[K, T]:
    """Return the values that fit a type, converted to it, under their names.

    Others, which someone edited or a later version wrote, are skipped.

    Raises:
        Unreadable: With `strict`, for the first that does not fit.
    """
    typed = {}
    for name, value in values.items():
        try:
            typed[name] = as_type(value, kind)
        except Unreadable:
            if strict:
                raise
    return typed


def as_object(value: Any) -> dict[str, Any]:
    """Return a JSON object, or an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def ensure_writable(path: Path) -> None:
    """Check before hours of measuring that a file can be written.

    Args:
        path: The file, which need not exist; its folder is created.

    Raises:
        ConfigurationError: It cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise ConfigurationError(f"{path}: is a folder; name a file")
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        Path(name).unlink()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a result file's lock for the length of a `with` block.

    Raises:
        ConfigurationError: Another process holds it, or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=LOCK_SECONDS):
            yield
    except Timeout as error:
        raise ConfigurationError(
            f"{path}: another process has held its lock for {LOCK_SECONDS:.0f} s; "
            f"if none is running, delete {path}.lock"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a crash leaves either the old one or the new one.

    Raises:
        OSError: The folder cannot be written to, or the disk is full; the old file is intact.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp creates a private file; a result file gets the usual permissions.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
