"""Make the pictures of docs/parameters.md: the demo pipeline under more and more of each parameter.

Every column's loss of score is measured on the same prompts and noise as the bare pipeline's, with
its 95 % interval, as a search measures it. `python scripts/docs/draw_pictures.py` writes the sheets
into docs/pictures, and the figures into docs/data/pictures. Minutes on a CPU. Figures that a file
holds are not measured again: delete the file to measure them.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from accel_search.accelerators import tome
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import score_loss
from accel_search.core.trial import Measurement
from accel_search.runtime.measuring.evaluator import PipelineEvaluator
from accel_search.runtime.workbench import open_evaluator
from accel_search.settings import Settings

OUT = Path(__file__).parents[2] / "docs" / "pictures"
FIGURES = Path(__file__).parents[2] / "docs" / "data" / "pictures"
INK = "#6b7785"  # Told from white and from near black.
SHOWN = (0, 1, 3)
"""Prompts that pictures are shown of; tokens are those of the first."""
Column = tuple[str, dict[str, dict[str, int | float]]]


def deepcache(interval: int, branch: int) -> Column:
    """Return a setting of DeepCache with its title."""
    params = {"cache_interval": interval, "cache_branch_id": branch}
    return f"interval {interval}\nbranch {branch}", {"deepcache": params}


def tgate(gate: int, sp: int, fi: int, warmup: int) -> Column:
    """Return a setting of T-GATE with its title."""
    params = {"gate_step": gate, "sp_interval": sp, "fi_interval": fi, "warmup": warmup}
    return f"gate {gate}, sp {sp}\nfi {fi}, warm-up {warmup}", {"tgate": params}


def merging(ratio: float, level: int) -> Column:
    """Return a setting of ToMe with its title."""
    params = {"ratio": ratio, "max_downsample": level}
    return f"ratio {ratio}\nmax_downsample {level}", {"tome": params}


def steps(count: int) -> Column:
    """Return fewer steps with their title."""
    return f"{count} steps\n", {"steps": {"num_inference_steps": count}}


SHEETS: dict[str, Sequence[Column]] = {
    "deepcache": [deepcache(*each) for each in ((2, 0), (3, 0), (5, 0), (10, 0), (10, 3))],
    "tgate": [tgate(*each) for each in (
        (15, 3, 3, 2), (10, 3, 3, 2), (5, 3, 3, 2), (5, 9, 5, 1), (2, 9, 5, 1)
    )],
    "tome": [merging(*each) for each in ((0.3, 1), (0.5, 1), (0.7, 1), (0.7, 2), (0.7, 4))],
    "steps": [steps(each) for each in (10, 7, 5, 4, 3)],
}  # fmt: skip


def main() -> None:
    """Draw the sheets that are named, or all, and the one of merged tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheets", nargs="*", choices=list(SHEETS), default=list(SHEETS))
    parser.add_argument("--prompts", type=int, default=32)
    options = parser.parse_args()
    settings = Settings(pipe="demo", device="cpu", num_samples=options.prompts, held_out_samples=0)
    evaluator = open_evaluator(settings, logging.getLogger("draw_pictures"))
    baseline = evaluator.baseline()
    for folder in (OUT, FIGURES):
        folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"text.color": INK, "font.size": 9}):
        for name in options.sheets:
            sheet(name, evaluator, baseline)
            print(OUT / f"{name}.png")
        tokens_sheet(evaluator)
        print(OUT / "tome_tokens.png")


def sheet(name: str, evaluator: PipelineEvaluator, baseline: Measurement) -> None:
    """Draw one accelerator's settings beside the bare pipeline, and write their losses."""
    titles, pictures = ["bare pipeline\n20 steps\n"], [_pictures(evaluator, {})]
    path = FIGURES / f"{name}.json"
    figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    for title, settings in SHEETS[name]:
        found = next((each for each in figures if each["settings"] == settings), None)
        if found is None:
            found = _figures(evaluator, baseline, settings)
            figures.append(found)
            path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        low, high = (100 * each for each in found["score_loss_interval"])
        titles.append(f"{title}\nloss {100 * found['score_loss']:.1f} % [{low:.1f}, {high:.1f}]")
        pictures.append(_pictures(evaluator, settings))
        print(titles[-1].replace("\n", " "), flush=True)
    _save(_grid(titles, pictures), OUT / f"{name}.png")


