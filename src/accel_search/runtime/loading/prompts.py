"""Choose and seed the prompts to score on, the same on every machine. Imports no torch."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accel_search.core.paths import local_path
from accel_search.core.tasks import TEXT
from accel_search.core.validation import MOST
from accel_search.core.workload import Prompt, PromptSet
from accel_search.errors import ConfigurationError, LoadError, first_line
from accel_search.runtime.demo import demo_part
from accel_search.runtime.loading.cases import (
    Row,
    bare,
    cases_of,
    cells_of,
    parser_of,
    shown,
    with_images,
)
from accel_search.runtime.loading.hub import explain
from accel_search.runtime.quiet import quiet_hub
from accel_search.settings import Settings

COCO_DATASET = "phiyodr/coco2017"
COCO_SPLIT = "validation"
COLUMNS = ("prompt", "caption", "captions", "text", "Prompt")
"""Columns that may hold a table's prompts, in this order; then the same in any case."""
SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet")


def load_prompts(settings: Settings) -> PromptSet:
    """Return the prompts to search on and disjoint ones to validate on.

    Raises:
        LoadError: The source cannot be read.
        ConfigurationError: It holds too few distinct prompts, or what options do not fit.
    """
    source = settings.prompts
    if source == "auto":
        source = "builtin" if settings.pipe == "demo" else "coco"
    folder = local_path(source).parent
    cases = cases_of(_rows(source), settings, folder)
    held_out = settings.held_out_samples
    prompts = choose(
        cases.rows,
        source,
        settings.seed,
        settings.num_samples,
        settings.num_samples if held_out is None else held_out,
    )
    return with_images(prompts, cases, folder)


def check_prompts(settings: Settings) -> str:
    """Raise the errors of `--prompts` and of options that it does not fit, before torch is loaded.

    What would have to be fetched is not: it has no images.

    Returns:
        What pictures are made of, one of `tasks.TASKS`.
    """
    if settings.latency_only or settings.replay is not None:
        return TEXT
    if settings.prompts in ("auto", "builtin", "coco"):
        return cases_of([], settings, Path()).task
    return load_prompts(settings).task


def choose(
    rows: Iterable[str | Row], source: str, seed: int, num_samples: int, held_out_samples: int
) -> PromptSet:
    """Choose and seed prompts by `seed` and what their rows say alone.

    Distinct prompts are sorted by a hash; the search takes them from the front and the held-out
    part from the back, the further ones before it. So the order and the other content of the source
    do not affect a prompt's noise, a larger part contains the smaller, and the two parts grow
    independently.

    Args:
        rows: Candidates. Those without a prompt and repetitions are dropped, after composition
            (NFC) as in tokenizers. Rows of one prompt that say something else are different ones.
        source: Name for the record and for messages.
        seed: Determines the choice and the noise.
        num_samples: Prompts to search on.
        held_out_samples: Prompts to validate on; up to `MOST` times as many are kept at hand.

    Raises:
        ConfigurationError: There are too few distinct prompts.
    """
    composed = (Row(row) if isinstance(row, str) else row for row in rows)
    distinct = {
        Row(text, row.cells)
        for row in composed
        if (text := unicodedata.normalize("NFC", row.text).strip())
    }
    ordered = sorted(distinct, key=lambda row: rank(seed, row.key))
    prompts = [row.prompt(noise_seed(seed, row.key)) for row in ordered]
    return cut(prompts, source, num_samples, held_out_samples)


def cut(
    prompts: Sequence[Prompt], source: str, num_samples: int, held_out_samples: int
) -> PromptSet:
    """Cut distinct prompts, in the order of their ranks, into the parts of a search.

    The other arguments, and the errors, are those of `choose`.
    """
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


def rank(seed: int, key: str) -> bytes:
    """Return what a prompt's place depends on: the seed and what its row says."""
    return _digest("choice", seed, key)


