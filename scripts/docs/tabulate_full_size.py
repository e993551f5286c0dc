#!/usr/bin/env python
"""Rewrite the docs' tables of full-size timings from the files of raw samples.

    python scripts/docs/tabulate_full_size.py docs/*.md docs/measurements/*.md
    python scripts/docs/tabulate_full_size.py docs/data/full_size_h100.json

The second prints all tables of a file. In a page a table stands between a comment,
`<!-- timings FILE MODEL -->`, `<!-- expected FILE MODEL -->` (half precision under DDIM, fewer
columns), `<!-- compiled FILE MODEL -->` or `<!-- kernels FILE -->`, and `<!-- end -->`. FILE is one
of `scripts/benchmarks/bench_full_size.py`, relative to the page. A test compares.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

MARKED = re.compile(
    r"(<!-- (timings|expected|compiled|kernels) (\S+) ?(\S+)? -->\n).*?(<!-- end -->)", re.DOTALL
)
SETTINGS = {
    "deepcache": "DeepCache",
    "tgate": "T-GATE",
    "tome": "ToMe",
    "deepcache+tgate": "DC + TG",
    "deepcache+tome": "DC + ToMe",
    "tgate+tome": "TG + ToMe",
    "deepcache+tgate+tome": "all three",
}
DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
SCHEDULERS = ("DDIM", "DPM-Solver++", "UniPC")
SECONDS = "baseline, s a call"
WORKLOAD = ("scheduler", "steps", "batch", "dtype")
ALL = (*WORKLOAD, SECONDS, "noise", *SETTINGS.values(), "peak GiB")
FULL = tuple(column for column in ALL if column not in ("DC + ToMe", "TG + ToMe", "all three"))
BRIEF = ("steps", "batch", SECONDS, "noise", "DeepCache", "T-GATE", "ToMe", "DC + TG", "peak GiB")


def rewritten(page: Path) -> str:
    """Return the text of a page with its tables rewritten."""

    def table(match: re.Match[str]) -> str:
        begin, kind, file, model, end = match.groups()
        rows = json.loads((page.parent / file).read_text(encoding="utf-8"))["rows"]
        lines = kernels(rows) if kind == "kernels" else timings(rows, model, kind)
        return begin + "\n" + "\n".join(lines) + "\n\n" + end

    return MARKED.sub(table, page.read_text(encoding="utf-8"))


def timings(rows: Sequence[Row], model: str, kind: str = "timings") -> list[str]:
    """Return a line for each cell of a model under the kernel that torch chooses."""
    columns = {"expected": BRIEF, "all": ALL}.get(kind, FULL)
    cells = _cells(
        row
        for row in rows
        if row["model"] == model
        and row["compiled"] == (kind == "compiled")
        and row["attention"] == "auto"
        and (kind != "expected" or (row["scheduler"], row["dtype"]) == ("DDIM", "float16"))
    )
    lines = _heading(columns)
    for (_, scheduler, steps, batch, dtype, _), cell in sorted(cells.items(), key=_order):
        baseline = cell["bare"]
        workload = (scheduler, str(steps), str(batch), DTYPES[dtype])
        values = dict(zip(WORKLOAD, workload, strict=True))
        values |= {SECONDS: _seconds(baseline), "noise": _noise(baseline)}
        values |= {title: _speedup(cell.get(name)) for name, title in SETTINGS.items()}
        values["peak GiB"] = f"{baseline['peak_memory_bytes'] / 2**30:.1f}"
        lines.append(_line([values[column] for column in columns]))
    return lines


def kernels(rows: Sequence[Row]) -> list[str]:
    """Return a line for each workload and kernel, with what ToMe gives under it."""
    lines = _heading(["", "batch", "kernel", SECONDS, "noise", "speedup of ToMe"])
    by_workload = sorted(_cells(rows).items(), key=lambda item: (item[0][0], item[0][3]))
    for (model, _, _, batch, _, kernel), cell in by_workload:
        name = kernel.removeprefix("native (").removesuffix(")")
        if cell["bare"]["attention"] == "auto":
            name += ", torch's choice"
        bare = cell["bare"]
        values = [model, str(batch), name, _seconds(bare), _noise(bare), _speedup(cell["tome"])]
        lines.append(_line(values))
    return lines


def _cells(rows: Iterable[Row]) -> dict[tuple[Any, ...], dict[str, Row]]:
    """Return the rows of each cell that did not end in an error, by setting."""
    cells: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if "error" not in row:
            names = ("model", "scheduler", "steps", "batch", "dtype", "kernel")
            cells.setdefault(tuple(row[name] for name in names), {})[row["setting"]] = row
    return cells


def _order(item: tuple[tuple[Any, ...], Any]) -> tuple[Any, ...]:
    (_, scheduler, steps, batch, dtype, _), _ = item
    return list(DTYPES).index(dtype), SCHEDULERS.index(scheduler), steps, batch


def _seconds(bare: Row) -> str:
    return f"{statistics.median(bare['seconds_a_call']):.2f}"


def _noise(bare: Row) -> str:
    return f"{bare['bare_spread']:.1%}".replace("%", "\N{NO-BREAK SPACE}%")


def _speedup(row: Row | None) -> str:
    return "–" if row is None else f"{row['speedup']:.2f}"


def _heading(names: Sequence[str]) -> list[str]:
    return [_line(names), "|---" * len(names) + "|"]


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def main() -> None:
    """Rewrite the pages that are named, and print the tables of files of samples."""
    for path in map(Path, sys.argv[1:]):
        if path.suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
            for model in sorted({row["model"] for row in rows}):
                print("\n".join(["", model, "", *timings(rows, model, "all")]))
        else:
            path.write_text(rewritten(path), encoding="utf-8")


if __name__ == "__main__":
    main()
