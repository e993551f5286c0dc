"""Copies of one pipeline, timed for real: none is a gain more often than the program says.

The demo pipeline runs on the CPU, beside itself under an accelerator that changes nothing. Other
work on the machine is part of what is tested: it makes no noise that any formula knows of.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy import stats

from accel_search import accelerators
from accel_search.core.assessment import assess
from accel_search.core.candidate import Candidate
from accel_search.core.timing_noise import timing_noises
from accel_search.runtime.workbench import Workbench
from accel_search.settings import Settings
from accel_search.traversal_search import main

PLUGIN = Path(__file__).parents[1] / "plugin" / "nothing.py"
ONE_SIDE = 0.025
"""What an interval of 95 % says of each of its ends."""
PAIRS = 3
OPTIONS = ["--device", "cpu", "--threads", "1", "--batch_size", "1", "--timing_pairs", str(PAIRS)]
OPTIONS += ["--num_samples", "2", "--held_out_samples", "2", "--steps", "2"]
OPTIONS += ["--height", "64", "--width", "64"]


def allowed(rate: float, runs: int) -> int:
    """Return how many of so many runs a rate is exceeded by once in a thousand times."""
    return int(stats.binom.isf(0.001, runs, rate))


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """Make the plug-in what an installed one is: a module on the path, with an entry point."""
    site = tmp_path / "site"
    about = site / "nothing-1.0.dist-info"
    about.mkdir(parents=True)
    shutil.copy(PLUGIN, site)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: nothing\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[accel_search.accelerators]\nnothing = nothing:Nothing\n"
    )
    monkeypatch.syspath_prepend(str(site))
    accelerators._discovered.cache_clear()
    yield
    accelerators._discovered.cache_clear()


@pytest.fixture
def timed_once(nothing) -> Callable[[], tuple]:
    """Return a function that measures a copy with an evaluator and a baseline of its own."""
    settings = Settings(
        device="cpu",
        threads=1,
        batch_size=1,
        num_samples=2,
        held_out_samples=2,
        steps=2,
        height=64,
        width=64,
        timing_pairs=PAIRS,
    )
    bench = Workbench(settings, logging.getLogger("copies"))

    def measure():
        evaluator = bench.evaluator(settings)
        baseline = evaluator.baseline()
        return baseline, evaluator.measure(Candidate({"nothing": {"copy": 1}}))

    return measure


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param(12, id="quick", marks=pytest.mark.slow),
        pytest.param(240, id="long", marks=pytest.mark.torture),
    ],
)
def test_a_copy_of_a_real_pipeline_is_called_a_gain_no_more_often_than_stated(
    runs, timed_once, tell
):
    gains = losses = 0
    ratios = []
    for _ in range(runs):
        baseline, measured = timed_once()
        # All that a search knows after its first trial.
        noise = timing_noises({"baseline:search:1": baseline}, [measured])[1]
        found = assess(measured, baseline, 0.02, noise)
        assert len(measured.baseline_seconds_per_image) == PAIRS
        # The same pictures to the bit: it is a copy.
        assert measured.scores == baseline.scores and found.score_loss.value == 0.0
        gains += found.is_gain
        losses += found.speedup.high < 1
        ratios.append(found.speedup.value)
    ratios.sort()
    tell(
        f"a copy of the demo, {runs} runs of {PAIRS} pairs: {gains} called a gain and {losses} a "
        f"loss, {allowed(ONE_SIDE, runs)} of each allowed; speedups from {ratios[0]:.2f} to "
        f"{ratios[-1]:.2f}, the middle one {ratios[runs // 2]:.3f}"
    )
    assert gains <= allowed(ONE_SIDE, runs)
    assert losses <= allowed(ONE_SIDE, runs)


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param(2, id="quick", marks=pytest.mark.slow),
        pytest.param(30, id="long", marks=pytest.mark.torture),
    ],
)
def test_a_search_among_copies_of_a_real_pipeline_ends_with_nothing_found(
    runs, nothing, tmp_path, monkeypatch, capsys, tell
):
    """A winner is a gain by two timings of its own, the second on held-out prompts."""
    winners = tried = 0
    for run in range(runs):
        folder = tmp_path / str(run)
        folder.mkdir()
        monkeypatch.chdir(folder)
        code = main(["--targets", "nothing", "--strategy", "grid", *OPTIONS])
        printed = capsys.readouterr().out
        assert code in (0, 3)
        assert (folder / "search_params.json").exists() == (code == 0)
        [story] = (folder / "accel_search_runs" / "stories").iterdir()
        told = json.loads(story.read_text())
        measured = [line for line in printed.splitlines() if line.startswith("trial ")]
        assert told["space"]["distinct"] == len(measured) == 8
        assert (told["winner"] is None) == (code == 3)
        winners += code == 0
        tried += len(told["refuted"]) + (code == 0)
    tell(
        f"searches among 8 copies of the demo: {runs}, {tried} copies looked faster and were "
        f"timed again, {winners} searches named one, {allowed(ONE_SIDE, runs)} allowed"
    )
    assert winners <= allowed(ONE_SIDE, runs)
