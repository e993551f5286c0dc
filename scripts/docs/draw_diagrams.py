"""Draw the diagrams of docs/parameters.md from the accelerators' own code.

What runs in which UNet call is asked of `step_types`, `schedule`, `skipped_modules` and
`merge_plan`: the code that a search and `accelerate` go by. `python scripts/docs/draw_diagrams.py`
writes the diagrams into docs/diagrams.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from accel_search.accelerators import get
from accel_search.accelerators.deepcache import LAYERS_PER_BLOCK, skipped_modules
from accel_search.accelerators.tgate import REUSE, STORE, schedule
from accel_search.accelerators.tome import merge_plan
from accel_search.core.workload import Workload

OUT = Path(__file__).parents[2] / "docs" / "diagrams"

# Each is told from white and from near black: the pages have a light and a dark look.
INK, FAINT = "#6b7785", "#6b778555"
FULL, PART, KEPT = "#2f7fd1", "#2f7fd144", "#d9822b"
HALF = "#7b61c9"
DEPTH, MERGED = "#2a9d7c", "#2a9d7c44"
STEPS = 20

STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "accel-search",  # The same drawing is the same file.
    "font.family": "DejaVu Sans",
}

UNETS: dict[str, tuple[int, tuple[int, ...], int]] = {
    "SD1.5, 512 px": (64, (1, 2, 4, 8), 8),
    "SD2.1, 768 px": (96, (1, 2, 4, 8), 8),
    "SDXL, 1024 px": (128, (2, 4), 4),
}
"""Latent size, downsampling factors with attention (the middle block's last), deepest factor."""


def workload(latent: int, factors: tuple[int, ...]) -> Workload:
    """Return a workload of 20 steps with guidance."""
    return Workload(
        pipeline="any",
        pipeline_class="StableDiffusionPipeline",
        scheduler_class="DDIMScheduler",
        steps=STEPS,
        unet_calls=STEPS,
        height=8 * latent,
        width=8 * latent,
        batch_size=1,
        guidance_scale=7.5,
        dtype="float16",
        device="cuda:0",
        latent_height=latent,
        latent_width=latent,
        attention_downsamples=factors,
    )


def save(figure: Figure, name: str) -> None:
    """Write a figure as SVG on no ground of its own."""
    OUT.mkdir(parents=True, exist_ok=True)
    FigureCanvasSVG(figure)
    path = OUT / f"{name}.svg"
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    # Matplotlib ends lines with blanks that a version control system would complain of.
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def bare(axes: Axes, columns: float, rows: float) -> None:
    """Make a canvas of an axes: no frame, y downwards."""
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.axis("off")


def cell(axes: Axes, x: float, y: float, colour: str, height: float = 0.8, **style: Any) -> None:
    """Draw what one UNet call does."""
    axes.add_patch(
        FancyBboxPatch(
            (x + 0.09, y),
            0.82,
            height,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=colour,
            edgecolor="none",
            **style,
        )
    )


def legend(
    axes: Axes, x: float, y: float, entries: Mapping[str, str], letter: float = 0.222
) -> float:
    """Draw a row of colours with what they mean, and return where it ends.

    Args:
        axes: A canvas.
        x: Where it begins.
        y: Its upper edge.
        entries: Text -> colour.
        letter: Width of a letter.
    """
    for text, colour in entries.items():
        cell(axes, x, y, colour, 0.62)
        axes.text(x + 1.1, y + 0.33, text, va="center", fontsize=9.5)
        x += 2.0 + letter * len(text)
    return x


def calls_axis(axes: Axes, y: float, every: int = 5) -> None:
    """Number the UNet calls, from 0 as the parameters count them."""
    for call in range(0, STEPS, every):
        axes.text(call + 0.5, y, str(call), ha="center", va="top", fontsize=9)
    axes.text(STEPS - 0.5, y, str(STEPS - 1), ha="center", va="top", fontsize=9)


def deepcache_calls() -> Figure:
    """Which UNet calls are full, for each interval."""
    deepcache = get("deepcache")
    intervals = deepcache.parameters[0].values
    figure = Figure(figsize=(8.6, 2.75), layout="none")
    axes = figure.add_axes((0.15, 0.02, 0.83, 0.96))
    bare(axes, STEPS, len(intervals) + 1.6)
    for row, interval in enumerate(intervals):
        params = {"cache_interval": interval, "cache_branch_id": 0}
        types = deepcache.step_types(params, workload(64, (1, 2, 4, 8)))
        for call, step in enumerate(types):
            cell(axes, call, row, PART if step else FULL)
        full = sum(not step for step in types)
        axes.text(-0.3, row + 0.27, f"cache_interval {interval}", ha="right", va="center")
        axes.text(
            -0.3, row + 0.66, f"{full} of {STEPS} in full", ha="right", va="center", fontsize=8
        )
    calls_axis(axes, len(intervals) + 0.02)
    entries = {"the whole UNet runs": FULL, "the outer blocks run, the rest is kept": PART}
    legend(axes, 0, len(intervals) + 0.85, entries)
    return figure


def deepcache_branches() -> Figure:
    """Which modules of SD1.5's UNet a partial step runs, for each branch."""
    unet, work = _sd15_unet()
    figure = Figure(figsize=(8.6, 3.5), layout="none")
    for branch in range(4):
        axes = figure.add_axes((0.01 + 0.25 * branch, 0.1, 0.23, 0.74))
        skipped = {id(module) for module in skipped_modules(unet, branch)}
        _draw_u(axes, unet, skipped)
        share = 1 - sum(work[each] for each in skipped) / work[id(unet)]
        axes.set_title(f"cache_branch_id {branch}", fontsize=10, pad=20)
        axes.text(
            0.5, 1.03, f"{share:.0%} of the arithmetic", transform=axes.transAxes, ha="center",
            va="bottom", fontsize=8.5,
        )  # fmt: skip
    axes = figure.add_axes((0.02, 0.0, 0.96, 0.09))
    bare(axes, 40, 1)
    entries = {
        "runs in every call": FULL,
        "runs in full calls alone; its output is kept between": PART,
    }
    legend(axes, 0, 0.1, entries, 0.38)
    return figure


def _sd15_unet() -> tuple[Any, dict[int, int]]:
    """Return SD1.5's UNet without weights, and the operations of each module in one call."""
    import torch
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    from accel_search.runtime.loading.published import SD_UNET

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet = UNet2DConditionModel(**SD_UNET)
        unet(torch.empty(2, 4, 64, 64), torch.empty(2), torch.empty(2, 77, 768))
    counts = counter.get_flop_counts()
    root = type(unet).__name__
    work = {
        id(module): sum(counts.get(f"{root}.{name}" if name else root, {}).values())
        for name, module in unet.named_modules()
    }
    return unet, work


def _draw_u(axes: Axes, unet: Any, skipped: set[int]) -> None:
    """Draw a UNet's modules as a U."""
    depth = len(unet.down_blocks)
    bare(axes, 9, depth * LAYERS_PER_BLOCK + 1.6)

    def box(module: Any, x: float, y: float, width: float, *, inside: bool) -> None:
        is_skipped = inside or id(module) in skipped
        axes.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                0.72,
                boxstyle="round,pad=0,rounding_size=0.12",
                facecolor=PART if is_skipped else FULL,
                edgecolor="none",
            )
        )

    for level, down in enumerate(unet.down_blocks):
        inside = id(down) in skipped
        attentions = list(getattr(down, "attentions", ()))
        for layer, resnet in enumerate(down.resnets):
            y = level * LAYERS_PER_BLOCK + layer
            box(resnet, 0.35 + 0.3 * level, y, 1.15, inside=inside)
            if attentions:
                box(attentions[layer], 1.58 + 0.3 * level, y, 1.15, inside=inside)
        for sampler in down.downsamplers or ():
            y = level * LAYERS_PER_BLOCK + len(down.resnets)
            box(sampler, 0.35 + 0.3 * level, y, 2.38, inside=inside)
    inside = id(unet.mid_block) in skipped
    box(unet.mid_block, 2.6, depth * LAYERS_PER_BLOCK + 0.3, 3.8, inside=inside)
    for position, up in enumerate(unet.up_blocks):
        level = depth - 1 - position
        inside = id(up) in skipped
        attentions = list(getattr(up, "attentions", ()))
        count = len(up.resnets)
        for layer, resnet in enumerate(up.resnets):
            # An up block's last layer takes the outermost skip connection.
            y = level * LAYERS_PER_BLOCK + (count - 1 - layer)
            box(resnet, 7.5 - 0.3 * level, y, 1.15, inside=inside)
            if attentions:
                box(attentions[layer], 6.27 - 0.3 * level, y, 1.15, inside=inside)
            axes.plot([2.85 + 0.3 * level, 6.15 - 0.3 * level], [y + 0.36] * 2, color=FAINT, lw=0.7)


