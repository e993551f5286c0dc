"""The result of `--verify` as text and as JSON."""

from __future__ import annotations

import math
import textwrap
from datetime import UTC, datetime
from typing import Any

from accel_search.core.intervals import Estimate, Verdict, judge
from accel_search.core.workload import FIELDS
from accel_search.report.console.color import painted
from accel_search.report.console.doubts import WIDTH
from accel_search.report.format import counted, factor, percent, settings_lines
from accel_search.search.verification import Verification
from accel_search.settings import Settings
from accel_search.storage.entries import interval_of, rounded

_HEADLINES = {
    Verdict.PASS: "holds here",
    Verdict.FAIL: "does not hold here",
    Verdict.INCONCLUSIVE: "may or may not hold here",
}


def verified_text(verification: Verification, settings: Settings, *, colour: bool = False) -> str:
    """Return both verdicts with their intervals and the stored figures."""
    stored, verdict = verification.stored, verification.verdict
    lines = [
        f"{_painted(verdict, colour)}: the result stored in {stored.file} {_HEADLINES[verdict]}.",
        "",
        *(f"  {line}" for line in settings_lines(stored.candidate)),
        "",
    ]
    if verification.failure is not None:
        lines += textwrap.wrap(
            f"failed: {verification.failure}", WIDTH, initial_indent="  ", subsequent_indent="    "
        )
    else:
        lines += [
            f"  {'':10}  {'here':18}  {'stored':18}",
            _row("speedup", verification.speedup, stored.speedup, factor)
            + _painted(verification.speedup_verdict, colour),
        ]
        if verification.score_verdict is not None:
            lines.append(
                _row("score loss", verification.score_loss, stored.score_loss, percent)
                + _painted(verification.score_verdict, colour)
            )
        lines += ["", *_why(verification, settings)]
    return "\n".join([*lines, "", *_differences(verification)]).rstrip()


def _row(name: str, here: Estimate | None, stored: Estimate | None, write: Any) -> str:
    texts = ["-" if estimate is None else write(estimate) for estimate in (here, stored)]
    return f"  {name:10}  {texts[0]:18}  {texts[1]:18}  "


def _painted(verdict: Verdict, colour: bool) -> str:
    return painted(str(verdict), str(verdict), colour=colour)


def _why(verification: Verification, settings: Settings) -> list[str]:
    """Return what each verdict means, and what to do about an inconclusive one."""
    required = verification.stored.goal.min_speedup
    if required is None:
        speed = {
            Verdict.PASS: "The speedup is a gain, and not below the stored interval",
            Verdict.FAIL: "The speedup's whole interval is below the stored one",
            Verdict.INCONCLUSIVE: "The speedup may be lower than stored, or no gain",
        }
    else:
        speed = {
            Verdict.PASS: f"The speedup's whole interval is at the required {required:g} or above",
            Verdict.FAIL: f"The speedup's whole interval is below the required {required:g}",
            Verdict.INCONCLUSIVE: f"The required {required:g} is within the speedup's interval",
        }
    noise = f"two copies of one pipeline may differ by {100 * verification.noise_floor:.1f} % here"
    if math.isinf(verification.noise_floor):
        noise = "the timing noise is unknown, because nothing was timed twice"
    lines = [f"{speed[verification.speedup_verdict]}; {noise}."]
    if verification.speedup_verdict is Verdict.INCONCLUSIVE:
        lines.append(f"More --timing_pairs than {settings.timing_pairs} narrow its interval.")
    if verification.score_loss is not None:
        goal = verification.stored.goal
        bound = f"the allowed {100 * goal.max_score_loss:g} %"
        message = {
            Verdict.PASS: f"The score loss is within {bound}",
            Verdict.FAIL: f"The score loss is beyond {bound}",
            Verdict.INCONCLUSIVE: f"The score loss may be within {bound} or beyond",
        }[judge(verification.score_loss, goal.max_score_loss, verification.prompts)]
        lines.append(f"{message}, on {counted(verification.prompts, 'prompt')}.")
        if verification.prompts_needed is not None:
            lines.append(
                f"About {verification.prompts_needed:,} prompts would settle it (--num_samples)."
            )
        for name, value, least in (
            ("PSNR", verification.psnr, goal.min_psnr),
            ("SSIM", verification.ssim, goal.min_ssim),
        ):
            if least is not None:
                has = "not measured" if value is None else f"{value:.2f} on average"
                lines.append(f"{name} to the baseline's images: {has}; the bound is {least:g}.")
        if goal.max_tail_loss is not None and verification.tail_loss is not None:
            lines.append(
                f"The worst tenth of prompts loses {100 * verification.tail_loss:.1f} %; allowed "
                f"are {100 * goal.max_tail_loss:g} %."
            )
    return [text for line in lines for text in textwrap.wrap(line, WIDTH)]


def _differences(verification: Verification) -> list[str]:
    if verification.provenance is None:
        return ["The trials were recorded: the machine is unknown."]
    if not verification.stored.provenance:
        return ["The stored result does not name its machine."]
    changes = verification.differences
    if not changes:
        return ["Machine, versions and prompts are the same as for the stored result."]
    return [
        "Differences from the stored result's machine:",
        *(
            f"  {FIELDS.get(change.name, change.name)}: {change.stored} -> {change.here}"
            for change in changes
        ),
    ]


def verified_json(verification: Verification) -> dict[str, Any]:
    """Return a verification as plain JSON types."""
    stored = verification.stored
    return {
        "verdict": str(verification.verdict),
        "settings": stored.candidate.as_dict(),
        "file": stored.file,
        "speedup": {
            "verdict": str(verification.speedup_verdict),
            **_figures(verification.speedup),
            "stored": _figures(stored.speedup),
            "required": stored.goal.min_speedup,
            "noise_floor": _rounded(verification.noise_floor),
            "baseline_seconds_per_image": rounded(verification.baseline_seconds_per_image),
            "seconds_per_image": _rounded(verification.candidate_seconds_per_image),
        },
        "score_loss": None
        if verification.score_verdict is None
        else {
            "verdict": str(verification.score_verdict),
            **_figures(verification.score_loss),
            "stored": _figures(stored.score_loss),
            "allowed": stored.goal.max_score_loss,
            "prompts": verification.prompts,
            "prompts_needed": verification.prompts_needed,
            "psnr": _rounded(verification.psnr),
            "min_psnr": stored.goal.min_psnr,
            "ssim": _rounded(verification.ssim),
            "min_ssim": stored.goal.min_ssim,
            "tail_loss": _rounded(verification.tail_loss),
            "max_tail_loss": stored.goal.max_tail_loss,
        },
        "failure": verification.failure,
        "differences": {
            change.name: {"stored": change.stored, "here": change.here}
            for change in verification.differences
        },
        "stored_provenance": dict(stored.provenance) or None,
        "provenance": None
        if verification.provenance is None
        else verification.provenance.as_dict(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _figures(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {"value": None, "interval": None}
    return {
        "value": rounded(estimate.value),
        "interval": interval_of(estimate),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else rounded(value)
