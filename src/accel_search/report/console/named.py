"""The verdicts on named settings as text and as JSON."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from typing import Any

from accel_search.core.named import Comparison, Named, NamedOutcome
from accel_search.core.workload import Provenance
from accel_search.report.console.color import painted
from accel_search.report.console.doubts import WIDTH
from accel_search.report.console.summary import shown
from accel_search.report.console.verification import figures_json, rounded_json
from accel_search.report.format import counted, duration, factor, percent, short, within
from accel_search.report.reasons import of_named
from accel_search.settings import Settings


def named_text(outcome: NamedOutcome, settings: Settings, *, colour: bool = False) -> str:
    """Return a row and the reasons of each candidate, and the comparisons."""
    return "\n\n".join(
        part
        for part in (
            f"The named settings, by the goal: {goal_text(settings)}.",
            _table(outcome, colour),
            "\n".join(line for named in outcome.named for line in _why(named, settings)),
            _comparisons(outcome),
            _coverage(outcome),
        )
        if part
    )


def goal_text(settings: Settings) -> str:
    """Return the goal that named settings are judged by."""
    least = settings.req_speedup
    speed = "faster than the baseline" if least is None else f"a speedup of {least:g} or more"
    return f"{speed}, {within(settings.goal)}"


def _table(outcome: NamedOutcome, colour: bool) -> str:
    rows = []
    for named in outcome.named:
        own = named.assessed.assessment
        figures = ("-", "-") if own is None else (factor(own.speedup), percent(own.score_loss))
        rows.append((*figures, str(named.verdict)))
    speed, loss, verdict = (
        max(map(len, column)) for column in zip(("speedup", "score loss", ""), *rows, strict=True)
    )
    lines = [f"  {'speedup':{speed}}  {'score loss':{loss}}  verdict"]
    for named, row in zip(outcome.named, rows, strict=True):
        cell = painted(f"{row[2]:{verdict}}", row[2], colour=colour)
        lines.append(f"  {row[0]:{speed}}  {row[1]:{loss}}  {cell}  {short(named.candidate)}")
        pad = " " * (speed + loss + verdict + 8)
        lines += [f"{pad}= {short(other)}, the same computation" for other in named.same]
    return "\n".join(lines)


def _why(named: Named, settings: Settings) -> list[str]:
    sentences = " ".join(map(shown, of_named(named, settings.timing_pairs)))
    return textwrap.wrap(
        f"{short(named.candidate)}: {named.verdict}. {sentences}", WIDTH, subsequent_indent="  "
    )


def _comparisons(outcome: NamedOutcome) -> str:
    """Return how the further candidates compare with the first."""
    if len(outcome.named) < 2:
        return ""
    first = short(outcome.named[0].candidate)
    rows = [(factor(one.speed), percent(one.loss)) for one in outcome.comparisons]
    speed, loss = (
        max(map(len, column)) for column in zip(("speed", "score loss"), *rows, strict=True)
    )
    lines = [f"Compared with {first}, whose speed is 1 and whose loss counts as 0:", ""]
    lines += [f"  {'speed':{speed}}  score loss"] if rows else []
    for (faster, lost), comparison in zip(rows, outcome.comparisons, strict=True):
        name = f"{short(comparison.candidate)}: {compared_words(comparison)}"
        lines.append(f"  {faster:{speed}}  {lost:{loss}}  {name}")
    done = {comparison.candidate for comparison in outcome.comparisons}
    for named in outcome.named[1:]:
        if named.candidate not in done:
            reason = "one failed, or a batch was halved in between"
            lines.append(f"  {short(named.candidate)}: not compared, {reason}")
    return "\n".join(lines)


def compared_words(comparison: Comparison) -> str:
    """Return what a comparison shows, beyond its intervals."""
    speed, loss = comparison.speed, comparison.loss
    fast = "faster" if speed.low > 1 else "slower" if speed.high < 1 else ""
    score = "loses more score" if loss.low > 0 else "loses less score" if loss.high < 0 else ""
    unclear = [what for what, known in (("speed", fast), ("score", score)) if not known]
    parts = [fast, score, f"no clear difference in {' or '.join(unclear)}" if unclear else ""]
    return ", ".join(part for part in parts if part)


def _coverage(outcome: NamedOutcome) -> str:
    whole = outcome.outcome
    measured = sum(trial.assessment is not None for trial in whole.trials)
    failed = len(whole.trials) - measured
    return textwrap.fill(
        f"{measured} measured on {counted(len(whole.baseline.scores), 'prompt')}"
        + (f", {failed} failed" if failed else "")
        + (f", {whole.resumed} in an earlier run" if whole.resumed else "")
        + f", in {duration(whole.seconds)}. The result file is left as it is: it holds what "
        "searches found.",
        WIDTH,
    )


def named_json(
    outcome: NamedOutcome, settings: Settings, study: str, provenance: Provenance | None
) -> dict[str, Any]:
    """Return the verdicts as plain JSON types."""
    return {
        "verdict": str(outcome.verdict),
        "candidates": [_candidate(named, settings) for named in outcome.named],
        "comparisons": [
            {
                "settings": comparison.candidate.as_dict(),
                "against": comparison.against.as_dict(),
                "speed": figures_json(comparison.speed),
                "score_loss": figures_json(comparison.loss),
            }
            for comparison in outcome.comparisons
        ],
        "study": study,
        "provenance": None if provenance is None else provenance.as_dict(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _candidate(named: Named, settings: Settings) -> dict[str, Any]:
    own, failure = named.assessed.assessment, named.assessed.trial.failure

    def known(name: str) -> Any:
        return None if own is None else getattr(own, name)

    return {
        "verdict": str(named.verdict),
        "settings": named.candidate.as_dict(),
        "same": [other.as_dict() for other in named.same],
        "speedup": {
            "verdict": str(named.speedup_verdict),
            **figures_json(known("speedup")),
            "required": settings.req_speedup,
            "noise_floor": rounded_json(known("noise_floor")),
        },
        "score_loss": {
            "verdict": str(named.score_verdict),
            **figures_json(known("score_loss")),
            "allowed": settings.req_score_loss,
            "prompts": known("prompts"),
            "prompts_needed": known("prompts_needed"),
            "psnr": rounded_json(known("psnr")),
            "ssim": rounded_json(known("ssim")),
            "tail_loss": rounded_json(known("tail_loss")),
        },
        "failure": None if failure is None else f"{failure.kind}: {failure.message}",
    }
