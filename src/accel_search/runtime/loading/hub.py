"""Fetch the needed files of a hub repository, or explain in one line why that fails.

Files are chosen from the repository's list before anything large is fetched, so that pickles and
code are left out and too small a disk shows at once. Only the hub's client reads tokens, from the
environment (`HF_TOKEN`).
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import constants, errors

from accel_search.errors import LoadError, first_line

T = TypeVar("T")

SPARE_BYTES = 2**28
"""Disk space that a fetch leaves free, for logs and the trials' database."""
TIMEOUT_SECONDS = 30.0
"""For the list of a repository's files; the hub's client times transfers itself."""
WRAPPERS = (
    "RuntimeError",
    "OSError",
    "FileNotFoundError",
    "LocalEntryNotFoundError",
    "DatasetGenerationError",
)
"""Names of errors in which the hub's client, open_clip, transformers and datasets wrap others."""
NO_SPACE = "Not enough disk space"
"""Beginning of an error of datasets without an errno."""


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, and what is needed of it."""

    given: str
    """Option and value, for messages, e.g. `--pipe SDXL`."""
    hub_id: str
    """`owner/name`."""
    revision: str | None
    """Branch, tag or commit; None is the main branch."""
    entry: str
    """File that lists what else is needed, e.g. `model_index.json`."""
    kind: str
    """Expected content, for messages, e.g. `a diffusers pipeline`."""

    def snapshot_of(self, entry: str) -> Path:
        """Return the folder of the whole repository, by the path of its entry."""
        return Path(entry).parents[self.entry.count("/")]

    def __str__(self) -> str:
        at = f" at revision {self.revision}" if self.revision else ""
        return f"{self.given}: the hub repository {self.hub_id}{at}"


class Obstacle(NamedTuple):
    """Why a repository cannot be fetched, and what to do about it."""

    reason: str
    remedy: str
    is_final: bool = False
    """Whether a cached copy cannot help."""


MISSING = Obstacle(
    "does not exist, was removed or is private",
    "check the spelling, or set HF_TOKEN to a token that may read it",
)


def fetch(
    repository: Repository,
    choose: Callable[[Path, Sequence[str]], Sequence[str]],
    check: Callable[[Path], T],
    log: logging.Logger,
) -> T:
    """Fetch what is needed of a repository into the local cache, and return the result of `check`.

    Where the hub fails or no longer has the repository, use a complete cached copy and log why.

    Args:
        repository: What to fetch.
        choose: Gets the folder of `entry` and all files of the repository, and returns those that
            are needed. Raises LoadError for what must not be loaded.
        check: Gets the complete folder, whose name is the commit.
        log: Gets what is fetched, and why a copy is used.

    Raises:
        LoadError: It cannot be fetched.
    """
    try:
        return check(_download(repository, choose, log))
    except LoadError:
        raise
    except Exception as error:  # Network and disk raise many classes.
        obstacle = explain(error, repository.hub_id)
        copy = None if obstacle.is_final else _cached(repository)
        if copy is None:
            raise LoadError(f"{repository} {obstacle.reason}: {obstacle.remedy}") from error
        try:
            result = check(copy)
        except LoadError as incomplete:
            raise LoadError(
                f"{repository} {obstacle.reason}, and the copy in {copy} is incomplete: "
                f"{obstacle.remedy}; its files are kept"
            ) from incomplete
        log.log(
            logging.INFO if _is_offline() else logging.WARNING,
            "%s %s: using the copy that was fetched before, commit %s",
            repository,
            obstacle.reason,
            copy.name,
        )
        return result


def _download(
    repository: Repository,
    choose: Callable[[Path, Sequence[str]], Sequence[str]],
    log: logging.Logger,
) -> Path:
    """Fetch what is needed and return the folder of the snapshot."""
    from huggingface_hub import HfApi, hf_hub_download

    hub_id, api = repository.hub_id, HfApi()

    def list_files(revision: str | None) -> Any:
        return api.model_info(
            hub_id, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )

    info = list_files(repository.revision)
    if repository.entry not in {file.rfilename for file in info.siblings}:
        raise LoadError(
            f"{repository} holds no {repository.entry}, so it is not {repository.kind}: give one "
            "in diffusers' format"
        )
    # By the revision's name, so that the cache records which commit it stands for.
    entry = hf_hub_download(hub_id, repository.entry, revision=repository.revision)
    snapshot = repository.snapshot_of(entry)
    commit = snapshot.name
    if commit != info.sha:
        info = list_files(commit)  # Someone pushed in between.
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    needed = choose(snapshot, list(sizes))
    stale = {name for name in needed if _is_stale(snapshot / name, sizes[name])}
    missing = {name: sizes[name] for name in needed if not (snapshot / name).exists()}
    missing = {name: size for name, size in missing.items() if not _has_blob(snapshot, info, name)}
    missing |= {name: sizes[name] for name in stale}
    if missing:
        _check_disk(repository, missing)
        log.info(
            "%s: fetching %d files, %.2f GB", repository, len(missing), sum(missing.values()) / 1e9
        )
    # One after another in this thread: the client's `snapshot_download` starts a pool, and Ctrl-C
    # would wait minutes for its files.
    for name in needed:
        hf_hub_download(hub_id, name, revision=commit, force_download=name in stale)
    return snapshot


def _is_stale(file: Path, size: int) -> bool:
    """Return whether a file in the cache differs from the hub's, as after an aborted copy."""
    return file.exists() and file.stat().st_size != size


