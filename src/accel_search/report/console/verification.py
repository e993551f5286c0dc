"""What a verification says, to a reader and to a script."""

from __future__ import annotations

import math
import textwrap
from datetime import UTC, datetime
from typing import Any

from accel_search.core.intervals import Estimate, Verdict, judge
from accel_search.report.console.color import painted
from accel_search.report.console.summary import WIDTH
from accel_search.report.format import factor, percent, settings_lines
from accel_search.search.verification import Verification
from accel_search.settings import Settings
from accel_search.storage.entries import interval_of, rounded

_HEADLINES = {
    Verdict.PASS: "holds here",
    Verdict.FAIL: "does not hold here",
    Verdict.INCONCLUSIVE: "cannot be told to hold here, nor not to",
}


def verified_text(found: Verification, settings: Settings, *, colour: bool = False) -> str:
    """Return both verdicts with their intervals, the stored figures beside them."""
    stored = found.stored
    word = painted(str(found.verdict), str(found.verdict), colour=colour)
    lines = [
        f"{word}: the result stored in {stored.file} {_HEADLINES[found.verdict]}.",
        "",
        *(f"  {line}" for line in settings_lines(stored.candidate)),
        "",
    ]
    if found.failure is not None:
        lines += textwrap.wrap(
            f"failed: {found.failure}", WIDTH, initial_indent="  ", subsequent_indent="    "
        )
    else:
        lines += [
            f"  {'':10}  {'here':18}  {'stored':18}",
            _row("speedup", found.speedup, stored.speedup, factor)
            + _said(found.speedup_verdict, colour),
        ]
        if found.score_verdict is not None:
            lines.append(
                _row("score loss", found.score_loss, stored.score_loss, percent)
                + _said(found.score_verdict, colour)
            )
        lines += ["", *_why(found, settings)]
    return "\n".join([*lines, "", *_differences(found)]).rstrip()


def _row(name: str, here: Estimate | None, stored: Estimate | None, write: Any) -> str:
    texts = ["-" if each is None else write(each) for each in (here, stored)]
    return f"  {name:10}  {texts[0]:18}  {texts[1]:18}  "


def _said(verdict: Verdict, colour: bool) -> str:
    return painted(str(verdict), str(verdict), colour=colour)


def _why(found: Verification, settings: Settings) -> list[str]:
    """Say what each verdict means, and what to do about one that is open."""
    required = found.stored.goal.min_speedup
    if required is None:
        speed = {
            Verdict.PASS: "The speedup is a gain, and not below the stored interval",
            Verdict.FAIL: "The speedup's whole interval is below the stored one",
            Verdict.INCONCLUSIVE: "The speedup cannot be told from a lower one, or from none",
        }
    else:
        speed = {
            Verdict.PASS: f"The speedup's whole interval is at the required {required:g} or above",
            Verdict.FAIL: f"The speedup's whole interval is below the required {required:g}",
            Verdict.INCONCLUSIVE: f"The required {required:g} is within the speedup's interval",
        }
    noise = f"two copies of one pipeline may differ by {100 * found.noise_floor:.1f} % here"
    if math.isinf(found.noise_floor):
        noise = "how far two copies of one pipeline may differ is unknown: nothing was timed twice"
    lines = [f"{speed[found.speedup_verdict]}; {noise}."]
    if found.speedup_verdict is Verdict.INCONCLUSIVE:
        lines.append(f"More --timing_pairs than {settings.timing_pairs} narrow its interval.")
    if found.score_loss is not None:
        goal = found.stored.goal
        bound = f"{100 * goal.max_score_loss:g} % that may be lost"
        said = {
            Verdict.PASS: f"The score's loss is within the {bound}",
            Verdict.FAIL: f"The score's loss is beyond the {bound}",
            Verdict.INCONCLUSIVE: f"The score's loss cannot be told from the {bound}",
        }[judge(found.score_loss, goal.max_score_loss)]
        lines.append(f"{said}, on {found.prompts} prompts.")
        if found.prompts_needed is not None:
            lines.append(f"About {found.prompts_needed:,} prompts would settle it (--num_samples).")
        for name, value, least in (
            ("PSNR", found.psnr, goal.min_psnr),
            ("SSIM", found.ssim, goal.min_ssim),
        ):
            if least is not None:
                has = "not measured" if value is None else f"{value:.2f} on average"
                lines.append(f"{name} to the baseline's pictures: {has}; at least {least:g} asked.")
    return [text for line in lines for text in textwrap.wrap(line, WIDTH)]


def _differences(found: Verification) -> list[str]:
    if found.provenance is None:
        return ["From recorded trials: on what machine they were measured is not known."]
    if not found.stored.provenance:
        return ["The stored result does not say where it was measured."]
    if not found.differences:
        return ["Machine, versions and prompts are those that it was stored with."]
    return [
        "Other than where it was stored:",
        *(f"  {each.name}: {each.stored} -> {each.here}" for each in found.differences),
    ]


def verified_json(found: Verification) -> dict[str, Any]:
    """Return a verification as plain JSON types."""
    stored = found.stored
    return {
        "verdict": str(found.verdict),
        "settings": stored.candidate.as_dict(),
        "file": stored.file,
        "speedup": {
            "verdict": str(found.speedup_verdict),
            **_figures(found.speedup),
            "stored": _figures(stored.speedup),
            "required": stored.goal.min_speedup,
            "noise_floor": _rounded(found.noise_floor),
            "baseline_seconds_per_image": rounded(found.baseline_seconds_per_image),
            "seconds_per_image": _rounded(found.candidate_seconds_per_image),
        },
        "score_loss": None
        if found.score_verdict is None
        else {
            "verdict": str(found.score_verdict),
            **_figures(found.score_loss),
            "stored": _figures(stored.score_loss),
            "allowed": stored.goal.max_score_loss,
            "prompts": found.prompts,
            "prompts_needed": found.prompts_needed,
            "psnr": _rounded(found.psnr),
            "min_psnr": stored.goal.min_psnr,
            "ssim": _rounded(found.ssim),
            "min_ssim": stored.goal.min_ssim,
        },
        "failure": found.failure,
        "differences": {
            each.name: {"stored": each.stored, "here": each.here} for each in found.differences
        },
        "stored_provenance": dict(stored.provenance) or None,
        "provenance": None if found.provenance is None else found.provenance.as_dict(),
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