def tgate_phases() -> Figure:
    """What T-GATE does in each UNet call: one setting, read line by line."""
    setting = {"gate_step": 10, "sp_interval": 3, "fi_interval": 5, "warmup": 2}
    modes = schedule(STEPS, **setting)
    figure = Figure(figsize=(8.6, 3.0), layout="none")
    axes = figure.add_axes((0.17, 0.02, 0.81, 0.96))
    bare(axes, STEPS, 6.0)
    lines: dict[str, Callable[[Any], str]] = {
        "self-attention": lambda mode: PART if mode.self_attention == REUSE else FULL,
        "cross-attention": lambda mode: PART if mode.cross_attention == REUSE else FULL,
        "guidance batch": lambda mode: HALF if mode.half else FULL,
    }
    for row, (name, colour) in enumerate(lines.items()):
        y = 1.35 + row
        axes.text(-0.3, y + 0.4, name, ha="right", va="center")
        for call, mode in enumerate(modes):
            cell(axes, call, y, colour(mode))
            kept = (mode.self_attention, mode.cross_attention, None)[row]
            if kept == STORE:
                axes.plot(call + 0.5, y + 0.4, "o", ms=4.5, color=KEPT, mec="white", mew=0.6)
    spans = {
        "warm-up": (0, setting["warmup"]),
        "before the gate: every sp_interval-th": (setting["warmup"], setting["gate_step"]),
        "from the gate on: every fi_interval-th": (setting["gate_step"], STEPS),
    }
    for text, (start, stop) in spans.items():
        axes.plot([start + 0.12, stop - 0.12], [1.0, 1.0], color=INK, lw=1.1)
        short = text if stop - start > 3 else "warmup"
        axes.text((start + stop) / 2, 0.75, short, ha="center", va="bottom", fontsize=9)
    axes.plot([setting["gate_step"]] * 2, [0.95, 4.3], color=KEPT, lw=1.2, ls=(0, (3, 2)))
    calls_axis(axes, 4.35)
    entries = {"computed": FULL, "kept value returned": PART, "text half dropped": HALF}
    end = legend(axes, 0, 5.25, entries)
    axes.plot(end + 0.4, 5.57, "o", ms=4.5, color=KEPT, mec="white", mew=0.6)
    axes.text(end + 0.9, 5.58, "value kept here", va="center", fontsize=9.5)
    return figure


