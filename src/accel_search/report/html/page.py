"""The report of one search as one HTML page that needs nothing else, not even a network."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from accel_search.accelerators.computation import step_table
from accel_search.core import extras
from accel_search.core.candidate import Candidate
from accel_search.core.extras import Kind
from accel_search.core.intervals import Estimate
from accel_search.core.step_table import StepTable
from accel_search.core.trial import Measurement
from accel_search.report.format import (
    UNSTEADY,
    counted,
    duration,
    factor,
    percent,
    points,
    short,
    to_settle,
    validated,
    within,
)
from accel_search.report.html.provenance import provenance_of
from accel_search.report.html.render import render
from accel_search.report.html.script import direct_lines, file_lines
from accel_search.settings import NAMED
from accel_search.storage.entries import estimate_of
from accel_search.storage.run import Column, Row, Run
from accel_search.storage.run_folder import End

LARGEST_PNG = 300_000
"""Bytes of an image that is embedded unchanged; a larger one is compressed."""
SHADES = 7
"""Shades of a heat map."""
PARTS = {
    "baseline": "Baseline",
    "winner": "Winner",
    "refused": "Fastest refused",
    "rival": "Fewer steps",
}
"""Part of a column of images -> its title."""
STATES = {
    "pass": "within the bound",
    "inconclusive": "inconclusive",
    "open": "open after an early stage",
    "dropped": "given up at an early stage",
    "fail": "beyond the bound",
    "timed": "timed, not scored",
    "failed": "failed",
}
"""State of a trial -> its description."""


def search_page(run: Run) -> str:
    """Return the page of one search."""
    return render(
        "search.html.j2",
        run=run,
        title=title_of(run),
        headline=headline(run),
        steps=_steps(run),
        bound=f"{100 * run.goal.max_score_loss:g} %",
        states={
            state: (name, sum(row.state == state for row in run.rows))
            for state, name in STATES.items()
            if any(row.state == state for row in run.rows)
        },
        front=[row for row in run.rows if row.is_front],
        measured=sum(row.speedup is not None for row in run.rows),
        chart=_chart(run),
        maps=list(_maps(run)),
        pictures=_pictures(run),
        no_gain=run.record.end and run.record.end.no_gain,
        search=_search(run),
        provenance=list(provenance_of(run)),
        direct=None if run.winner is None else "\n".join(direct_lines(run)),
        from_file="\n".join(file_lines(run)) if run.winner and file_lines(run) else None,
        short=short,
        counted=counted,
        factor=factor,
        percent=percent,
    )


def title_of(run: Run) -> str:
    """Return the pipeline, scheduler and steps in one line."""
    load = run.record.workload
    parts = [
        load.pipeline or "an unnamed pipeline",
        run.asked.sched or load.scheduler_class.removesuffix("Scheduler"),
        f"{load.steps} steps" if load.steps else "",
    ]
    return ", ".join(part for part in parts if part)


def headline(run: Run) -> dict[str, Any]:
    """Return the texts at the top of the page."""
    winner, shown = run.winner, run.headline
    if winner is None or winner.speedup is None or shown is None:
        fastest = max((row.speedup.value for row in run.rows if row.speedup), default=None)
        scored = any(row.score_loss for row in run.rows)
        message = f"No candidate meets the goal: faster, {within(run.goal)}."
        if run.asked.strategy == NAMED:
            message = f"None of the named settings is shown to meet the goal: {within(run.goal)}."
        if not scored and fastest is not None:
            message = "Speed alone: nothing was scored, so this does not say what to use."
        return {"found": False, "message": message, "fastest": fastest}
    end = run.record.end
    is_held_out = end is not None and end.held_out is not None
    as_well = [rival for rival in run.rivals if rival.does_as_well]
    speedup = estimate_of(shown.speedup, shown.speedup_interval)
    loss = estimate_of(shown.score_loss, shown.score_loss_interval)
    return {
        "found": True,
        "title": _title(run),
        "speedup": f"{shown.speedup:.2f}×",
        "speedup_interval": _ends(speedup, 1, 2, ""),
        "loss": points(shown.score_loss),
        "loss_interval": _ends(loss, 100, 1, " %"),
        "settings": [
            (name, [f"{key} = {value}" for key, value in params.items()], run.without.get(name))
            for name, params in winner.candidate.items()
        ],
        "state": STATES.get(shown.verdict, shown.verdict),
        "prompts": f"{shown.prompts} {'held-out ' if is_held_out else ''}prompts",
        "in_search": _in_search(winner) if is_held_out else None,
        "tail_loss": None if shown.tail_loss is None else points(shown.tail_loss),
        "range_loss": None if shown.range_loss is None else points(shown.range_loss),
        "to_settle": None
        if end is None or end.is_sure
        else to_settle(shown, len(run.baseline.scores), is_cut_short=end.is_cut_short),
        "unsteady": None if speedup.agrees_with(winner.speedup) else UNSTEADY,
        "rival": max(as_well, key=lambda rival: rival.steps, default=None),
        "rivals": run.rivals,
    }


def _title(run: Run) -> str:
    """Return the title of the winner's speedup: how surely it is within the bound."""
    end = run.record.end
    if run.asked.strategy == NAMED and len(run.rows) > 1:
        return "Speedup, the fastest that passes"
    if not run.is_confirmed:
        return "Fastest within the bound, not confirmed"
    if end is None or end.is_sure:
        return "Speedup"
    return f"Speedup, likely ({100 * (end.chance_within_bound or 0.0):.0f} %) within the bound"


