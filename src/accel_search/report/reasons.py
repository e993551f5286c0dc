"""What a verdict means, and what to do about an inconclusive one, in sentences."""

from __future__ import annotations

import math

from accel_search.core.intervals import Estimate, Verdict, judge
from accel_search.core.named import Named
from accel_search.core.trial import Goal
from accel_search.report.format import counted


def noise_text(floor: float) -> str:
    """Return how far two timings of one pipeline may lie apart, as a clause."""
    if math.isinf(floor):
        return "the timing noise is unknown, because nothing was timed twice"
    return f"two copies of one pipeline may differ by {100 * floor:.1f} % here"


def required_speed(verdict: Verdict, required: float) -> str:
    """Return what a verdict on a required speedup means, as a clause."""
    return {
        Verdict.PASS: f"The speedup's whole interval is at the required {required:g} or above",
        Verdict.FAIL: f"The speedup's whole interval is below the required {required:g}",
        Verdict.INCONCLUSIVE: f"The required {required:g} is within the speedup's interval",
    }[verdict]


def more_pairs(pairs: int) -> str:
    """Return what narrows the interval of a speedup."""
    return f"More --timing_pairs than {pairs} narrow its interval."


def quality(
    goal: Goal,
    loss: Estimate,
    prompts: int,
    needed: int | None,
    *,
    psnr: float | None,
    ssim: float | None,
    tail_loss: float | None,
) -> list[str]:
    """Return a sentence for each bound on quality.

    Args:
        goal: The bounds.
        loss: The measured loss of score.
        prompts: What it was measured on.
        needed: About how many prompts would settle an inconclusive verdict; None otherwise.
        psnr: Mean PSNR to the baseline's images; None where not measured.
        ssim: Mean structural similarity to them; None where not measured.
        tail_loss: Loss over the worst tenth of prompts; None where unknown.
    """
    bound = f"the allowed {100 * goal.max_score_loss:g} %"
    verdict = judge(loss, goal.max_score_loss, prompts)
    message = {
        Verdict.PASS: f"The score loss is within {bound}",
        Verdict.FAIL: f"The score loss is beyond {bound}",
        Verdict.INCONCLUSIVE: f"The score loss may be within {bound} or beyond",
    }[verdict]
    on = counted(prompts, "prompt")
    lines = [f"{message}, on {on}."]
    if verdict is Verdict.INCONCLUSIVE and loss.high <= goal.max_score_loss:
        lines = [f"Its interval is within {bound}, but {on} are too few for a loss to pass."]
    if needed is not None:
        lines.append(f"About {needed:,} prompts would settle it (--num_samples).")
    for name, value, least in (("PSNR", psnr, goal.min_psnr), ("SSIM", ssim, goal.min_ssim)):
        if least is not None:
            has = "not measured" if value is None else f"{value:.2f} on average"
            lines.append(f"{name} to the baseline's images: {has}; the bound is {least:g}.")
    if goal.max_tail_loss is not None and tail_loss is not None:
        lines.append(
            f"The worst tenth of prompts loses {100 * tail_loss:.1f} %; allowed "
            f"are {100 * goal.max_tail_loss:g} %."
        )
    return lines


def of_named(named: Named, pairs: int) -> list[str]:
    """Return why a named candidate has its verdict.

    Args:
        named: The candidate.
        pairs: Value of `--timing_pairs`.
    """
    trial, own = named.assessed.trial, named.assessed.assessment
    if own is None:
        failure = trial.failure
        return ["It failed." if failure is None else f"{failure.kind}: {failure.message}"]
    verdict, required = named.speedup_verdict, named.goal.min_speedup
    if required is not None:
        speed = required_speed(verdict, required)
    else:
        speed = {
            Verdict.PASS: "It is faster than the baseline, beyond the noise",
            Verdict.FAIL: "It is slower than the baseline",
            Verdict.INCONCLUSIVE: "It may be no faster than the baseline",
        }[verdict]
    lines = [f"{speed}; {noise_text(own.noise_floor)}."]
    if verdict is Verdict.INCONCLUSIVE:
        lines.append(more_pairs(pairs))
    needed = own.prompts_needed if named.score_verdict is Verdict.INCONCLUSIVE else None
    return lines + quality(
        named.goal,
        own.score_loss,
        own.prompts,
        needed,
        psnr=own.psnr,
        ssim=own.ssim,
        tail_loss=own.tail_loss,
    )
