"""Choose and seed the prompts to score on, the same on every machine. Imports no torch."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accel_search.core.paths import local_path
from accel_search.core.validation import MOST
from accel_search.core.workload import Prompt, PromptSet
from accel_search.errors import ConfigurationError, LoadError, first_line
from accel_search.runtime.demo import demo_part
from accel_search.runtime.loading.hub import explain
from accel_search.runtime.quiet import quiet_hub
from accel_search.settings import Settings

COCO_DATASET = "phiyodr/coco2017"
COCO_SPLIT = "validation"
COLUMNS = ("prompt", "caption", "captions", "text", "Prompt")
"""Columns that may hold a table's prompts, in this order; then the same in any case."""
SHOWN = 40
"""Most characters of a value in a message."""
SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet")


def load_prompts(settings: Settings) -> PromptSet:
    """Return the prompts to search on and disjoint ones to validate on.

    Raises:
        LoadError: The source cannot be read.
        ConfigurationError: It holds too few distinct prompts.
    """
    source = settings.prompts
    if source == "auto":
        source = "builtin" if settings.pipe == "demo" else "coco"
    held_out = settings.held_out_samples
    return choose(
        _texts(source),
        source,
        settings.seed,
        settings.num_samples,
        settings.num_samples if held_out is None else held_out,
    )


def choose(
    texts: Iterable[str], source: str, seed: int, num_samples: int, held_out_samples: int
) -> PromptSet:
    """Choose and seed prompts by `seed` and their text alone.

    Distinct prompts are sorted by a hash; the search takes them from the front and the held-out
    part from the back, the further ones before it. So the order and the other content of the source
    do not affect a prompt's noise, a larger part contains the smaller, and the two parts grow
    independently.

    Args:
        texts: Candidates. Blank ones and repetitions are dropped, after composition (NFC) as in
            tokenizers.
        source: Name for the record and for messages.
        seed: Determines the choice and the noise.
        num_samples: Prompts to search on.
        held_out_samples: Prompts to validate on; up to `MOST` times as many are kept at hand.

    Raises:
        ConfigurationError: There are too few distinct prompts.
    """
    distinct = {unicodedata.normalize("NFC", text).strip() for text in texts} - {""}
    prompts = [Prompt(text, noise_seed(seed, text)) for text in distinct]
    return cut(prompts, source, seed, num_samples, held_out_samples)


def cut(
    distinct: Iterable[Prompt], source: str, seed: int, num_samples: int, held_out_samples: int
) -> PromptSet:
    """Cut prompts into the parts of a search, in an order of their hashes.

    The arguments and errors are those of `choose`.
    """
    prompts = sorted(
        distinct, key=lambda prompt: (_digest("choice", seed, _content(prompt)), prompt.seed)
    )
    if len(prompts) < num_samples + held_out_samples:
        raise ConfigurationError(
            f"--prompts {source} holds {len(prompts)} distinct prompts, but --num_samples "
            f"{num_samples} and {held_out_samples} held-out ones need "
            f"{num_samples + held_out_samples}: lower --num_samples or --held_out_samples, or "
            "give more prompts"
        )
    spare = min(MOST * held_out_samples, len(prompts) - num_samples)
    held_out = len(prompts) - held_out_samples
    return PromptSet(
        source,
        tuple(prompts[:num_samples]),
        tuple(prompts[held_out:]),
        tuple(prompts[len(prompts) - spare : held_out]),
    )


def _content(prompt: Prompt) -> str:
    return prompt.text + (json.dumps(prompt.inputs) if prompt.inputs else "")