def _in_search(winner: Row) -> dict[str, Any]:
    assert winner.speedup is not None and winner.score_loss is not None
    return {
        "speedup": f"{winner.speedup.value:.2f}×",
        "interval": f"95 % interval {_ends(winner.speedup, 1, 2, '')}",
        "loss": percent(winner.score_loss),
        "state": STATES[winner.state],
        "prompts": winner.prompts,
    }


def _ends(estimate: Estimate, scale: float, places: int, unit: str) -> str:
    if not estimate.is_bounded:
        return "unknown"
    low, high = (scale * end + 0.0 for end in (estimate.low, estimate.high))
    return f"{low:.{places}f} to {high:.{places}f}{unit}"


def _steps(run: Run) -> StepTable | None:
    """Return where the time of the winner's pipeline calls goes, if its UNet calls were timed."""
    winner = run.winner
    if winner is None or winner.measurement is None:
        return None
    return step_table(winner.measurement, winner.candidate, run.record.workload)


def _chart(run: Run) -> dict[str, Any]:
    """Return the data that the page's script draws and tabulates, rounded to be short."""
    return {
        "bound": run.goal.max_score_loss,
        "noise": _finite(run.noise_floor, 4),
        "states": STATES,
        "rows": [_chart_row(run, row) for row in run.rows],
        "rivals": [
            {
                "steps": rival.steps,
                "s": _three(rival.speedup, 4),
                "l": _three(rival.score_loss, 5),
                "well": rival.does_as_well,
            }
            for rival in run.rivals
        ],
    }


def _chart_row(run: Run, row: Row) -> dict[str, Any]:
    measured = row.measurement
    seconds = measured.seconds_per_image if measured else ()
    return {
        "c": short(row.candidate),
        "full": [
            f"{name}: " + ", ".join(f"{key} = {value}" for key, value in params.items())
            for name, params in row.candidate.items()
        ],
        "st": row.state,
        "s": _three(row.speedup, 4),
        "l": _three(row.score_loss, 5),
        "n": row.prompts,
        "sec": _finite(sum(seconds) / len(seconds), 5) if seconds else None,
        "tail": None if row.tail_loss is None else _finite(row.tail_loss, 5),
        "psnr": _mean(measured.psnr, 2) if measured else None,
        "ssim": _mean(measured.ssim, 4) if measured else None,
        "mem": measured.peak_memory_bytes if measured else None,
        "spent": _finite(measured.seconds, 2) if measured else None,
        "why": row.failure,
        "front": row.is_front,
        "win": row is run.winner,
    }


