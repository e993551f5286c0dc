"""The files that a component's weights lie in: their names, and whether they are all there.

diffusers and transformers name them alike: one file or several, the half-precision ones with
`fp16` in their name, several of them with an index of which tensor is in which.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from accel_search.errors import LoadError, first_line
from accel_search.runtime.loading.config_files import read_object

VARIANT = "fp16"
# Exact, since repositories hold others beside them, e.g. SD1.5's `….non_ema.safetensors`. Older
# versions put the variant behind the number of a shard.
_WEIGHTS = re.compile(
    rf"(?:diffusion_pytorch_model|model)(?P<half>\.{VARIANT})?"
    rf"(?P<shard>-\d{{5}}-of-\d{{5}}(?P<half_shard>\.{VARIANT})?)?\.safetensors"
)
_SHARD_INDEX = re.compile(
    rf"(?:diffusion_pytorch_model|model)\.safetensors\.index(?P<half>\.{VARIANT})?\.json"
)


def is_half(name: str) -> bool | None:
    """Tell whether a file has half-precision weights; None where it has none that are read."""
    match = _WEIGHTS.fullmatch(name)
    return None if match is None else bool(match["half"] or match["half_shard"])


def choose_variant(names: Iterable[str], half: bool) -> str | None:
    """Return `fp16` if those of a component's files are to be read, None for the plain ones.

    Args:
        names: Of its files.
        half: Whether half precision is preferred where both are there.
    """
    found = {is_half(name) for name in names}
    return VARIANT if True in found and (half or False not in found) else None


def variant_of(folder: Path, half: bool) -> str | None:
    """Return the variant of a component's folder, as `choose_variant` does."""
    return choose_variant((file.name for file in folder.iterdir()), half)


def weight_files(given: str, where: object, names: Iterable[str], half: bool) -> list[str]:
    """Return the weights among a component's files.

    Args:
        given: Option and value, for messages.
        where: Component or folder, for messages.
        names: All files of the component.
        half: As in `choose_variant`.

    Returns:
        The one file; or, where there is none, all shards, and behind them their index.

    Raises:
        LoadError: It has no safetensors weights, or not all of them.
    """
    names = sorted(names)
    wanted = choose_variant(names, half) is not None
    found = [name for name in names if is_half(name) is wanted]
    if not found:
        raise _no_weights(given, where, names)
    whole = [name for name in found if not _is_shard(name)]
    return whole or found + _index_of(given, where, names, found)


def _index_of(given: str, where: object, names: Sequence[str], shards: Sequence[str]) -> list[str]:
    """Return the index of shards, none of which is missing by its own number.

    A folder may hold shards of two sizes, one of which was left behind.
    """
    missing: dict[int, str] = {}
    for shard in shards:
        number, count = (int(each) for each in re.findall(r"\d{5}", shard))
        for other in range(1, count + 1):
            name = shard.replace(f"-{number:05}-of-", f"-{other:05}-of-")
            if name not in shards:
                missing[count] = name
    counts = {int(re.findall(r"\d{5}", shard)[1]) for shard in shards}
    if not counts - missing.keys():
        raise lacks(given, where, min(missing.values()))
    indices = _indices(names, half=bool(is_half(shards[0])))
    if not indices:
        raise lacks(given, where, "its index of shards")
    return indices


def _is_shard(name: str) -> bool:
    match = _WEIGHTS.fullmatch(name)
    return match is not None and match["shard"] is not None


def _indices(names: Iterable[str], half: bool) -> list[str]:
    found = [match for match in map(_SHARD_INDEX.fullmatch, names) if match]
    return [match[0] for match in found if bool(match["half"]) is half]


def _no_weights(given: str, where: object, names: Iterable[str]) -> LoadError:
    pickled = sorted(name for name in names if name.endswith((".bin", ".ckpt", ".pt")))
    return LoadError(
        f"{given}: {where} has only pickled weights ({pickled[0]}), which can run code: convert "
        "them with save_pretrained(safe_serialization=True)"
        if pickled
        else f"{given}: {where} holds no .safetensors weights, so it is incomplete: fetch or save "
        "it again"
    )


def lacks(given: str, where: object, what: str) -> LoadError:
    """Return the error that says that a component is without one of its files."""
    return LoadError(f"{given}: {where} lacks {what}, so it is incomplete: fetch or save it again")


def check_weights(given: str, folder: Path, half: bool) -> list[Path]:
    """Return the files of a component's weights, each of which is there and whole.

    Args:
        given: Option and value, for messages.
        folder: The component's.
        half: As in `choose_variant`.

    Raises:
        LoadError: One is not.
    """
    names = [file.name for file in folder.iterdir() if file.is_file()]
    found = weight_files(given, folder, names, half)
    wanted = {name for name in found if is_half(name) is not None and not _is_shard(name)}
    # Beside a single file too: diffusers reads the shards where both are there.
    for index in _indices(names, half=bool(is_half(found[0]))):
        wanted |= _shards(given, folder / index, names)
    for name in sorted(wanted):
        _check_header(given, folder / name)
    return [folder / name for name in sorted(wanted)]


def _shards(given: str, index: Path, names: Sequence[str]) -> set[str]:
    """Return the files that an index names, all of which are among `names`."""
    content = read_object(given, index)
    tensors = content.get("weight_map")
    if not isinstance(tensors, dict) or not isinstance(content.get("metadata"), dict):
        raise LoadError(
            f"{given}: {index} holds no weight_map and metadata, so it is no index of shards: "
            "fetch or save it again"
        )
    shards = {str(each) for each in tensors.values()}
    for shard in sorted(shards):
        # No pickle, and none of another folder: the libraries open whatever they are told to.
        if not _is_shard(shard):
            raise LoadError(
                f"{given}: {index} names the file {shard!r}, which is none of a component's "
                ".safetensors shards: fetch or save it again"
            )
        if shard not in names:
            raise lacks(given, index.parent, shard)
    return shards


def _check_header(given: str, file: Path) -> None:
    """Refuse a file that is cut off, as a copy that was broken off is: its header tells its size.

    The libraries say so too, but neither which file it is nor before they have read others.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise LoadError(
            f"{given}: {file} is cut off or damaged ({first_line(error, 120)}): remove it, and "
            "fetch or save it again"
        ) from error
