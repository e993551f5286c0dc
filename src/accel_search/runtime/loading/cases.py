"""What the rows of a prompts file say beside their prompts: their cases. Imports no torch."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from accel_search.core.tasks import (
    ADAPTER,
    CONTROL,
    CONTROLLED,
    TEXT,
    images_of,
    is_controlled,
    numbered,
    takes_noise,
)
from accel_search.core.workload import ImageFile, Prompt, PromptSet
from accel_search.errors import ConfigurationError, LoadError
from accel_search.runtime.loading.images import described
from accel_search.settings import Settings

MOST_SEED = 2**53 - 1
"""Largest seed of a row: exact in JSON readers that use doubles."""
SHOWN = 40
"""Most characters of a value in a message."""
NAMED = 3
"""Most rows or files that a message names."""
PIXELS = 8
"""What height and width of a picture are multiples of."""

Cell = str | int | float


@dataclass(frozen=True)
class Row:
    """A row of a prompts file."""

    text: str
    """The prompt."""
    cells: tuple[tuple[str, Cell], ...] = ()
    """Column -> what it says, in the order of names, blank cells left out."""

    @property
    def key(self) -> str:
        """Return what tells this row from others: the prompt alone where it says nothing else."""
        return f"{self.text}\0{json.dumps(self.cells)}" if self.cells else self.text

    def prompt(self, seed: int) -> Prompt:
        """Return the prompt; `seed` is that of its noise where the row names none."""
        cells = dict(self.cells)
        own = cells.pop("seed", seed)
        assert isinstance(own, int)
        return Prompt(self.text, own, tuple(cells.items()))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value.strip()


def _seed(value: Any) -> int:
    # A table with blank cells holds its whole numbers as 7.0.
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,16}(\.0)?\s*", value):
        value, is_whole = float(value) if "." in value else int(value), True
    if isinstance(value, bool) or not is_whole or not 0 <= value <= MOST_SEED:
        raise ValueError(f"a whole number from 0 to {MOST_SEED}")
    return int(value)


def _image(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("the path of an image")
    return value.strip()


def _strength(value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = 0.0
    if isinstance(value, bool) or not 0 < share <= 1:
        raise ValueError("a number above 0 and at most 1")
    return share


PARSERS: dict[str, Callable[[Any], Cell]] = {
    "negative_prompt": _text,
    "seed": _seed,
    "strength": _strength,
    "image": _image,
    "mask": _image,
    ADAPTER: _image,
}
"""Column -> what makes a value of its cell, or raises ValueError with what is allowed."""


def parser_of(name: str) -> Callable[[Any], Cell] | None:
    """Return what reads a column; None of one that says nothing of a case."""
    return _image if is_control(bare(name)) else PARSERS.get(bare(name))


def is_control(name: str) -> bool:
    """Return whether a column holds the images of a ControlNet."""
    return re.fullmatch(rf"{CONTROL}(_[2-9])?", name) is not None


def bare(name: str) -> str:
    """Return a column's name without case and surrounding spaces."""
    return name.strip().casefold()


def cells_of(source: object, number: int, row: Mapping[Any, Any]) -> tuple[tuple[str, Cell], ...]:
    """Return what the columns of a row say; blank cells say nothing.

    Args:
        source: The file, for messages.
        number: The row's, from 1.
        row: Column -> cell.

    Raises:
        LoadError: A cell holds something else than its column is for.
    """
    cells: dict[str, Cell] = {}
    for name, value in row.items():
        parse = parser_of(name) if isinstance(name, str) else None
        if parse is None or _is_blank(value):
            continue
        try:
            cells[bare(name)] = parse(value)
        except ValueError as error:
            _refuse(source, number, name, value, str(error))
    return tuple(sorted(cells.items()))


def _is_blank(value: Any) -> bool:
    """Return whether a cell is empty: NaN is what a table in memory has there."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def _refuse(source: object, number: int, name: str, value: Any, allowed: str) -> NoReturn:
    raise LoadError(
        f"--prompts {source}: row {number} holds {shown(value)} in the column {name.strip()}; "
        f"expected {allowed}"
    )


def shown(value: Any) -> str:
    """Return a value as a message shows it, cut to length."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def with_negatives(rows: Sequence[Row], of_all: str | None) -> list[Row]:
    """Give every row a negative prompt if one row has one.

    Of a batch all have one or none, and to SDXL an empty one is not none.

    Args:
        rows: Of the file.
        of_all: `--negative_prompt`, for rows that name none.
    """
    if not any(name == "negative_prompt" for row in rows for name, _ in row.cells):
        return list(rows)
    default = {"negative_prompt": of_all or ""}
    return [Row(row.text, tuple(sorted((default | dict(row.cells)).items()))) for row in rows]