def _figures(
    evaluator: PipelineEvaluator,
    baseline: Measurement,
    settings: Mapping[str, Mapping[str, int | float]],
) -> dict[str, Any]:
    measured = evaluator.measure(Candidate(settings), pairs=0)
    loss = score_loss(baseline.scores, measured.scores)
    return {
        "settings": settings,
        "score_loss": round(loss.value, 5),
        "score_loss_interval": [round(each, 5) for each in loss.as_list()],
        "prompts": len(measured.scores),
    }


def _pictures(
    evaluator: PipelineEvaluator, settings: Mapping[str, Mapping[str, int | float]]
) -> list[NDArray[np.uint8]]:
    made = evaluator.pictures(Candidate(settings), max(SHOWN) + 1).permute(0, 2, 3, 1).numpy()
    return [made[number] for number in SHOWN]


def tokens_sheet(evaluator: PipelineEvaluator) -> None:
    """Draw a picture as ToMe's self-attention sees it: merged tokens have one colour."""
    picture = _pictures(evaluator, {})[0]
    titles, pictures = ["bare pipeline\n256 tokens"], [[picture]]
    for ratio in (0.25, 0.5, 0.75):
        groups = _groups(evaluator, ratio)
        titles.append(f"ratio {ratio}\n{len(set(groups.tolist()))} tokens")
        pictures.append([_painted(picture, groups)])
    _save(_grid(titles, pictures, size=1.5), OUT / "tome_tokens.png")


def _groups(evaluator: PipelineEvaluator, ratio: float) -> NDArray[np.int64]:
    """Return for each token the one that it is merged into, in the middle of a pipeline call."""
    found: list[NDArray[np.int64]] = []

    class Recorded(tome.Matching):
        def __init__(self, metric: Any, *rest: Any) -> None:
            super().__init__(metric, *rest)
            group = np.arange(metric.shape[1])
            # The guidance batch is [unconditional, text]: the first prompt's text row.
            row = len(metric) // 2
            group[self._merged[row].numpy()] = self._destinations[self._target[row]].numpy()
            found.append(group)

    original, tome.Matching = tome.Matching, Recorded  # type: ignore[misc]
    try:
        settings = {"tome": {"ratio": ratio, "max_downsample": 1}}
        evaluator.pictures(Candidate(settings), SHOWN[0] + 1)
    finally:
        tome.Matching = original  # type: ignore[misc]
    return found[len(found) // 2]


def _painted(picture: NDArray[np.uint8], groups: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return a picture in which the patches of one group have their mean colour."""
    side = round(len(groups) ** 0.5)
    edge = picture.shape[0] // side
    patches = picture.reshape(side, edge, side, edge, 3).mean(axis=(1, 3)).reshape(-1, 3)
    colours = np.empty_like(patches)
    for group in set(groups.tolist()):
        colours[groups == group] = patches[groups == group].mean(axis=0)
    large = colours.reshape(side, side, 3).repeat(edge, axis=0).repeat(edge, axis=1)
    return large.round().astype(np.uint8)


def _grid(
    titles: Sequence[str], columns: Sequence[Sequence[NDArray[np.uint8]]], size: float = 1.4
) -> Figure:
    rows = len(columns[0])
    figure = Figure(figsize=(size * len(columns), size * rows + 0.55), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(zip(titles, columns, strict=True)):
        axes[0, column].set_title(title, fontsize=7.5, color=INK)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture, interpolation="lanczos")
            axes[row, column].axis("off")
    return figure


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120, transparent=True, metadata={"Software": None})


if __name__ == "__main__":
    main()