def _digest(purpose: str, seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{purpose}\0{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()


def noise_seed(seed: int, text: str) -> int:
    """Return the seed of a prompt's noise."""
    # 48 bits are exact in JSON readers that use doubles.
    return int.from_bytes(_digest("noise", seed, text)[:6], "big")


def _texts(source: str) -> list[str]:
    if source == "builtin":
        return _lines(demo_part("prompts.txt"))
    if source == "coco":
        return _coco()
    path = local_path(source)
    if not path.is_file():
        raise LoadError(
            f"--prompts {source}: no such file; give builtin, coco or a file ending in "
            f"{', '.join(SUFFIXES)}"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise LoadError(f"--prompts {source}: expected a file ending in {', '.join(SUFFIXES)}")
    try:
        texts = _from_file(path)
        for text in texts:
            # JSON can hold lone surrogates, which tokenizers and files reject.
            text.encode()
        return texts
    except UnicodeDecodeError as error:
        raise LoadError(
            f"--prompts {source}: not UTF-8 (byte {error.object[error.start]:#04x} at "
            f"position {error.start}): save it as UTF-8"
        ) from error
    # ValueError: JSON, Unicode and Arrow errors; RecursionError: deeply nested JSON.
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise LoadError(
            f"--prompts {source}: cannot be read as {path.suffix[1:]}: {first_line(error)}"
        ) from error


def _coco() -> list[str]:
    """Return the first caption of each COCO image of the validation split."""
    try:
        import datasets

        # The dataset has captions and metadata, but no images.
        with quiet_hub():
            rows = list(datasets.load_dataset(COCO_DATASET, split=COCO_SPLIT)["captions"])
    except Exception as error:  # The library raises its own, huggingface_hub's and httpx's errors.
        page, instead = f"datasets/{COCO_DATASET}", "use --prompts builtin or a file"
        obstacle = explain(error, page, instead)
        raise LoadError(
            f"--prompts coco: the dataset {COCO_DATASET} {obstacle.reason}: {obstacle.remedy}"
        ) from error
    return _prompts("coco", rows)


def _from_file(path: Path) -> list[str]:
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return _lines(path)
    if suffix == ".parquet":
        import pyarrow.parquet  # type: ignore[import-untyped]

        column = _column(path, pyarrow.parquet.read_schema(path).names)
        table = pyarrow.parquet.read_table(path, columns=[column])
        return _prompts(path, table.column(column).to_pylist())
    text = path.read_text(encoding="utf-8-sig")
    if suffix == ".csv":
        return _from_table(path, _table(text))
    if suffix == ".tsv":
        # As in PartiPrompts: quotation marks are part of the prompt.
        return _from_table(path, _table(text, delimiter="\t", quoting=csv.QUOTE_NONE))
    if suffix == ".jsonl":
        return _from_rows(path, [json.loads(line) for line in text.split("\n") if line.strip()])
    return _from_rows(path, json.loads(text))


def _lines(path: Path) -> list[str]:
    # Not `splitlines`, which also splits at characters such as U+2028 within a prompt.
    return path.read_text(encoding="utf-8-sig").split("\n")


def _table(text: str, **dialect: Any) -> csv.DictReader[str]:
    """Return the rows of a table, whose header is the first row that is not blank."""
    lines = io.StringIO(text)
    rows = csv.reader(lines, **dialect)
    head = next((row for row in rows if any(cell.strip() for cell in row)), [])
    return csv.DictReader(lines, head, **dialect)


def _from_table(path: Path, reader: csv.DictReader[str]) -> list[str]:
    """Return the prompts of a table; refuse rows longer than the header, which would lose words."""
    rows = list(reader)
    for number, row in enumerate(rows, 1):
        if any(cell.strip() for cell in row.get(None, ())):
            raise LoadError(
                f"--prompts {path}: row {number} has more cells than there are columns: put "
                "prompts that hold the separator in quotation marks (.csv), or give a .txt"
            )
    return _from_rows(path, rows)


def _from_rows(path: Path, rows: Any) -> list[str]:
    """Return the prompts of a list of texts, a list of objects, or an object of columns."""
    if isinstance(rows, Mapping):
        values = rows[_column(path, rows)]
        return _prompts(path, values if isinstance(values, list) else [values])
    if not isinstance(rows, list):
        raise LoadError(f"--prompts {path}: expected a list of texts or of objects with a prompt")
    return _prompts(
        path, [row[_column(path, row)] if isinstance(row, Mapping) else row for row in rows]
    )


def _prompts(source: Path | str, values: Iterable[Any]) -> list[str]:
    """Return each row's prompt: a text, or the first of several captions; blank if missing.

    Raises:
        LoadError: A row holds something else, as where it is the wrong column.
    """
    prompts = []
    for number, value in enumerate(values, 1):
        first = next(iter(value), None) if isinstance(value, list | tuple) else value
        if not isinstance(first, str | None):
            raise LoadError(
                f"--prompts {source}: row {number} holds {_shown(first)}, which is no text"
            )
        prompts.append(first or "")
    return prompts


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _bare(name: str) -> str:
    """Return a column's name without case and surrounding spaces."""
    return name.strip().casefold()


def _column(path: Path, names: Iterable[str]) -> str:
    available = list(names)
    # Exact names first: a table may have both `prompt` and `Prompt`.
    for spelled in (str, _bare):
        columns = {spelled(name): name for name in reversed(available) if name is not None}
        for column in map(spelled, COLUMNS):
            if column in columns:
                return columns[column]
    raise LoadError(
        f"--prompts {path}: no column {', '.join(COLUMNS)}; it has "
        f"{', '.join(repr(str(name)) for name in available[:8]) or 'none'}: rename one to prompt"
    )
