"""The summary at the end of a search."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from accel_search.cli.program import in_one_line
from accel_search.core.assessment import AssessedTrial, verdict
from accel_search.core.candidate import Candidate
from accel_search.core.outcome import Outcome
from accel_search.core.secrets import without_secrets
from accel_search.core.trial import said_of
from accel_search.core.workload import Workload
from accel_search.errors import NothingMeasured
from accel_search.report.console.color import painted
from accel_search.report.format import (
    UNSTEADY,
    choosing,
    duration,
    factor,
    literal,
    percent,
    python_lines,
    scheduler_option,
    settings_lines,
    short,
)
from accel_search.search.space import JointSpace
from accel_search.settings import Settings
from accel_search.storage.entries import BoundEntry, SearchEntry
from accel_search.storage.lookup import Wanted, arguments_for

SHOWN = 5
"""Trials in the table of the best few."""
WIDTH = 80
"""Columns of a terminal that the text fits."""
VERDICT_WIDTH = 12
LONGEST = 4 * WIDTH
"""Characters shown of a failure's message."""


def summary(
    outcome: Outcome,
    settings: Settings,
    space: JointSpace,
    *,
    use: Sequence[str] = (),
    no_gain: str | None = None,
    colour: bool = False,
) -> str:
    """Return the text that ends a search: the winner, the best few, the rival, how to use it.

    Args:
        outcome: What was found.
        settings: What was asked.
        space: What was searched.
        use: From `snippet`; empty where there is nothing to use.
        no_gain: What `explain.of_search` says of it.
        colour: Whether verdicts are coloured.
    """
    return "\n\n".join(
        part
        for part in (
            _headline(outcome, settings),
            _best_few(outcome, settings, colour),
            _refused_for_noise(outcome, settings, bool(no_gain) and len(space.targets) == 1),
            _ablations(outcome),
            textwrap.fill(no_gain or "", WIDTH),
            _rival(outcome),
            _failures(outcome),
            _coverage(outcome, space),
            _use(use),
        )
        if part
    )


def _headline(outcome: Outcome, settings: Settings) -> str:
    bound = f"{100 * settings.req_score_loss:g} %"
    goal = (
        "largest speedup"
        if settings.req_speedup is None
        else f"first speedup of {settings.req_speedup:g} or more"
    )
    if outcome.winner is None or outcome.winner.assessment is None:
        return f"No candidate meets the goal: {goal} within {bound} of the baseline's score."
    found = outcome.winner.assessment
    lines = [
        f"The {goal} within {bound} of the baseline's score:",
        "",
        *(f"  {line}" for line in settings_lines(outcome.winner.trial.candidate)),
        "",
        f"  speedup: {factor(found.speedup)}",
        f"  score loss: {percent(found.score_loss)}  {found.verdict}, {found.prompts} prompts",
    ]
    if outcome.held_out is not None:
        held = outcome.held_out
        lines += [
            f"  on {held.prompts} prompts the search never saw: speedup: {factor(held.speedup)}",
            f"    score loss: {percent(held.score_loss)}  {held.verdict}",
        ]
        if not held.speedup.agrees_with(found.speedup):
            lines += textwrap.wrap(UNSTEADY, WIDTH, initial_indent="  ", subsequent_indent="  ")
    for candidate in outcome.refuted:
        lines += textwrap.wrap(
            f"faster, but not confirmed on those: {candidate}",
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
        )
    return "\n".join(lines)


def _best_few(outcome: Outcome, settings: Settings, colour: bool) -> str:
    """Return the fastest few within the bound, and the fastest of all for comparison."""
    measured = [each for each in outcome.trials if each.assessment is not None]
    if not measured:
        return ""
    # Those that pass come first, then those that cannot be told from the bound.
    order = {"pass": 0, "inconclusive": 1, "open": 2, "fail": 3}
    ranked = sorted(
        measured,
        key=lambda each: (
            order[verdict(each.assessment)],  # type: ignore[arg-type]
            -each.assessment.speedup.value,  # type: ignore[union-attr]
        ),
    )
    shown = ranked[:SHOWN]
    if outcome.winner is not None and outcome.winner not in shown:
        shown = [outcome.winner, *shown[:-1]]
    return "\n".join(
        [
            f"  {'speedup':17}  {'score loss':18}  verdict",
            *(_row(each, outcome, colour) for each in shown),
            *_why_not_the_first(outcome, settings),
        ]
    )