def _three(estimate: Estimate | None, places: int) -> list[float | None] | None:
    if estimate is None or not math.isfinite(estimate.value):
        return None
    ends = estimate.as_list() if estimate.is_bounded else [None, None]
    return [None if end is None else round(end, places) for end in (estimate.value, *ends)]


def _finite(value: float, places: int) -> float | None:
    return round(value, places) if math.isfinite(value) else None


def _mean(values: Sequence[float], places: int) -> float | None:
    return round(sum(values) / len(values), places) if values else None


def _maps(run: Run) -> Iterator[dict[str, Any]]:
    """Yield a heat map for each pair of parameters.

    A cell holds the best of all trials with its two values: the largest speedup among those that
    may be within the bound, and the smallest loss.
    """
    usable = [row for row in run.rows if row.state not in ("fail", "dropped", "failed")]
    speeds = [row.speedup.value for row in usable if row.speedup]
    losses = [max(0.0, row.score_loss.value) for row in run.rows if row.score_loss]
    values = run.varied
    for across, down in combinations(values, 2):
        best = _best(usable, across, down, lambda row: row.speedup and -row.speedup.value)
        mildest = _best(run.rows, across, down, lambda row: row.score_loss and row.score_loss.value)
        cells = [
            [_cell(best.get((x, y)), mildest.get((x, y)), speeds, losses) for x in values[across]]
            for y in values[down]
        ]
        yield {
            "across": across[1] if across[0] == down[0] else " ".join(across),
            "down": down[1] if across[0] == down[0] else " ".join(down),
            "accelerators": " and ".join(dict.fromkeys((across[0], down[0]))),
            "columns": values[across],
            "rows": list(zip(values[down], cells, strict=True)),
        }


def _best(rows: Sequence[Row], across: Any, down: Any, cost: Any) -> dict[Any, Row]:
    best: dict[Any, Row] = {}
    for row in rows:
        if cost(row) is None or not {across[0], down[0]} <= set(row.candidate):
            continue
        place = row.candidate[across[0]][across[1]], row.candidate[down[0]][down[1]]
        if place not in best or cost(row) < cost(best[place]):
            best[place] = row
    return best


def _cell(
    best: Row | None, mildest: Row | None, speeds: Sequence[float], losses: Sequence[float]
) -> dict[str, Any]:
    cell: dict[str, Any] = {"speed": None, "loss": None}
    if best is not None and best.speedup is not None:
        cell |= {
            "speed": f"{best.speedup.value:.2f}",
            "speed_shade": _shade(best.speedup.value, min(speeds), max(speeds)),
            "speed_of": short(best.candidate),
        }
    if mildest is not None and mildest.score_loss is not None:
        loss = mildest.score_loss.value
        cell |= {
            "loss": f"{100 * loss + 0.0:.1f}",
            "loss_shade": _shade(max(0.0, loss), 0.0, max(losses)),
            "loss_of": short(mildest.candidate),
        }
    return cell


def _shade(value: float, low: float, high: float) -> int:
    return 0 if high <= low else min(SHADES - 1, int(SHADES * (value - low) / (high - low)))


def _pictures(run: Run) -> list[dict[str, Any]]:
    """Return a row of images per prompt, as data URIs with their measurements."""
    if run.pictures is None:
        return []
    return [
        {
            "prompt": prompt.text,
            "seed": prompt.seed,
            "shown": [_picture(run, column, number) for column in run.pictures.columns],
        }
        for number, prompt in enumerate(run.pictures.prompts)
    ]