def _has_blob(snapshot: Path, info: Any, name: str) -> bool:
    """Return whether a file's content is cached already, from another commit."""
    file = next(sibling for sibling in info.siblings if sibling.rfilename == name)
    digest = file.lfs.sha256 if file.lfs else file.blob_id
    return digest is not None and (snapshot.parents[1] / "blobs" / digest).exists()


def _check_disk(repository: Repository, missing: Mapping[str, int]) -> None:
    """Raise LoadError if the files do not fit the cache's disk; nothing has been fetched yet."""
    folder = Path(constants.HF_HUB_CACHE)
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    needed, free = sum(missing.values()), shutil.disk_usage(existing).free
    if needed + SPARE_BYTES > free:
        raise LoadError(
            f"{repository} needs {needed / 1e9:.2f} GB more in {folder}, where {free / 1e9:.2f} GB "
            "are free: free disk space, or set HF_HOME to a folder on a larger disk"
        )


def _cached(repository: Repository) -> Path | None:
    """Return the cached folder of a repository, complete or not."""
    from huggingface_hub import hf_hub_download

    try:
        entry = hf_hub_download(
            repository.hub_id,
            repository.entry,
            revision=repository.revision,
            local_files_only=True,
        )
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return repository.snapshot_of(entry)


def cached_folder(hub_id: str) -> Path:
    """Return the path of a model's repository in the cache."""
    return Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"


def _is_offline() -> bool:
    return bool(constants.HF_HUB_OFFLINE)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it wraps; the last one is the actual cause."""
    hidden: BaseException | None = error
    while hidden is not None:
        yield hidden
        if type(hidden).__name__ not in WRAPPERS or getattr(hidden, "errno", None) is not None:
            return
        # `__context__` too, since `raise … from None` hides it from tracebacks only.
        hidden = hidden.__cause__ or hidden.__context__


def is_of_the_hub(error: BaseException) -> bool:
    """Return whether an error came from the hub or the network."""
    kinds = (errors.HfHubHTTPError, errors.EntryNotFoundError, errors.OfflineModeIsEnabled)
    return any(
        # By name: the HTTP library depends on the version of the hub's client.
        isinstance(cause, kinds) or type(cause).__module__.startswith(("httpx", "requests"))
        for cause in causes(error)
    )


def explain(error: BaseException, hub_id: str, instead: str = "give a folder") -> Obstacle:
    """Return what an error of the hub's client, the network or the disk means to the user.

    Args:
        error: The error itself, or another library's error that wraps it.
        hub_id: What was requested, as in the address of its page.
        instead: What else the user may do.
    """
    may_be_network = is_of_the_hub(error) or any(isinstance(e, OSError) for e in causes(error))
    *_, error = causes(error)
    page = f"{constants.ENDPOINT}/{hub_id}"
    obstacle = _of_class(error, page, instead) or _of_status(error) or _of_disk(error)
    if obstacle is not None:
        return obstacle
    network = "check the network and " if may_be_network else ""
    return Obstacle(
        f"could not be fetched ({first_line(error, 160)})",
        f"{network}run the same command again, or {instead}",
    )


def _of_class(error: BaseException, page: str, instead: str) -> Obstacle | None:
    """Return what the class of an error means, the more special classes first."""
    offline = Obstacle(
        "cannot be fetched in offline mode", f"unset HF_HUB_OFFLINE to fetch it, or {instead}"
    )
    # Where the hub's client did not even ask, these two do not say so.
    if _is_offline() and isinstance(error, ConnectionError | errors.EntryNotFoundError):
        return offline
    if type(error).__name__ == "DatasetNotFoundError":  # Of datasets, which may not be loaded.
        return MISSING
    gated = f"accept its licence at {page} and set HF_TOKEN to a token of that account"
    revision = f"take a branch, tag or commit of {page}"
    renew = "HF_TOKEN holds characters that no token has: set it again"
    cases: dict[type[BaseException], Obstacle] = {
        errors.OfflineModeIsEnabled: offline,
        errors.GatedRepoError: Obstacle("is gated", gated),
        errors.DisabledRepoError: Obstacle(
            "was disabled by the hub", f"give another id, or {instead}"
        ),
        errors.RevisionNotFoundError: Obstacle("has no such revision", revision, is_final=True),
        errors.RepositoryNotFoundError: MISSING,
        errors.HFValidationError: Obstacle("cannot exist", "a hub id is owner/name", is_final=True),
        UnicodeEncodeError: Obstacle("cannot be requested", renew),  # Of the header with it.
    }
    return next((case for cls, case in cases.items() if isinstance(error, cls)), None)


def _of_status(error: BaseException) -> Obstacle | None:
    """Return what the HTTP status of an error means; None without one."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return MISSING
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        remedy = "set HF_TOKEN to a valid token with access to it, or unset it"
        return Obstacle(f"may not be read (HTTP {status})", remedy)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Obstacle(
            "cannot be fetched now, the hub was asked too often (HTTP 429)",
            "wait some minutes, or set HF_TOKEN to be allowed more",
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Obstacle(f"cannot be fetched, the hub fails (HTTP {status})", "try again later")
    return None


def _of_disk(error: BaseException) -> Obstacle | None:
    """Return what an error of the disk means; None for others."""
    if not isinstance(error, OSError):
        return None
    cache = constants.HF_HUB_CACHE
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or NO_SPACE in str(error):
        remedy = "free disk space, or set HF_HOME to a folder on a larger disk"
        return Obstacle(f"does not fit the disk of {cache}", remedy)
    if error.filename is not None:  # Network errors have none.
        return Obstacle(
            f"cannot be written to the cache {cache} ({first_line(error, 160)})",
            "fix that, or set HF_HOME to a folder that you may write to",
        )
    return None
