"""The benchmark scripts do what the docs say they do, in small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bench_latency
import bench_step_timing
import record_tables
from accel_search.storage.trials_file import read_trials

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "tests" / "data" / "tables"


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def test_recorded_runs_are_predicted_and_reported(monkeypatch, capsys):
    recorded = ROOT / "tests" / "data" / "latency_sdxl_h200.json"
    run(monkeypatch, bench_latency, "--recorded", recorded)
    lines = capsys.readouterr().out.splitlines()
    assert "SDXL 1024 px, batch 4, 20 steps, NVIDIA H200" in lines[0]
    names = ["deepcache", "deepcache+tgate", "tgate"]
    assert sorted(line.split()[0] for line in lines[1:4]) == names
    assert lines[-1].split()[:2] == ["noise", "floor:"]


def test_the_page_on_single_unet_calls_has_the_figures_of_its_data(monkeypatch, capsys):
    page = (ROOT / "docs/measurements/step_timing.md").read_text()
    files = sorted((ROOT / "docs/data").glob("step_timing_*.json"))
    run(monkeypatch, bench_step_timing, "compare", *files)
    printed = capsys.readouterr().out
    held = re.findall(r"truth in (\d+\.\d)% of (\d+);.* ±(\S+)%, of one pair ±(\S+)%", printed)
    assert len(held) == len(files) == 5
    for share, count, single, pair in held:
        assert f"| {float(share):g} % of {count} | ±{single} % | ±{pair} % |" in page
    settings = re.findall(r"pairs +(\S+) \(sd of one +(\S+)%\)  single calls +(\S+) \(", printed)
    for pairs, spread, single in settings[:12]:
        assert f"| {pairs} | {spread} % | {single} |" in page


@pytest.mark.slow
def test_single_unet_calls_are_recorded_beside_pairs_and_compared(tmp_path):
    """As the page shows it, in processes of their own; on the demo."""
    script, out = ROOT / "scripts/benchmarks/bench_step_timing.py", tmp_path / "out.json"
    small = ["--cells", "demo:1", "--steps", "5", "--rounds", "2", "--every", "5"]
    for options in (["record", *small, "--out", out], ["compare", out]):
        done = subprocess.run(
            [sys.executable, script, *options], capture_output=True, text=True, check=True
        )
    assert "demo:1, 2 rounds of 3 settings" in done.stdout
    assert "the interval of one call holds the truth in" in done.stdout


@pytest.mark.slow
def test_a_table_is_recorded_in_parts_that_are_put_together(monkeypatch, tmp_path, capsys):
    options = ["--targets", "tome", "--steps", "4", "--num_samples", "2", "--device", "cpu"]
    parts = [tmp_path / f"{part}.json.gz" for part in "ab"]
    run(monkeypatch, record_tables, *options, "--points", "2", "--out", parts[0])
    run(
        monkeypatch, record_tables, *options,
        "--points", "1", "--skip", parts[0], "--out", parts[1],
    )  # fmt: skip
    whole = tmp_path / "whole.json.gz"
    run(monkeypatch, record_tables, *options, "--merge", *parts, "--out", whole)
    assert "3 of 24 points" in capsys.readouterr().out
    merged = read_trials(whole)
    assert len({trial.candidate for trial in merged.trials}) == 3
    for trial in merged.trials:
        measured = trial.measurement
        assert len(measured.scores) == len(measured.psnr) == len(measured.ssim) == 2
        assert len(measured.baseline_seconds_per_image) == len(measured.seconds_per_image)
    assert merged.baseline.scores == read_trials(parts[0]).baseline.scores


def test_tables_of_two_workloads_are_not_put_together(monkeypatch, tmp_path):
    tables = [TABLES / "deepcache.json.gz", tmp_path / "other.json"]
    content = json.loads(gunzipped(tables[0]))
    content["workload"]["steps"] = 25
    tables[1].write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="not of one workload"):
        run(
            monkeypatch, record_tables,
            "--targets", "deepcache", "--merge", *tables, "--out", tmp_path / "x.json",
        )  # fmt: skip


def gunzipped(path):
    import gzip

    return gzip.decompress(path.read_bytes())


def test_the_table_at_full_size_is_made_cell_by_cell_and_goes_on(monkeypatch, tmp_path, capsys):
    """In the place of a full-size pipeline stands the demo's."""
    import logging

    import bench_full_size
    from accel_search.runtime.loading.pipelines import load_pipeline
    from accel_search.settings import Settings

    def demo(settings):
        return load_pipeline(Settings(pipe="demo", device="cpu"), logging.getLogger("test"))[0]

    monkeypatch.setattr(bench_full_size, "random_pipeline", demo)
    monkeypatch.setattr(bench_full_size, "MOST_TURNS", 1)
    out = tmp_path / "full.json"
    options = ["--models", "SD1.5", "--steps", "3", "--settings", "deepcache,deepcache+tome"]
    run(monkeypatch, bench_full_size, *options, "--batches", "1", "--out", out)
    rows = json.loads(out.read_text())["rows"]
    assert [row["setting"] for row in rows] == ["bare", "deepcache", "deepcache+tome"]
    assert [len(row["seconds_a_call"]) for row in rows] == [2, 1, 1]  # Bare first and last.
    assert rows[0]["speedup"] == 1 and rows[0]["kernel"] == "native"
    capsys.readouterr()
    run(monkeypatch, bench_full_size, *options, "--batches", "1,2", "--out", out)
    more = json.loads(out.read_text())["rows"]
    assert more[:3] == rows and [row["batch"] for row in more[3:]] == [2, 2, 2]
    assert len(capsys.readouterr().out.splitlines()) == 3
    # No pipeline is built for cells that the file holds.
    monkeypatch.delattr(bench_full_size, "random_pipeline")
    run(monkeypatch, bench_full_size, *options, "--batches", "1,2", "--out", out)
    assert json.loads(out.read_text())["rows"] == more