def _refused_for_noise(outcome: Outcome, settings: Settings, is_told: bool) -> str:
    """Say what would have won but for the noise, where nothing has, and what tells.

    Args:
        outcome: What was found.
        settings: What was asked.
        is_told: Whether it is said elsewhere that the timing is noisy, as of a single target.
    """
    refused = [each for each in outcome.trials if each.is_refused_for_noise(settings.goal)]
    if outcome.winner is not None or not refused:
        return ""
    first = max(refused, key=lambda each: each.assessment.speedup.value)  # type: ignore[union-attr]
    assert first.assessment is not None
    if math.isinf(first.assessment.noise_floor):
        return textwrap.fill(
            f"{short(first.trial.candidate)} would be the fastest, but nothing was timed twice: "
            "how far timings differ by chance is unknown, and no speedup is shown to be a gain. "
            "Record two samples or more of the baseline and of each candidate.",
            WIDTH,
        )
    if is_told:
        return ""
    return textwrap.fill(
        f"{short(first.trial.candidate)} meets the goal but for the timing noise: two copies of "
        f"one pipeline may differ by {100 * first.assessment.noise_floor:.1f} % here, so its "
        f"{factor(first.assessment.speedup)} is not shown to be a gain. Search again with more "
        f"--timing_pairs than {settings.timing_pairs}, or on a quieter machine with --force.",
        WIDTH,
    )


def _why_not_the_first(outcome: Outcome, settings: Settings) -> list[str]:
    """Say why the winner is not the one with the best timings, where it is not."""
    winner = outcome.winner
    if winner is None or winner.assessment is None:
        return []
    luckier = [
        short(each.trial.candidate)
        for each in outcome.trials
        if each.is_feasible(settings.goal)
        and each.trial.candidate not in outcome.refuted
        and each.assessment is not None
        and each.assessment.speedup.value > winner.assessment.speedup.value
    ]
    if not luckier or settings.req_speedup is not None:
        return []
    # A no-break space, so that no candidate is broken in two.
    name = luckier[0].replace(" ", "\u00a0")
    text = (
        f"* is the fastest by the timings of all candidates taken together; {name} "
        + (f"and {len(luckier) - 1} more were" if len(luckier) > 1 else "was")
        + " timed faster, by chance as far as can be told."
    )
    return ["", *(line.replace("\u00a0", " ") for line in textwrap.wrap(text, 80))]


def _row(each: AssessedTrial, outcome: Outcome, colour: bool) -> str:
    assert each.assessment is not None
    mark = "*" if each == outcome.winner else " "
    said = verdict(each.assessment)
    figures = (
        f"{mark} {factor(each.assessment.speedup):17}  {percent(each.assessment.score_loss):18}  "
    )
    name = short(each.trial.candidate)
    # One that is too long for the line goes below its figures, where it can be read.
    is_long = len(figures) + VERDICT_WIDTH + 2 + len(name) > WIDTH
    padding = "" if is_long else " " * (VERDICT_WIDTH - len(said) + 2)
    below = f"\n      {name}" if is_long else name
    return figures + painted(said, said, colour=colour) + padding + below


def _ablations(outcome: Outcome) -> str:
    """Say what each target of a joint search is worth: the winner's speedup without it."""
    if not outcome.ablations:
        return ""
    prompts = max(each.assessment.prompts for each in outcome.ablations)
    lines = [f"The winner without one of its targets, on {prompts} prompts:"]
    width = max(len(each.target) for each in outcome.ablations)
    lines += [
        f"  without {each.target:{width}}  speedup: {factor(each.assessment.speedup)}"
        for each in outcome.ablations
    ]
    return "\n".join(lines)


def _rival(outcome: Outcome) -> str:
    """Say what the winner costs and gains against fewer steps, the rival that costs nothing."""
    if outcome.winner is None or outcome.winner.assessment is None or not outcome.rivals:
        return ""
    lines = ["The bare pipeline with fewer steps:"]
    for rival in outcome.rivals:
        lines.append(
            f"  {rival.steps} steps: speedup: {factor(rival.assessment.speedup)}  "
            f"score loss: {percent(rival.assessment.score_loss)}"
        )
    equal = [
        rival.steps for rival in outcome.rivals if rival.rivals(outcome.winner, outcome.held_out)
    ]
    if equal:
        lines.append(
            f"  {max(equal)} steps are at least as fast within the timing noise, and their score "
            "is not\n  shown to be lower: on these prompts fewer steps do as well, with nothing "
            "to apply."
        )
    else:
        lines.append("  None is as fast without a lower score: the winner is worth its trouble.")
    return "\n".join(lines)


def _failures(outcome: Outcome) -> str:
    """Say why candidates failed, by the commonest reason."""
    failures = [each.trial.failure for each in outcome.trials if each.trial.failure is not None]
    return textwrap.fill(shown(said_of(failures)), WIDTH) if failures else ""