def names_in(rows: Iterable[Row]) -> set[str]:
    """Return the columns that say something in any row."""
    return {name for row in rows for name, _ in row.cells}


@dataclass(frozen=True)
class Cases:
    """The rows of a prompts file, with no more than what their task needs."""

    rows: list[Row]
    task: str
    """One of `tasks.TASKS`."""
    strength: float | None = None
    """Of all rows; None is the pipeline's default."""
    images: tuple[str, ...] = ()
    """Columns of images, but for an IP-Adapter's."""
    size: tuple[int, int] | None = None
    """Height and width that those shall have; None where there are none."""


def cases_of(rows: Sequence[Row], settings: Settings, folder: Path) -> Cases:
    """Return the cases of a prompts file, after checking all that needs no picture decoded.

    Args:
        rows: Of the file; none where it is no table.
        settings: Give the task, or the options that it follows from, and the size.
        folder: Paths of images are relative to it.

    Raises:
        ConfigurationError: Columns and options do not fit together, or files are missing.
    """
    rows = _with_adapter(settings, rows)
    task = _task(settings, names_in(rows))
    images = tuple(images_of(task, len(settings.controlnet)))
    needed = (*images, *([ADAPTER] if settings.ip_adapter else []))
    kept = {*needed, "negative_prompt", "seed"}
    for name in needed:
        _check_filled(settings, rows, name)
    strength = None
    if not takes_noise(task) and "strength" in names_in(rows):
        _check_filled(settings, rows, "strength")
        strength = _one_strength(settings, rows)
    cases = [
        Row(row.text, tuple(cell for cell in row.cells if cell[0] in kept))
        for row in with_negatives(rows, settings.negative_prompt)
    ]
    if needed:
        _check_present(settings, cases, needed, folder)
    size = _size(settings, cases, images[0], folder) if images else None
    return Cases(cases, task, strength, images, size)


