"""The tables of full-size timings say what the files of raw samples say."""

from __future__ import annotations

import json
import sys

import pytest
from scripts.docs.tabulate_full_size import MARKED, main, rewritten, timings

from tests.support.docs_pages import ROOT

NAMES = ("sd15", "sd21", "sdxl", "measurements/full_size")
PAGES = [ROOT / "docs" / f"{name}.md" for name in NAMES]
COMMAND = "python scripts/docs/tabulate_full_size.py docs/*.md docs/measurements/*.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_those_of_the_raw_samples(page):
    text = page.read_text(encoding="utf-8")
    assert MARKED.search(text)
    assert rewritten(page) == text, COMMAND


def test_a_table_follows_its_file(tmp_path):
    row = {"model": "SDXL", "scheduler": "DDIM", "steps": 20, "batch": 4, "dtype": "float16"}
    row |= {"attention": "auto", "compiled": False, "kernel": "native (cudnn)"}
    row |= {"bare_spread": 0.012, "peak_memory_bytes": 3 * 2**30}
    rows = [
        row | {"setting": "bare", "seconds_a_call": [2.0, 3.0, 2.1], "speedup": 1.0},
        row | {"setting": "tome", "seconds_a_call": [2.2, 2.2], "speedup": 0.95},
        row | {"steps": 50, "error": "CUDA out of memory"},
    ]
    on_top = {"setting": "bare", "seconds_a_call": [1.8], "speedup": 1.0, "compiled": True}
    rows += [row | on_top]
    heading, _, *lines = timings(rows, "SDXL", "all")
    cells = [cell.strip() for cell in lines[0].strip("|").split("|")]
    table = dict(zip(heading.strip("| ").split(" | "), cells, strict=True))
    assert table["scheduler"] == "DDIM" and table["steps"] == "20" and table["batch"] == "4"
    assert table["baseline, s a call"] == "2.10" and table["noise"] == "1.2\N{NO-BREAK SPACE}%"
    assert table["ToMe"] == "0.95" and table["all three"] == "–"
    assert table["dtype"] == "fp16" and table["peak GiB"] == "3.0"
    assert len(lines) == 1 and not timings(rows, "SD1.5")[2:]
    for dtype, short in {"bfloat16": "bf16", "float32": "fp32"}.items():
        assert f"| {short} |" in timings([rows[0] | {"dtype": dtype}], "SDXL")[2]
    assert [" 1.80 " in line for line in timings(rows, "SDXL", "compiled")[2:]] == [True]
    assert timings(rows, "SDXL", "expected")[2:] == [
        "| 20 | 4 | 2.10 | 1.2\N{NO-BREAK SPACE}% | – | – | 0.95 | – | 3.0 |"
    ]
    assert not timings([rows[0] | {"dtype": "bfloat16"}], "SDXL", "expected")[2:]

    lines = timings(rows, "SDXL")[2:]
    page = tmp_path / "page.md"
    (tmp_path / "rows.json").write_text(json.dumps({"rows": rows}))
    page.write_text("<!-- compiled rows.json SDXL -->\n\n| old |\n\n<!-- end -->\n")
    assert "1.80" in rewritten(page) and "2.10" not in rewritten(page)
    page.write_text("<!-- timings rows.json SDXL -->\n\n| old |\n\n<!-- end -->\nText\n")
    assert lines[0] in rewritten(page) and "old" not in rewritten(page)
    assert rewritten(page).endswith("<!-- end -->\nText\n")


def test_all_columns_of_a_file_are_printed(monkeypatch, capsys):
    data = ROOT / "docs" / "data" / "full_size_h100.json"
    monkeypatch.setattr(sys, "argv", ["tabulate_full_size.py", str(data)])
    main()
    printed = capsys.readouterr().out
    models = [line for line in printed.splitlines() if line.startswith("SD")]
    assert models == ["SD1.5", "SD2.1", "SDXL"]
    # One line a cell, each in half precision; three headings name ToMe's combinations.
    assert printed.count(" fp16 |") + printed.count(" bf16 |") == 77
    assert printed.count("| all three |") == 3
