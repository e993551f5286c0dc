"""The result of `--verify` as text and as JSON."""

from __future__ import annotations

import math
import textwrap
from datetime import UTC, datetime
from typing import Any

from accel_search.core.intervals import Estimate, Verdict
from accel_search.core.workload import FIELDS
from accel_search.report import reasons
from accel_search.report.console.color import painted
from accel_search.report.console.doubts import WIDTH
from accel_search.report.format import factor, percent, settings_lines
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
        told = why(verification, settings.timing_pairs)
        lines += ["", *(text for line in told for text in textwrap.wrap(line, WIDTH))]
    return "\n".join([*lines, "", *_differences(verification)]).rstrip()


def _row(name: str, here: Estimate | None, stored: Estimate | None, write: Any) -> str:
    texts = ["-" if estimate is None else write(estimate) for estimate in (here, stored)]
    return f"  {name:10}  {texts[0]:18}  {texts[1]:18}  "


def _painted(verdict: Verdict, colour: bool) -> str:
    return painted(str(verdict), str(verdict), colour=colour)


def why(verification: Verification, pairs: int) -> list[str]:
    """Return what each verdict means, and what to do about an inconclusive one.

    Args:
        verification: Of a candidate that did not fail.
        pairs: Value of `--timing_pairs`.
    """
    goal = verification.stored.goal
    verdict = verification.speedup_verdict
    if goal.min_speedup is None:
        speed = {
            Verdict.PASS: "The speedup is a gain, and not below the stored interval",
            Verdict.FAIL: "The speedup's whole interval is below the stored one",
            Verdict.INCONCLUSIVE: "The speedup may be lower than stored, or no gain",
        }[verdict]
    else:
        speed = reasons.required_speed(verdict, goal.min_speedup)
    lines = [f"{speed}; {reasons.noise_text(verification.noise_floor)}."]
    if verdict is Verdict.INCONCLUSIVE:
        lines.append(reasons.more_pairs(pairs))
    if verification.score_loss is not None:
        lines += reasons.quality(
            goal,
            verification.score_loss,
            verification.prompts,
            verification.prompts_needed,
            psnr=verification.psnr,
            ssim=verification.ssim,
            tail_loss=verification.tail_loss,
        )
    return lines


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
            **figures_json(verification.speedup),
            "stored": figures_json(stored.speedup),
            "required": stored.goal.min_speedup,
            "noise_floor": rounded_json(verification.noise_floor),
            "baseline_seconds_per_image": rounded(verification.baseline_seconds_per_image),
            "seconds_per_image": rounded_json(verification.candidate_seconds_per_image),
        },
        "score_loss": None
        if verification.score_verdict is None
        else {
            "verdict": str(verification.score_verdict),
            **figures_json(verification.score_loss),
            "stored": figures_json(stored.score_loss),
            "allowed": stored.goal.max_score_loss,
            "prompts": verification.prompts,
            "prompts_needed": verification.prompts_needed,
            "psnr": rounded_json(verification.psnr),
            "min_psnr": stored.goal.min_psnr,
            "ssim": rounded_json(verification.ssim),
            "min_ssim": stored.goal.min_ssim,
            "tail_loss": rounded_json(verification.tail_loss),
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


def figures_json(estimate: Estimate | None) -> dict[str, Any]:
    """Return an estimate as plain JSON types."""
    if estimate is None:
        return {"value": None, "interval": None}
    return {
        "value": rounded(estimate.value),
        "interval": interval_of(estimate),
    }


def rounded_json(value: float | None) -> float | None:
    """Return a number as files hold it; None where it is unknown or infinite."""
    return None if value is None or math.isinf(value) else rounded(value)