def _with_adapter(settings: Settings, rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows with the column of an IP-Adapter, if there is one.

    Where `image` is the only image that could be its, it is: a picture is then made of a text and
    that image, and not of the image's own pixels.
    """
    columns, where = names_in(rows), f"--prompts {settings.prompts}"
    if settings.ip_adapter is None:
        if ADAPTER in columns and settings.pipe_class == "auto":
            raise ConfigurationError(
                f"{where}: has a column {ADAPTER}, and there is no IP-Adapter: give one with "
                "--ip_adapter, or name the class with --pipe_class to leave it out"
            )
        return rows
    if ADAPTER in columns:
        return rows
    may_begin = settings.pipe_class in ("auto", TEXT, CONTROLLED[TEXT])
    if "image" not in columns or {"mask", "strength"} & columns or not may_begin:
        raise ConfigurationError(
            f"--ip_adapter {settings.ip_adapter}: {where} has no column {ADAPTER}: add it, with "
            "the path of an image in each row"
        )
    return [
        replace(
            row,
            cells=tuple(
                sorted((ADAPTER if name == "image" else name, value) for name, value in row.cells)
            ),
        )
        for row in rows
    ]


def _size(settings: Settings, rows: Sequence[Row], name: str, folder: Path) -> tuple[int, int]:
    """Return the height and width asked for, or those of the first image."""
    if settings.height is not None and settings.width is not None:
        return settings.height, settings.width
    path = folder / str(dict(next(row for row in rows if row.text).cells)[name])
    height, width = _read(name, path, settings.prompts)[1]
    if height % PIXELS or width % PIXELS:
        raise ConfigurationError(
            f"--prompts {settings.prompts}: the {name} {path} is {width} × {height} pixels, which "
            f"are no multiples of {PIXELS}: resize or crop the images"
        )
    return settings.height or height, settings.width or width


def _task(settings: Settings, columns: set[str]) -> str:
    """Return what pictures are made of, by `--pipe_class` or by the columns."""
    given, where = settings.pipe_class, f"--prompts {settings.prompts}"
    task = _by_columns(settings, columns) if given == "auto" else given
    if is_controlled(task):
        _check_controls(settings, columns)
    lacking = [name for name in images_of(task, 0) if name not in columns]
    if lacking:
        raise ConfigurationError(
            f"--pipe_class {task}: {where} has no column {' and no column '.join(lacking)}: add "
            "it, with the path of an image in each row"
        )
    return task


def _by_columns(settings: Settings, columns: set[str]) -> str:
    where, way_out = f"--prompts {settings.prompts}", f"--pipe_class {TEXT} to leave it out"
    task = TEXT
    if "image" in columns:
        task = "inpaint" if "mask" in columns else "img2img"
    for name in ("mask", "strength"):
        if name in columns and task == TEXT:
            raise ConfigurationError(
                f"{where}: has a column {name}, but no column image that it is of: add one, or "
                f"give {way_out}"
            )
    if settings.controlnet:
        return CONTROLLED[task]
    if CONTROL in columns:
        raise ConfigurationError(
            f"{where}: has a column {CONTROL}, and there is no ControlNet: give one with "
            f"--controlnet, or --pipe_class {task} to leave it out"
        )
    return task


def _check_controls(settings: Settings, columns: set[str]) -> None:
    """Refuse another number of ControlNets than of columns that are for them."""
    wanted = numbered(CONTROL, len(settings.controlnet))
    there = sorted(name for name in columns if is_control(name))
    if there != wanted:
        raise ConfigurationError(
            f"--controlnet: {len(settings.controlnet)} given, for the columns "
            f"{', '.join(wanted)}, and --prompts {settings.prompts} has "
            f"{', '.join(there) or 'none of them'}: give each ControlNet a column of images"
        )


def _check_filled(settings: Settings, rows: Sequence[Row], name: str) -> None:
    """Refuse a column that some rows have nothing in."""
    empty = [
        number for number, row in enumerate(rows, 1) if row.text and name not in dict(row.cells)
    ]
    if empty:
        raise ConfigurationError(
            f"--prompts {settings.prompts}: {len(empty)} of {len(rows)} rows have nothing in the "
            f"column {name} (row {_listed(empty)}): fill it in every row, or in none"
        )


def _one_strength(settings: Settings, rows: Sequence[Row]) -> float:
    values = sorted({float(dict(row.cells)["strength"]) for row in rows if row.text})
    if len(values) > 1:
        raise ConfigurationError(
            f"--prompts {settings.prompts}: its rows differ in strength ({_listed(values)}), which "
            "decides how many steps are made: give all rows one, and search each by itself"
        )
    return values[0]


def _check_present(
    settings: Settings, rows: Sequence[Row], names: Sequence[str], folder: Path
) -> None:
    """Refuse a file with images missing, before any is read."""
    paths = dict.fromkeys(
        str(value) for row in rows if row.text for name, value in row.cells if name in names
    )
    missing = [path for path in paths if not _is_file(folder / path)]
    if missing:
        raise ConfigurationError(
            f"--prompts {settings.prompts}: {len(missing)} of its {len(paths)} images are missing "
            f"({_listed(missing)}): paths are relative to {folder}"
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _listed(values: Sequence[object]) -> str:
    more = ", …" if len(values) > NAMED else ""
    return ", ".join(str(value) for value in values[:NAMED]) + more


def with_images(prompts: PromptSet, cases: Cases, folder: Path) -> PromptSet:
    """Return a set of prompts with the images of its cases, each read once.

    Raises:
        ConfigurationError: One cannot be read, or is of another size than the pictures.
    """
    sizes = dict.fromkeys(cases.images, cases.size)

    def of(prompt: Prompt) -> Prompt:
        return replace(
            prompt,
            inputs=tuple(
                (name, value)
                if name == "negative_prompt"
                else (name, _image_of(name, folder / str(value), sizes.get(name), prompts.source))
                for name, value in prompt.inputs
            ),
        )

    return replace(
        prompts,
        search=tuple(map(of, prompts.search)),
        held_out=tuple(map(of, prompts.held_out)),
        further=tuple(map(of, prompts.further)),
        task=cases.task,
        size=cases.size,
        strength=cases.strength,
    )


def _image_of(name: str, path: Path, size: tuple[int, int] | None, source: str) -> ImageFile:
    file, (height, width) = _read(name, path, source)
    if size is not None and (height, width) != size:
        raise ConfigurationError(
            f"--prompts {source}: the {name} {path} is {width} × {height} pixels, and pictures are "
            f"{size[1]} × {size[0]}: resize it, or give --width and --height"
        )
    return file


def _read(name: str, path: Path, source: str) -> tuple[ImageFile, tuple[int, int]]:
    try:
        stat = path.stat()
        return _described(path.resolve(), stat.st_size, stat.st_mtime_ns, mode_of(name))
    except (ConfigurationError, OSError) as error:
        raise ConfigurationError(f"--prompts {source}: {error}") from error


@functools.cache
def _described(path: Path, size: int, changed: int, mode: str) -> tuple[ImageFile, tuple[int, int]]:
    """Read an image once in a process; its file's size and time are what tells a change."""
    return described(path, mode)


def mode_of(name: str) -> str:
    """Return the mode in which the images of a column are read."""
    return "L" if name == "mask" else "RGB"