# What is left to compute, from all of it to next to nothing.
_SHADES = {
    "all computed": FULL,
    "self-attention returned": "#2f7fd199",
    "gated: half batch, cross-attention returned": HALF,
    "gated, self-attention returned": "#7b61c955",
}


def _shade(mode: Any) -> str:
    names = list(_SHADES)
    own, gated = mode.self_attention == REUSE, mode.half
    return _SHADES[names[2 * gated + own]]


def tgate_parameters() -> Figure:
    """T-GATE's four parameters, one at a time."""
    middle = {"gate_step": 10, "sp_interval": 3, "fi_interval": 3, "warmup": 2}
    varied: dict[str, Sequence[int]] = {
        "gate_step": (15, 10, 5),
        "sp_interval": (2, 5, 9),
        "fi_interval": (1, 3, 5),
        "warmup": (1, 3),
    }
    figure = Figure(figsize=(8.6, 5.0), layout="none")
    axes = figure.add_axes((0.17, 0.02, 0.81, 0.96))
    rows = sum(len(values) for values in varied.values()) + 0.55 * len(varied)
    bare(axes, STEPS, rows + 2.1)
    y = 0.0
    for name, values in varied.items():
        for value in values:
            for call, mode in enumerate(schedule(STEPS, **middle | {name: value})):
                cell(axes, call, y, _shade(mode))
            axes.text(-0.3, y + 0.4, f"{name} {value}", ha="right", va="center")
            y += 1
        y += 0.55
    calls_axis(axes, y - 0.45)
    entries = list(_SHADES.items())
    legend(axes, 0, y + 0.45, dict(entries[:2]))
    legend(axes, 0, y + 1.35, dict(entries[2:]))
    return figure


