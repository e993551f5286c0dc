"""Find a component's weight files and check that they are complete.

diffusers and transformers use the same names: one file, or several shards with an index of their
tensors; `fp16` marks half precision.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from accel_search.errors import LoadError, first_line
from accel_search.runtime.loading.config_files import read_object

VARIANT = "fp16"
# Exact, since repositories hold further files, e.g. SD1.5's `….non_ema.safetensors`. Older
# versions put the variant after the shard's number.
_WEIGHTS = re.compile(
    rf"(?:diffusion_pytorch_model|model)(?P<half>\.{VARIANT})?"
    rf"(?P<shard>-\d{{5}}-of-\d{{5}}(?P<half_shard>\.{VARIANT})?)?\.safetensors"
)
_SHARD_INDEX = re.compile(
    rf"(?:diffusion_pytorch_model|model)\.safetensors\.index(?P<half>\.{VARIANT})?\.json"
)


def is_half(name: str) -> bool | None:
    """Return whether a weight file has half precision; None for other files."""
    match = _WEIGHTS.fullmatch(name)
    return None if match is None else bool(match["half"] or match["half_shard"])


def choose_variant(names: Iterable[str], half: bool) -> str | None:
    """Return `fp16` if a component's half-precision files are to be read, else None.

    Args:
        names: Names of its files.
        half: Whether half precision is preferred where both exist.
    """
    variants = {is_half(name) for name in names}
    return VARIANT if True in variants and (half or False not in variants) else None


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
        The single file, or else all shards followed by their index.

    Raises:
        LoadError: Its safetensors weights are missing or incomplete.
    """
    names = sorted(names)
    wanted = choose_variant(names, half) is not None
    weights = [name for name in names if is_half(name) is wanted]
    if not weights:
        raise _no_weights(given, where, names)
    whole = [name for name in weights if not _is_shard(name)]
    return whole or weights + _index_of(given, where, names, weights)


def _index_of(given: str, where: object, names: Sequence[str], shards: Sequence[str]) -> list[str]:
    """Return the index of shards, after checking that one complete set of shards exists."""
    missing: dict[int, str] = {}
    for shard in shards:
        number, count = (int(digits) for digits in re.findall(r"\d{5}", shard))
        for position in range(1, count + 1):
            name = shard.replace(f"-{number:05}-of-", f"-{position:05}-of-")
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
    matches = [match for match in map(_SHARD_INDEX.fullmatch, names) if match]
    return [match[0] for match in matches if bool(match["half"]) is half]


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
    """Return the error for a component that lacks one of its files."""
    return LoadError(f"{given}: {where} lacks {what}, so it is incomplete: fetch or save it again")


def check_weights(given: str, folder: Path, half: bool) -> list[Path]:
    """Return a component's weight files after checking that each is complete.

    Args:
        given: Option and value, for messages.
        folder: The component's folder.
        half: As in `choose_variant`.

    Raises:
        LoadError: One is missing or incomplete.
    """
    names = [file.name for file in folder.iterdir() if file.is_file()]
    files = weight_files(given, folder, names, half)
    wanted = {name for name in files if is_half(name) is not None and not _is_shard(name)}
    # Even beside a single file: diffusers prefers shards where both exist.
    for index in _indices(names, half=bool(is_half(files[0]))):
        wanted |= _shards(given, folder / index, names)
    for name in sorted(wanted):
        _check_header(given, folder / name)
    return [folder / name for name in sorted(wanted)]


def _shards(given: str, index: Path, names: Sequence[str]) -> set[str]:
    """Return the files of an index, after checking that `names` has them all."""
    content = read_object(given, index)
    tensors = content.get("weight_map")
    if not isinstance(tensors, dict) or not isinstance(content.get("metadata"), dict):
        raise LoadError(
            f"{given}: {index} lacks weight_map or metadata, so it is no index of shards: fetch or "
            "save it again"
        )
    shards = {str(file) for file in tensors.values()}
    for shard in sorted(shards):
        # The libraries would open any file, pickles and other folders' included.
        if not _is_shard(shard):
            raise LoadError(
                f"{given}: {index} names the file {shard!r}, which is no .safetensors shard of a "
                "component: fetch or save it again"
            )
        if shard not in names:
            raise lacks(given, index.parent, shard)
    return shards


def _check_header(given: str, file: Path) -> None:
    """Refuse a truncated file by the size in its header, before the libraries read any file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise LoadError(
            f"{given}: {file} is truncated or corrupt ({first_line(error, 120)}): remove it, and "
            "fetch or save it again"
        ) from error