def shown(text: str) -> str:
    """Return what others' messages are part of as a line for a terminal, not too long a one."""
    line = in_one_line(without_secrets(text))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _coverage(outcome: Outcome, space: JointSpace) -> str:
    found = [each.assessment for each in outcome.trials if each.assessment is not None]
    failed = len(outcome.trials) - len(found)
    complete = sum(each.is_complete for each in found)
    prompts = len(outcome.baseline.scores)
    stopped = f"{outcome.stopped[0].upper()}{outcome.stopped[1:]}"
    return (
        f"{space.point_count:,} points, {len(space):,} distinct; {len(found):,} measured"
        + (f", {complete:,} of them on all {prompts} prompts" if complete < len(found) else "")
        + (f", {failed} failed" if failed else "")
        + (f", {outcome.resumed} in an earlier run" if outcome.resumed else "")
        + f", in {duration(outcome.seconds)}.\n{textwrap.fill(stopped, 80)}"
        + (f"; {outcome.could_win:,} candidates could still win" if outcome.could_win else "")
        + "."
    )


def _use(lines: Sequence[str]) -> str:
    return "Use it:\n" + textwrap.indent("\n".join(lines), "  ") if lines else ""


def stored_summary(entry: SearchEntry, settings: Settings, use: Sequence[str] = ()) -> str:
    """Return the text that answers from a stored result; `use` is from `snippet`."""
    evidence, date = entry.evidence, entry.where.date or "an unknown date"
    loss = "not stored" if entry.score_loss is None else f"{100 * entry.score_loss:.1f} %"
    if evidence.score_loss_interval is not None:
        low, high = evidence.score_loss_interval
        loss += f" [{100 * low:.1f}, {100 * high:.1f}]"
    lines = [
        f"{settings.output} holds this search's result, measured on this machine on {date}:",
        "",
        *(f"  {line}" for line in settings_lines(entry.candidate)),
        "",
        f"  speedup: {entry.speedup:.2f}",
        f"  score loss: {loss}  {evidence.verdict}",
        "",
        *_paragraph(entry.no_gain),
        *([_use(use), ""] if use else []),
        "--verify measures it again, --force searches again.",
    ]
    return "\n".join(lines)


def _paragraph(text: str | None) -> list[str]:
    """Return a stored text's lines and an empty one; nothing where there is no text."""
    return [*textwrap.wrap(text, WIDTH), ""] if text else []


def bound_summary(entry: BoundEntry, settings: Settings) -> str:
    """Return the text that ends a search for speed alone."""
    fastest, evidence, where = entry.measured_max, entry.evidence, entry.where
    low, high = fastest.speedup_interval
    lines = [
        f"Latency only: {where.model_id}, {where.height} × {where.width} pixels, "
        f"batch size {where.batch_size}, {settings.steps} steps, {where.dtype}.",
        "Nothing was scored: this says how fast these settings can be, not whether to use them.",
        "",
        f"The fastest of {' + '.join(settings.targets)}:",
        "",
        *(f"  {line}" for line in settings_lines(Candidate(fastest.settings))),
        "",
        f"  speedup: {entry.measured_max_speedup:.2f} [{low:.2f}, {high:.2f}]",
        f"  taken as the bound, with a margin of 10 %: {entry.max_speedup:.2f}",
        "",
        *_paragraph(entry.no_gain),
        f"{evidence.space_points:,} points, {evidence.space_distinct:,} distinct; "
        f"{evidence.trials_measured} timed, in {duration(evidence.seconds)}, the rest predicted."
        + ("" if evidence.speed_settled else " Others may still be faster: the runs were used up."),
        f"Written to {settings.bounds}.",
    ]
    return "\n".join(lines)


def nothing_timed(error: NothingMeasured) -> str:
    """Return the text that ends a search for speed alone in which nothing could be timed."""
    return textwrap.fill(shown(f"Latency only: {error}"), WIDTH)


def snippet(entry: SearchEntry, settings: Settings, workload: Workload) -> list[str]:
    """Return the lines of Python that apply a result, which its file holds already.

    They look it up in the file, by as little as tells it from what else is there. Where nothing
    does, or a replay wrote none, its settings stand in the lines.

    Args:
        entry: The result.
        settings: What was asked.
        workload: What was measured.
    """
    scheduler = scheduler_option(workload.scheduler_class)
    choice = None
    if settings.replay is None:
        wanted = Wanted(
            pipeline_class=workload.pipeline_class,
            scheduler_class=workload.scheduler_class,
            steps=workload.steps,
            targets=settings.targets,
            req_score_loss=settings.req_score_loss,
        )
        choice = arguments_for(Path(settings.output), wanted, entry)
    if choice is None:
        return python_lines(literal(entry.settings), *scheduler, compiled=settings.compile)
    return python_lines(
        json.dumps(settings.output, ensure_ascii=False),
        *choosing({"steps": workload.steps}),
        *scheduler,
        *choosing(choice),
        compiled=settings.compile,
    )