def _picture(run: Run, column: Column, number: int) -> dict[str, Any]:
    measured = _measurement_of(run, column)
    figures = []
    if measured is not None and number < len(measured.scores):
        figures.append(f"score {measured.scores[number]:.1f}")
    if measured is not None and number < len(measured.psnr):
        figures.append(f"PSNR {measured.psnr[number]:.1f} dB")
    if measured is not None and number < len(measured.ssim):
        figures.append(f"SSIM {measured.ssim[number]:.2f}")
    return {
        "part": column.part,
        "name": PARTS.get(column.part, "Candidate"),
        "candidate": f"{column.steps} steps"
        if column.part == "rival"
        # No-break spaces: no candidate is broken in two.
        else short(column.candidate).replace(", ", ",\u00a0") or "nothing applied",
        "figures": ", ".join(figures),
        "uri": data_uri(column.files[number]),
    }


def _measurement_of(run: Run, column: Column) -> Measurement | None:
    if column.part == "baseline":
        return run.baseline
    if column.part == "rival":
        return run.beside.get(extras.fewer_steps(column.steps))
    row = next((row for row in run.rows if row.candidate == column.candidate), None)
    return None if row is None else row.measurement


def data_uri(path: Path) -> str:
    """Return an image as a data URI: unchanged, or as WebP if it is large."""
    content, kind = path.read_bytes(), "png"
    if len(content) > LARGEST_PNG:
        from PIL import Image

        buffer = io.BytesIO()
        with Image.open(path) as image:
            image.convert("RGB").save(buffer, "WEBP", quality=88)
        content, kind = buffer.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _search(run: Run) -> dict[str, Any]:
    """Return where the time went, how far candidates got, and why the search stopped."""
    rows, end, space, baseline = run.rows, run.record.end, run.record.space, run.baseline

    def beside(kind: Kind) -> float:
        return sum(m.seconds for name, m in run.beside.items() if extras.parse(name)[0] == kind)

    spent = {
        "baseline": beside(Kind.BASELINE) or baseline.seconds,
        "trials": sum(row.measurement.seconds for row in rows if row.measurement),
        "confirming": beside(Kind.HELD_OUT),
        "fewer steps": beside(Kind.STEPS),
    }
    total = sum(spent.values())
    return {
        "spent": [
            {"name": name, "time": duration(seconds), "share": seconds / total}
            for name, seconds in spent.items()
            if seconds > 0 and total > 0
        ],
        "total": duration(end.seconds if end and end.seconds else total),
        "stages": _stages(rows),
        "failed": sum(row.state == "failed" for row in rows),
        "dropped": sum(row.state in ("dropped", "open") for row in rows),
        "points": space.points,
        "distinct": space.distinct or 0,
        "refuted": list(_refuted(end)) if end else [],
        "resumed": end and end.resumed,
        "stopped": end and end.stopped,
        "could_win": end and end.could_win,
        "noise": f"{100 * run.noise_floor:.1f} %"
        if math.isfinite(run.noise_floor)
        else "an unknown distance",
        "noise_note": run.noise_note,
        "seconds_per_image": sum(baseline.seconds_per_image) / len(baseline.seconds_per_image),
        "score": sum(baseline.scores) / len(baseline.scores) if baseline.scores else None,
        "strategy": run.asked.strategy,
    }


def _refuted(end: End) -> Iterator[str]:
    """Yield each candidate that held-out prompts did not validate, with its probability."""
    chances = end.refuted_chances or [0.0] * len(end.refuted)
    for settings, chance in zip(end.refuted, chances, strict=False):
        yield f"{short(Candidate(settings))} {validated(chance)}"


def _stages(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return how many candidates were scored on how many prompts, and their states."""
    return [
        {
            "prompts": prompts,
            "count": sum(row.prompts == prompts for row in rows),
            "states": ", ".join(
                f"{count} {STATES[state]}"
                for state in STATES
                if (count := sum(r.prompts == prompts and r.state == state for r in rows))
            ),
        }
        for prompts in sorted({row.prompts for row in rows if row.prompts})
    ]