def tome_levels() -> Figure:
    """How many tokens ToMe merges at each level of three UNets."""
    ratio = 0.5
    figure = Figure(figsize=(8.6, 3.7), layout="none")
    most = max(latent * latent for latent, _, _ in UNETS.values())
    for number, (name, (latent, factors, deepest)) in enumerate(UNETS.items()):
        axes = figure.add_axes((0.075 + 0.315 * number, 0.2, 0.275, 0.66))
        levels = [factor for factor in (1, 2, 4, 8) if factor <= deepest]
        bare(axes, 1.0, 4 * 1.3)
        axes.set_title(name, fontsize=10.5, pad=8)
        for row, factor in enumerate((1, 2, 4, 8)):
            y = row * 1.3
            side = -(-latent // factor)
            tokens = side * side
            if factor not in levels:
                continue
            if number == 0 or factor <= deepest:
                axes.text(-0.03, y + 0.3, f"1/{factor}", ha="right", va="center", fontsize=9)
            if factor not in factors:
                axes.text(
                    0, y + 0.3, "no attention here", va="center", fontsize=8.5, style="italic"
                )
                continue
            width = 0.06 + 0.94 * (tokens / most) ** 0.5
            plan = merge_plan((latent, latent), tokens, ratio, factor)
            assert plan is not None
            left = 1 - plan[2] / tokens
            axes.add_patch(Rectangle((0, y), width, 0.6, facecolor=MERGED, edgecolor="none"))
            axes.add_patch(Rectangle((0, y), width * left, 0.6, facecolor=DEPTH, edgecolor="none"))
            least = next(
                limit
                for limit in (*get("tome").parameters[1].values, 8)
                if merge_plan((latent, latent), tokens, ratio, int(limit)) is not None
            )
            says = f"max_downsample {least} or more" if least <= 4 else "never, by default"
            axes.text(
                0, y + 0.66, f"{tokens:,} → {tokens - plan[2]:,}   {says}", va="top", fontsize=8
            )
    axes = figure.add_axes((0.075, 0.02, 0.9, 0.1))
    bare(axes, 40, 1)
    legend(axes, 0, 0.1, {"tokens left at ratio 0.5": DEPTH, "tokens merged away": MERGED}, 0.38)
    return figure


DIAGRAMS: dict[str, Callable[[], Figure]] = {
    "deepcache_calls": deepcache_calls,
    "deepcache_branches": deepcache_branches,
    "tgate_phases": tgate_phases,
    "tgate_parameters": tgate_parameters,
    "tome_levels": tome_levels,
}


def main() -> None:
    """Draw those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *DIAGRAMS], default=[])
    options = parser.parse_args()
    with mpl.rc_context(STYLE):
        for name in options.names or DIAGRAMS:
            save(DIAGRAMS[name](), name)
            print(OUT / f"{name}.svg")


if __name__ == "__main__":
    main()