def _digest(purpose: str, seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{purpose}\0{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()


def noise_seed(seed: int, text: str) -> int:
    """Return the seed of a prompt's noise."""
    # 48 bits are exact in JSON readers that use doubles.
    return int.from_bytes(_digest("noise", seed, text)[:6], "big")


def _rows(source: str) -> list[Row]:
    """Return what a source holds; raises as `load_prompts`."""
    if source == "builtin":
        return _plain(_lines(demo_part("prompts.txt")))
    if source == "coco":
        return _plain(_coco())
    path = local_path(source)
    if not path.is_file():
        raise LoadError(
            f"--prompts {source}: no such file; give builtin, coco or a file ending in "
            f"{', '.join(SUFFIXES)}"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise LoadError(f"--prompts {source}: expected a file ending in {', '.join(SUFFIXES)}")
    try:
        rows = _from_file(path)
        for row in rows:
            # JSON can hold lone surrogates, which tokenizers and files reject.
            for text in (row.text, *(cell for _, cell in row.cells if isinstance(cell, str))):
                text.encode()
        return rows
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


def _plain(texts: Iterable[str]) -> list[Row]:
    return [Row(text) for text in texts]


def _from_file(path: Path) -> list[Row]:
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return _plain(_lines(path))
    if suffix == ".parquet":
        import pyarrow.parquet  # type: ignore[import-untyped]

        names = pyarrow.parquet.read_schema(path).names
        column = _column(path, names)
        needed = dict.fromkeys([column, *(name for name in names if parser_of(name))])
        return _from_rows(path, pyarrow.parquet.read_table(path, columns=list(needed)).to_pylist())
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


def _from_table(path: Path, reader: csv.DictReader[str]) -> list[Row]:
    """Return the prompts of a table; refuse rows longer than the header, which would lose words."""
    rows = list(reader)
    for number, row in enumerate(rows, 1):
        if any(cell.strip() for cell in row.get(None, ())):
            raise LoadError(
                f"--prompts {path}: row {number} has more cells than there are columns: put "
                "prompts that hold the separator in quotation marks (.csv), or give a .txt"
            )
    return _from_rows(path, rows)


def _from_rows(path: Path, rows: Any) -> list[Row]:
    """Return the rows of a list of texts, a list of objects, or an object of columns."""
    if isinstance(rows, Mapping):
        rows = _of_columns(path, rows)
    if not isinstance(rows, list):
        raise LoadError(f"--prompts {path}: expected a list of texts or of objects with a prompt")
    texts = _prompts(
        path, [row[_column(path, row)] if isinstance(row, Mapping) else row for row in rows]
    )
    return [
        Row(text, cells_of(path, number, row) if isinstance(row, Mapping) else ())
        for number, (text, row) in enumerate(zip(texts, rows, strict=True), 1)
    ]


def _of_columns(path: Path, columns: Mapping[Any, Any]) -> list[dict[Any, Any]]:
    """Return the rows of an object of columns; of the columns, those that are read."""
    column = _column(path, columns)
    names = dict.fromkeys([column, *(name for name in columns if parser_of(name))])
    lists = {
        name: values if isinstance(values := columns[name], list) else [values] for name in names
    }
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        raise LoadError(
            f"--prompts {path}: its columns differ in length "
            f"({', '.join(f'{name} {length}' for name, length in lengths.items())}): fix it"
        )
    return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]


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
                f"--prompts {source}: row {number} holds {shown(first)}, which is no text"
            )
        prompts.append(first or "")
    return prompts


def _column(path: Path, names: Iterable[str]) -> str:
    available = list(names)
    # Exact names first: a table may have both `prompt` and `Prompt`.
    for spelled in (str, bare):
        columns = {spelled(name): name for name in reversed(available) if name is not None}
        for column in map(spelled, COLUMNS):
            if column in columns:
                return columns[column]
    raise LoadError(
        f"--prompts {path}: no column {', '.join(COLUMNS)}; it has "
        f"{', '.join(repr(str(name)) for name in available[:8]) or 'none'}: rename one to prompt"
    )
