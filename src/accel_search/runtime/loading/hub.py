"""Fetch what is needed of a hub repository, and say in one line what stands in the way.

The files are chosen from the repository's own list before anything large is fetched, so that
neither pickles nor code are, and that too small a disk shows at once. Tokens come from the
environment (`HF_TOKEN`) and are read by the hub's client alone.
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

from accel_search.errors import LoadError, first_line

T = TypeVar("T")

SPARE_BYTES = 2**28
"""Disk space that a fetch leaves free, for logs and the trials' database."""
TIMEOUT_SECONDS = 30.0
"""For the list of a repository's files; a file's own transfer is timed by the hub's client."""
WRAPPERS = (
    "RuntimeError",
    "OSError",
    "FileNotFoundError",
    "LocalEntryNotFoundError",
    "DatasetGenerationError",
)
"""Errors by which the hub's client, open_clip, transformers and datasets hide what happened, by
name: not all of these libraries are needed here."""
NO_SPACE = "Not enough disk space"
"""How datasets begins an error that has no number."""


@dataclass(frozen=True)
class Repository:
    """A repository of the hub and what is wanted of it."""

    given: str
    """Option and value, for messages, e.g. `--pipe SDXL`."""
    hub_id: str
    """`owner/name`."""
    revision: str | None
    """Branch, tag or commit; None is the main branch."""
    entry: str
    """File that says what else is needed, e.g. `model_index.json`."""
    kind: str
    """What it should hold, for messages, e.g. `a diffusers pipeline`."""

    def __str__(self) -> str:
        at = f" at revision {self.revision}" if self.revision else ""
        return f"{self.given}: the hub repository {self.hub_id}{at}"


class Obstacle(NamedTuple):
    """Why a repository cannot be fetched, and what to do about it."""

    reason: str
    remedy: str
    is_final: bool = False
    """Whether a copy that was fetched before does not answer what was asked."""


def fetch(
    repository: Repository,
    choose: Callable[[Path, Sequence[str]], Sequence[str]],
    check: Callable[[Path], T],
    log: logging.Logger,
) -> T:
    """Have what is needed of a repository in the local cache, and return what `check` makes of it.

    Where the hub cannot be asked, or no longer gives the repository out, a complete copy that was
    fetched before is taken, and the log says why.

    Args:
        repository: What is wanted.
        choose: Gets the folder that `entry` lies in and all files of the repository, and returns
            those that are needed. Raises LoadError for what must not be loaded.
        check: Gets the complete folder, whose name is the commit.
        log: Is told what is fetched, and why a copy is taken.

    Raises:
        LoadError: It cannot be had.
    """
    try:
        return check(_download(repository, choose, log))
    except LoadError:
        raise
    except Exception as error:  # Network and disk fail in many classes; all mean: not loaded.
        obstacle = explain(error, repository.hub_id)
        copy = None if obstacle.is_final else _cached(repository)
        if copy is None:
            raise LoadError(f"{repository} {obstacle.reason}: {obstacle.remedy}") from error
        try:
            found = check(copy)
        except LoadError as incomplete:
            raise LoadError(
                f"{repository} {obstacle.reason}, and the copy in {copy} is not complete: "
                f"{obstacle.remedy}; what is there is kept"
            ) from incomplete
        log.log(
            logging.INFO if _is_offline() else logging.WARNING,
            "%s %s: taking the copy that was fetched before, commit %s",
            repository,
            obstacle.reason,
            copy.name,
        )
        return found


def _download(
    repository: Repository,
    choose: Callable[[Path, Sequence[str]], Sequence[str]],
    log: logging.Logger,
) -> Path:
    """Return the folder of the snapshot, with all that is needed in it."""
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
    # By the revision's name, not its commit: so the cache knows which commit the name stands for.
    entry = Path(hf_hub_download(hub_id, repository.entry, revision=repository.revision))
    commit = entry.parent.name
    if commit != info.sha:
        info = list_files(commit)  # Someone pushed in between.
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    needed = choose(entry.parent, list(sizes))
    stale = {name for name in needed if _is_stale(entry.parent / name, sizes[name])}
    missing = {name: sizes[name] for name in needed if not (entry.parent / name).exists()}
    missing = {name: size for name, size in missing.items() if not _has_blob(entry, info, name)}
    missing |= {name: sizes[name] for name in stale}
    if missing:
        _check_disk(repository, missing)
        log.info(
            "%s: fetching %d files, %.2f GB", repository, len(missing), sum(missing.values()) / 1e9
        )
    # One after another, in this thread: of the pool that the client's own way to fetch a whole
    # repository starts, Ctrl-C waits for every file that is begun, which takes minutes.
    for name in needed:
        hf_hub_download(hub_id, name, revision=commit, force_download=name in stale)
    return entry.parent


def _is_stale(file: Path, size: int) -> bool:
    """Tell whether a file in the cache is not what the hub has: a copy of it was broken off."""
    return file.exists() and file.stat().st_size != size


def _has_blob(entry: Path, info: Any, name: str) -> bool:
    """Tell whether a file's content is in the cache already, from another commit."""
    file = next(each for each in info.siblings if each.rfilename == name)
    digest = file.lfs.sha256 if file.lfs else file.blob_id
    return digest is not None and (entry.parents[2] / "blobs" / digest).exists()


