"""Write figures, settings and lines of Python the same way everywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accel_search.core.candidate import Candidate
from accel_search.core.loras import Lora, loading_lines
from accel_search.core.schedulers import scheduler_name
from accel_search.core.trial import HOPELESS, SURE, Goal
from accel_search.storage.entries import Figures

if TYPE_CHECKING:  # They load SciPy, which `--list` does without.
    from accel_search.core.assessment import Assessment
    from accel_search.core.intervals import Estimate

UNKNOWN = "[unknown]"
"""In place of an unknown interval: one prompt, or no timed pairs."""
CODE_WIDTH = 78
"""Columns of a line of Python; a longer call gets a line per argument."""
MOST_PROMPTS = 5_000
"""Prompts of the largest set that comes with a name, COCO's; more are not asked for."""


def factor(estimate: Estimate) -> str:
    """Write a speedup with its interval: `2.13 [2.05, 2.21]`, or `2.13 [unknown]`."""
    if not estimate.is_bounded:
        return f"{estimate.value:.2f} {UNKNOWN}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def points(fraction: float) -> str:
    """Write a fraction in percent: `0.7 %`."""
    # Adding zero turns -0.0 into 0.0.
    return f"{round(100 * fraction, 1) + 0.0:.1f} %"


def percent(estimate: Estimate) -> str:
    """Write a loss with its interval: `0.7 % [0.1, 1.4]`, or `0.7 % [unknown]`."""
    value = points(estimate.value)
    if not estimate.is_bounded:
        return f"{value} {UNKNOWN}"
    low, high = (round(100 * end, 1) + 0.0 for end in estimate.as_list())
    return f"{value} [{low:.1f}, {high:.1f}]"


def figures(assessment: Assessment) -> str:
    """Write a trial's figures and verdict, in the words that scripts look for."""
    from accel_search.core.assessment import verdict

    after = "" if assessment.is_complete else f" after {counted(assessment.prompts, 'prompt')}"
    return (
        f"speedup: {factor(assessment.speedup)}  "
        f"score loss: {percent(assessment.score_loss)}  {verdict(assessment)}{after}"
    )


def within(goal: Goal) -> str:
    """Write all bounds of a goal: `within 2 % of the baseline's score, PSNR of 30 dB or more`."""
    parts = [f"within {100 * goal.max_score_loss:g} % of the baseline's score"]
    if goal.max_tail_loss is not None:
        parts.append(f"{100 * goal.max_tail_loss:g} % on the worst tenth of prompts")
    if goal.min_psnr is not None:
        parts.append(f"PSNR of {goal.min_psnr:g} dB or more")
    if goal.min_ssim is not None:
        parts.append(f"SSIM of {goal.min_ssim:g} or more")
    return ", ".join(parts)


def validated(chance: float | None) -> str:
    """Write how a candidate did on held-out prompts, and how likely it is within the bound.

    Args:
        chance: The probability; None where it failed there, and 0 where it broke another bound.
    """
    if chance is None:
        return "failed there"
    if chance >= SURE:
        return "confirmed"
    word = "not validated" if chance >= HOPELESS else "rejected"
    return f"{word} ({100 * chance:.0f} %)" if chance else word


def counted(count: int, noun: str) -> str:
    """Write a number with its noun: `1 step`, `1,200 steps`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Write seconds as `42 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def python_lines(
    settings: str, *options: str, compiled: bool, loras: Sequence[Lora] | None = None
) -> list[str]:
    """Return the lines of Python that accelerate a pipeline as it was measured.

    `settings` is an expression of the settings or of their file; `options` are further arguments.
    `loras` are loaded first, unless the pipeline has them.
    """
    names = "accelerate, compile_unet" if compiled else "accelerate"
    arguments = ("pipe", settings, *options)
    call = [f"accelerate({', '.join(arguments)})"]
    if "\n" not in settings and len(call[0]) > CODE_WIDTH:
        call = ["accelerate(", *(f"    {argument}," for argument in arguments), ")"]
    return [
        f"from accel_search import {names}",
        *(["# Unless the pipeline has them:", *loading_lines(loras)] if loras else []),
        *(["compile_unet(pipe)"] if compiled else []),
        *call,
    ]


def choosing(choice: Mapping[str, Any]) -> list[str]:
    """Return arguments of `accelerate` as Python."""
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in choice.items()]


def scheduler_option(class_name: str, asked: str | None) -> list[str]:
    """Return the argument for the scheduler of a search; none where it has no name."""
    name = scheduler_name(class_name, asked)
    return [] if name == class_name else choosing({"scheduler": name})


def literal(settings: Mapping[str, Any], indent: int = 0) -> str:
    """Return settings as a Python literal, a line per accelerator if there are several."""
    parts = [
        f"{json.dumps(name)}: {{"
        + ", ".join(f"{json.dumps(key)}: {value!r}" for key, value in params.items())
        + "}"
        for name, params in settings.items()
    ]
    if len(parts) == 1 and len(parts[0]) + indent < 45:
        return "{" + parts[0] + "}"
    pad = " " * (indent + 4)
    return "{\n" + "".join(f"{pad}{part},\n" for part in parts) + " " * indent + "}"


UNSTEADY = (
    "The two timings differ by more than their intervals allow: the machine's speed varied. Count "
    "on the lower one, or search again with more --timing_pairs."
)
"""For a winner whose speedup in the search and on held-out prompts disagree."""


def to_settle(shown: Assessment | Figures, searched: int, *, is_cut_short: bool) -> str:
    """Return what would settle whether a winner's loss on held-out prompts is within the bound.

    Args:
        shown: The winner's figures on held-out prompts.
        searched: Prompts of the search, which come from the same set.
        is_cut_short: Whether the time budget left held-out prompts untried.
    """
    if is_cut_short:
        return (
            "Not validated: --time_budget was spent. The same command without it goes on with "
            "further held-out prompts."
        )
    needed = shown.prompts_needed
    if needed is None or needed > MOST_PROMPTS:
        return "Its loss is too near the bound for any number of prompts to tell: move the bound."
    needed = max(needed, shown.prompts + 1)
    return (
        "More prompts would settle whether its loss is within the bound: --held_out_samples "
        f"{needed}, where --prompts has {searched + needed} or more."
    )


def settings_lines(candidate: Candidate) -> list[str]:
    """Return a line per accelerator, with its parameters."""
    width = max(len(name) for name in candidate)
    return [
        f"{name:{width}}  " + "  ".join(f"{key}={value}" for key, value in params.items())
        for name, params in candidate.items()
    ]


def short(candidate: Candidate) -> str:
    """Write a candidate briefly: `deepcache(3, 0)`, values in the parameters' order."""
    return " ".join(
        f"{name}({', '.join(str(value) for value in params.values())})"
        for name, params in candidate.items()
    )
