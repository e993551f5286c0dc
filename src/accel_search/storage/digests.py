"""Digests of weight files, kept by path, size and times: gigabytes are read once.

They are kept in `digests.json` of the folder `ACCEL_SEARCH_CACHE`, by default
`~/.cache/accel-search`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from accel_search.errors import ConfigurationError
from accel_search.storage.json_files import Unreadable, as_object, load_json, update_json

CHUNK = 2**26
"""Bytes that one thread reads and digests at a time."""
THREADS = 8
"""Most threads that read one file."""
SETTLED_NS = 2 * 10**9
"""Age at which a file is remembered: one that changes again within a clock tick looks the same."""
DIGITS = 16
"""Hex digits of a digest of several files."""

_logger = logging.getLogger(__name__)


def digest_of(
    files: Sequence[Path], *, only_known: bool = False, by_folder: bool = True
) -> str | None:
    """Return the digest of a pipeline's files, the same wherever they lie.

    Of a configuration only what is loaded counts, not who saved it.

    Args:
        files: The files, each in the folder of its component.
        only_known: Read weights only where a digest of an earlier content is remembered.
        by_folder: Count the name of each file's folder, which says what component it is of.

    Returns:
        The first hex digits of a SHA-256; None with `only_known` for files that were never read.

    Raises:
        OSError: A file cannot be read.
    """
    known = _known()
    fresh: dict[str, Any] = {}
    parts = []
    for file in sorted(files, key=lambda each: (each.parent.name, each.name)):
        if file.name.endswith("config.json"):
            digest = _of_configuration(file)
        else:
            path, state = str(file.resolve()), _state(file)
            entry = known.get(path)
            if entry is None and only_known:
                return None
            if isinstance(entry, list) and entry[:-1] == state:
                digest = str(entry[-1])
            else:
                digest = _of_content(file)
                fresh[path] = [*state, digest]
        parts.append([file.parent.name if by_folder else "", digest])
    _remember(fresh)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:DIGITS]


def _of_configuration(file: Path) -> str:
    """Return the digest of a JSON object but for who wrote it, e.g. `_diffusers_version`."""
    content = json.loads(file.read_text(encoding="utf-8"))
    options = {name: value for name, value in content.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


def _of_content(file: Path) -> str:
    """Return the digest of a file: of its chunks' digests, so that several threads read it."""
    starts = range(0, max(file.stat().st_size, 1), CHUNK)
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        chunks = list(pool.map(partial(_of_chunk, file), starts))
    return hashlib.sha256(b"".join(chunks)).hexdigest()


def _of_chunk(file: Path, start: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(start)
        return hashlib.sha256(opened.read(CHUNK)).digest()


def _state(file: Path) -> list[int]:
    """Return what tells that a file was changed, replaced or copied over: `touch` sets one time."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _kept() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = os.environ.get("ACCEL_SEARCH_CACHE") or f"{caches}/accel-search"
    return Path(cache).expanduser() / "digests.json"


def _known() -> dict[str, Any]:
    try:
        return as_object(load_json(_kept()))
    except Unreadable:
        return {}


def _remember(fresh: dict[str, Any]) -> None:
    """Keep digests for later processes, but of files that may change again unseen."""
    now = time.time_ns()
    settled = {path: entry for path, entry in fresh.items() if now - entry[2] > SETTLED_NS}
    if not settled:
        return

    def change(content: dict[str, Any]) -> None:
        gone = [path for path in content if not Path(path).exists()]
        for path in gone:
            del content[path]
        content.update(settled)

    try:
        update_json(_kept(), change)
    except ConfigurationError as error:  # They are read again next time.
        _logger.debug("digests are not kept: %s", error)