def _check_disk(repository: Repository, missing: Mapping[str, int]) -> None:
    """Raise LoadError if the files do not fit the cache's disk; nothing has been fetched yet."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    there = next(each for each in (folder, *folder.parents) if each.exists())
    needed, free = sum(missing.values()), shutil.disk_usage(there).free
    if needed + SPARE_BYTES > free:
        raise LoadError(
            f"{repository} needs {needed / 1e9:.2f} GB more in {folder}, where {free / 1e9:.2f} GB "
            "are free: free disk space, or set HF_HOME to a folder on a larger disk"
        )


def _cached(repository: Repository) -> Path | None:
    """Return the folder of what was fetched of a repository before, complete or not."""
    from huggingface_hub import errors, hf_hub_download

    try:
        entry = hf_hub_download(
            repository.hub_id,
            repository.entry,
            revision=repository.revision,
            local_files_only=True,
        )
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return Path(entry).parent


def cached_folder(hub_id: str) -> Path:
    """Return the folder of the cache that a repository of a model is kept in, there or not."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.is_offline_mode()


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and one after another what it hides; the last says what happened."""
    hidden: BaseException | None = error
    while hidden is not None:
        yield hidden
        if type(hidden).__name__ not in WRAPPERS or getattr(hidden, "errno", None) is not None:
            return
        # Also what is left out of a traceback: `from None` says no more than the wrapper's name.
        hidden = hidden.__cause__ or hidden.__context__


def is_of_the_hub(error: BaseException) -> bool:
    """Tell whether it was the hub, or the way there, that an error arose on."""
    from huggingface_hub import errors

    kinds = (errors.HfHubHTTPError, errors.EntryNotFoundError, errors.OfflineModeIsEnabled)
    return any(
        # By name: the hub's client has had more than one version of its HTTP library.
        isinstance(each, kinds) or type(each).__module__.startswith("httpx")
        for each in causes(error)
    )


def explain(error: BaseException, hub_id: str, instead: str = "give a folder") -> Obstacle:
    """Return what an error of the hub's client, the network or the disk means to the user.

    Args:
        error: As it came, or as another library wrapped it.
        hub_id: What was asked for, as in the address of its page.
        instead: What else the user may do.
    """
    from huggingface_hub import constants, errors

    may_be_network = is_of_the_hub(error) or any(isinstance(e, OSError) for e in causes(error))
    *_, error = causes(error)
    page = f"{constants.ENDPOINT}/{hub_id}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    network = "check the network and " if may_be_network else ""
    # The more special class first: a gated repository's error is also that of a missing one.
    known: list[tuple[bool, Obstacle]] = [
        (
            # Of the other two, those who raise them leave out that they did not even ask.
            isinstance(error, errors.OfflineModeIsEnabled)
            or (_is_offline() and isinstance(error, ConnectionError | errors.EntryNotFoundError)),
            Obstacle(
                "cannot be fetched in offline mode",
                f"unset HF_HUB_OFFLINE to fetch it, or {instead}",
            ),
        ),
        (
            isinstance(error, errors.GatedRepoError),
            Obstacle(
                "is gated",
                f"accept its licence at {page} and set HF_TOKEN to a token of that account",
            ),
        ),
        (
            isinstance(error, errors.DisabledRepoError),
            Obstacle("was disabled by the hub", f"give another id, or {instead}"),
        ),
        (
            isinstance(error, errors.RevisionNotFoundError),
            Obstacle(
                "has no such revision", f"take a branch, tag or commit of {page}", is_final=True
            ),
        ),
        (
            isinstance(error, errors.RepositoryNotFoundError)
            or type(error).__name__ == "DatasetNotFoundError"  # Of datasets, for the same.
            or status in (404, 410),
            Obstacle(
                "does not exist, was removed or is private",
                "check the spelling, or set HF_TOKEN to a token that may read it",
            ),
        ),
        (
            isinstance(error, errors.HFValidationError),
            Obstacle("cannot exist", "a hub id is owner/name", is_final=True),
        ),
        (
            status in (401, 403),
            Obstacle(
                f"may not be read (HTTP {status})",
                "set HF_TOKEN to a valid token with access to it, or unset it",
            ),
        ),
        (
            status == HTTPStatus.TOO_MANY_REQUESTS,
            Obstacle(
                "cannot be fetched now, the hub was asked too often (HTTP 429)",
                "wait some minutes, or set HF_TOKEN to be allowed more",
            ),
        ),
        (
            isinstance(error, UnicodeEncodeError),  # Of a header: no other text is given to it.
            Obstacle("cannot be asked for", "HF_TOKEN holds what no token does: set it again"),
        ),
        (
            status is not None and status >= 500,
            Obstacle(f"cannot be fetched, the hub fails (HTTP {status})", "try again later"),
        ),
        (
            isinstance(error, OSError)
            and (error.errno in (errno.ENOSPC, errno.EDQUOT) or NO_SPACE in str(error)),
            Obstacle(
                f"does not fit the disk of {constants.HF_HUB_CACHE}",
                "free disk space, or set HF_HOME to a folder on a larger disk",
            ),
        ),
        (
            isinstance(error, OSError) and error.filename is not None,  # No network has a name.
            Obstacle(
                f"cannot be written to the cache {constants.HF_HUB_CACHE} "
                f"({first_line(error, 160)})",
                "mend that, or set HF_HOME to a folder that you may write to",
            ),
        ),
    ]
    other = Obstacle(
        f"could not be fetched ({first_line(error, 160)})",
        f"{network}run the same command again, or {instead}",
    )
    return next((obstacle for applies, obstacle in known if applies), other)
