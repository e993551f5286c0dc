"""The report without a browser: a chart and a sheet of images, as PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_search.core.intervals import Estimate
from accel_search.report.format import short
from accel_search.report.html.page import PARTS, title_of
from accel_search.storage.json_files import write_atomically
from accel_search.storage.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHART = "search_results.png"
SHEET = "search_pictures.png"
# Of Okabe and Ito's colours, which those who cannot tell red from green tell apart.
_LOOKS = {
    "pass": ("o", "#0072b2", "within the bound"),
    "open": ("o", "#757d87", "open or inconclusive"),
    "fail": ("x", "#c4500a", "beyond the bound, given up"),
}
_SHOWN_PARAMETERS = 6
_MOST_TICKS = 12


def write_plots(run: Run, folder: Path) -> list[Path]:
    """Write the chart, and the sheet where the run has pictures; return what was written.

    Raises:
        OSError: The folder cannot be written to.
    """
    written = [_save(results_figure(run), folder / CHART)]
    if run.pictures is not None:
        written.append(_save(sheet_figure(run), folder / SHEET))
    return written


def chart(run: Run) -> bytes:
    """Return the chart of `results_figure` as PNG."""
    return _png(results_figure(run))


def _save(figure: Figure, path: Path) -> Path:
    write_atomically(path, _png(figure))
    return path


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    # The canvas is named: whatever display there is, or is not, is never looked for.
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def results_figure(run: Run) -> Figure:
    """Draw speed against loss, and how both depend on each parameter."""
    from matplotlib.figure import Figure

    parameters = list(run.varied)[:_SHOWN_PARAMETERS]
    lines = -(-len(parameters) // 3)
    figure = Figure(figsize=(10, 5.2 + 2.7 * lines), layout="constrained")
    heights = [5.2, 2.7 * lines] if lines else [5.2]
    top, *below = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).ravel()
    _scatter(top.subplots(), run)
    if below:
        _coloured(below[0], run, parameters, lines)
    return figure


def _scatter(axes: Any, run: Run) -> None:
    bound = 100 * run.goal.max_score_loss
    scored = [row for row in run.rows if row.speedup and row.score_loss]
    groups = {"pass": ("pass",), "open": ("open", "inconclusive"), "fail": ("fail", "dropped")}
    for look, states in groups.items():
        rows = [row for row in scored if row.state in states and row is not run.winner]
        if not rows:
            continue
        marker, colour, label = _LOOKS[look]
        axes.scatter(
            [100 * row.score_loss.value for row in rows if row.score_loss],
            [row.speedup.value for row in rows if row.speedup],
            marker=marker, s=26, label=f"{label} ({len(rows)})", linewidths=1.2,
            facecolors="none" if look == "open" else colour,
            **({"edgecolors": colour} if marker == "o" else {}), alpha=0.8, zorder=3,
        )  # fmt: skip
    front = sorted(
        (100 * row.score_loss.value, row.speedup.value)
        for row in scored
        if row.is_front and row.score_loss and row.speedup
    )
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), where="post", color="#1a1d21", alpha=0.5, zorder=2)
    for rival in run.rivals:
        place = 100 * rival.score_loss.value, rival.speedup.value
        axes.scatter(*place, marker="^", s=60, color="#9a3f87", zorder=4)
        axes.annotate(f"{rival.steps} steps", place, xytext=(8, -12), textcoords="offset points",
                      color="#9a3f87", fontsize=9)  # fmt: skip
    winner = run.winner
    if winner is not None and winner.speedup and winner.score_loss:
        place = 100 * winner.score_loss.value, winner.speedup.value
        axes.errorbar(
            *place,
            xerr=_arms(winner.score_loss, 100),
            yerr=_arms(winner.speedup, 1),
            fmt="*", markersize=17, color="#00795a", ecolor="#00795a", elinewidth=1, zorder=5,
            label=f"winner: {short(winner.candidate)}",
        )  # fmt: skip
    axes.axvline(bound, color="#c4500a", linestyle="--", linewidth=1.3, label=f"bound, {bound:g} %")
    axes.axhline(1, color="#757d87", linestyle=":", linewidth=1)
    axes.set(xlabel="loss of CLIP score, %", ylabel="speedup, ×", title=title_of(run))
    axes.grid(color="#e1e4e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))


def _arms(estimate: Estimate, scale: float) -> list[list[float]]:
    """Return how far an error bar reaches below and above the value; none where it is unknown."""
    ends = estimate.as_list() if estimate.is_bounded else [estimate.value] * 2
    below, above = estimate.value - ends[0], ends[1] - estimate.value
    return [[scale * max(0.0, below)], [scale * max(0.0, above)]]


def _coloured(figure: Any, run: Run, parameters: list[tuple[str, str]], lines: int) -> None:
    """Draw the loss over each parameter's values, coloured by the speedup."""
    rows = [row for row in run.rows if row.speedup and row.score_loss]
    speeds = [row.speedup.value for row in rows if row.speedup]
    axes = figure.subplots(lines, min(3, len(parameters)), squeeze=False).ravel()
    shades = None
    for axis, (name, key) in zip(axes, parameters, strict=False):
        own = [row for row in rows if name in row.candidate]
        shades = axis.scatter(
            [row.candidate[name][key] for row in own],
            [100 * row.score_loss.value for row in own if row.score_loss],
            c=[row.speedup.value for row in own if row.speedup],
            cmap="viridis", vmin=min(speeds), vmax=max(speeds), s=22, alpha=0.85,
        )  # fmt: skip
        axis.axhline(100 * run.goal.max_score_loss, color="#c4500a", linestyle="--", linewidth=1)
        axis.set(xlabel=f"{name}: {key}", ylabel="loss, %")
        values = sorted({row.candidate[name][key] for row in own})
        if len(values) <= _MOST_TICKS:
            axis.set_xticks(values)
            axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(parameters) :]:
        axis.set_visible(False)
    if shades is not None:
        figure.colorbar(shades, ax=list(axes), label="speedup, ×")


def sheet_figure(run: Run) -> Figure:
    """Draw the run's pictures side by side, and the winner's difference from the baseline."""
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    pictures = run.pictures
    assert pictures is not None
    columns: list[tuple[str, list[Any]]] = []
    for column in pictures.columns:
        images = [np.asarray(Image.open(file).convert("RGB")) for file in column.files]
        title = short(column.candidate).replace(") ", ")\n") if column.part != "rival" else (
            f"{column.steps} steps"
        )  # fmt: skip
        columns.append((f"{PARTS.get(column.part, column.part)}\n{title}", images))
        if column.part == "winner" and columns[0][0].startswith(PARTS["baseline"]):
            gaps = [
                np.clip(4 * np.abs(own.astype(int) - base), 0, 255).astype(np.uint8)
                for own, base in zip(images, columns[0][1], strict=True)
            ]
            columns.append(("Difference\nwinner, × 4", gaps))
    count = len(pictures.prompts)
    figure = Figure(figsize=(2.2 * len(columns), 2.35 * count + 0.6), layout="constrained")
    axes = figure.subplots(count, len(columns), squeeze=False)
    for place, (title, images) in enumerate(columns):
        for line, image in enumerate(images):
            cell = axes[line, place]
            cell.imshow(image)
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set_visible(False)
            if line == 0:
                cell.set_title(title, fontsize=9)
    for line, prompt in enumerate(pictures.prompts):
        text = prompt.text
        shown = text if len(text) <= 70 else text[:67] + "…"
        # A dollar sign would begin a formula.
        axes[line, 0].set_xlabel(shown.replace("$", r"\$"), fontsize=8, loc="left")
    return figure
