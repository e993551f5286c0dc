"""The summary at the end of a search."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from accel_search.cli.program import in_one_line
from accel_search.core.assessment import AssessedTrial, Assessment, verdict
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Verdict
from accel_search.core.outcome import Outcome
from accel_search.core.secrets import without_secrets
from accel_search.core.trial import describe_failures, is_sure
from accel_search.core.workload import Workload
from accel_search.errors import NothingMeasured
from accel_search.report.console.color import painted
from accel_search.report.console.doubts import WIDTH, disagreement, given_up
from accel_search.report.format import (
    UNSTEADY,
    choosing,
    counted,
    duration,
    factor,
    literal,
    percent,
    points,
    python_lines,
    scheduler_option,
    settings_lines,
    short,
    to_settle,
    validated,
    within,
)
from accel_search.search.explain import of_refusals
from accel_search.search.space import JointSpace
from accel_search.settings import Settings
from accel_search.storage.choice import arguments_for
from accel_search.storage.entries import BoundEntry, SearchEntry, estimate_of
from accel_search.storage.lookup import Wanted

SHOWN = 5
"""Trials in the table of the best few."""
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
    """Return the text that ends a search: the winner, the best few, fewer steps, how to use it.

    `use` is from `snippet`, `no_gain` from `explain.of_search`.
    """
    return "\n\n".join(
        part
        for part in (
            _headline(outcome, settings),
            _best_few(outcome, settings, colour),
            _refused_for_noise(outcome, settings, bool(no_gain) and len(space.targets) == 1),
            textwrap.fill(of_refusals(outcome, settings.goal) or "", WIDTH),
            _ablations(outcome),
            textwrap.fill(no_gain or "", WIDTH),
            _noise_explained(outcome),
            _fewer_steps(outcome, settings),
            _failures(outcome),
            disagreement(outcome),
            given_up(outcome),
            _coverage(outcome, space),
            _use(use),
        )
        if part
    )


def _headline(outcome: Outcome, settings: Settings) -> str:
    bounds = within(settings.goal)
    goal = (
        "largest speedup"
        if settings.req_speedup is None
        else f"first speedup of {settings.req_speedup:g} or more"
    )
    headline = outcome.headline
    if outcome.winner is None or outcome.winner.assessment is None or headline is None:
        nothing = f"No candidate meets the goal: {goal} {bounds}."
        return "\n".join([nothing, *_not_validated(outcome)])
    winner = outcome.winner.assessment
    if not outcome.is_sure:
        bounds = f"likely ({100 * (outcome.chance or 0.0):.0f} %) to be {bounds}"
    kind = "prompt" if outcome.held_out is None else "held-out prompt"
    lines = [
        f"The {goal} {bounds}:",
        "",
        *(f"  {line}" for line in settings_lines(outcome.winner.trial.candidate)),
        "",
        f"  speedup: {factor(headline.speedup)}",
        f"  score loss: {percent(headline.score_loss)}  {headline.verdict}, "
        f"{counted(headline.prompts, kind)}",
        *_how_sure(outcome, headline),
        *_in_other_terms(headline, settings),
    ]
    if outcome.held_out is not None:
        lines += [
            f"  in the search: speedup: {factor(winner.speedup)}",
            f"    score loss: {percent(winner.score_loss)}  {winner.verdict}, "
            f"{counted(winner.prompts, 'prompt')}",
        ]
        if not outcome.is_sure:
            searched, is_cut_short = len(outcome.baseline.scores), outcome.is_cut_short
            lines += _indented(to_settle(headline, searched, is_cut_short=is_cut_short))
        if not outcome.held_out.speedup.agrees_with(winner.speedup):
            lines += _indented(UNSTEADY)
    return "\n".join([*lines, *_not_validated(outcome)])


def _not_validated(outcome: Outcome) -> list[str]:
    """Return a line for each candidate that held-out prompts did not validate."""
    return [
        line
        for candidate, chance in outcome.refuted.items()
        for line in textwrap.wrap(
            f"held-out prompts: {validated(chance)}: {candidate}",
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
        )
    ]


def _how_sure(outcome: Outcome, headline: Assessment) -> list[str]:
    """Return how likely a validated winner is within the bound, where its interval is not."""
    if outcome.chance is None or not outcome.is_sure or headline.verdict is Verdict.PASS:
        return []
    return [f"  within the bound with a probability of {100 * outcome.chance:.0f} %"]


def _in_other_terms(headline: Assessment, settings: Settings) -> list[str]:
    """Return the loss of the worst tenth of prompts, and the loss of the score's usable range."""
    lines = []
    if headline.tail_loss is not None:
        most = settings.max_tail_loss
        allowed = "" if most is None else f", allowed {100 * most:g} %"
        lines.append(f"  worst tenth of prompts: {points(headline.tail_loss)}{allowed}")
    if headline.range_loss is not None:
        lines.append(f"  loss of the usable range: {points(headline.range_loss)}")
    return lines


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")


def _best_few(outcome: Outcome, settings: Settings, colour: bool) -> str:
    """Return the fastest few within the bound, then others."""
    measured = [trial for trial in outcome.trials if trial.assessment is not None]
    if not measured:
        return ""
    # Those that pass come first, then the inconclusive ones.
    order = {"pass": 0, "inconclusive": 1, "open": 2, "fail": 3}
    ranked = sorted(
        measured,
        key=lambda trial: (
            order[verdict(trial.assessment)],  # type: ignore[arg-type]
            -trial.assessment.speedup.value,  # type: ignore[union-attr]
        ),
    )
    shown = ranked[:SHOWN]
    if outcome.winner is not None and outcome.winner not in shown:
        shown = [outcome.winner, *shown[:-1]]
    return "\n".join(
        [
            f"  {'speedup':17}  {'score loss':18}  verdict",
            *(_row(trial, outcome, colour) for trial in shown),
            *_why_not_the_first(outcome, settings),
        ]
    )


def _refused_for_noise(outcome: Outcome, settings: Settings, is_explained: bool) -> str:
    """Return which candidate only the timing noise kept from winning, and what would help.

    Nothing is returned if the summary explains the noise elsewhere.
    """
    refused = [trial for trial in outcome.trials if trial.is_refused_for_noise(settings.goal)]
    if outcome.winner is not None or not refused:
        return ""
    first = max(refused, key=lambda trial: trial.assessment.speedup.value)  # type: ignore[union-attr]
    assert first.assessment is not None
    if math.isinf(first.assessment.noise_floor):
        return textwrap.fill(
            f"{short(first.trial.candidate)} would be the fastest, but nothing was timed twice: "
            "how far timings differ by chance is unknown, and no speedup is shown to be a gain. "
            "Record two samples or more of the baseline and of each candidate.",
            WIDTH,
        )
    if is_explained:
        return ""
    return textwrap.fill(
        f"{short(first.trial.candidate)} meets the goal but for the timing noise: two copies of "
        f"one pipeline may differ by {100 * first.assessment.noise_floor:.1f} % here, so its "
        f"{factor(first.assessment.speedup)} is not shown to be a gain. Search again with more "
        f"--timing_pairs than {settings.timing_pairs}, or on a quieter machine with --force.",
        WIDTH,
    )


def _noise_explained(outcome: Outcome) -> str:
    """Return what made the timings noisy, where that is known; a search begins with the advice."""
    note = outcome.noise_note
    return textwrap.fill(note.sentence, WIDTH) if note and note.cause else ""


def _why_not_the_first(outcome: Outcome, settings: Settings) -> list[str]:
    """Explain a winner that is not the one with the best timings."""
    winner = outcome.winner
    if winner is None or winner.assessment is None:
        return []
    luckier = [
        short(trial.trial.candidate)
        for trial in outcome.trials
        if trial.is_feasible(settings.goal)
        and trial.trial.candidate not in outcome.refuted
        and trial.assessment is not None
        and trial.assessment.speedup.value > winner.assessment.speedup.value
    ]
    if not luckier or settings.req_speedup is not None:
        return []
    # A no-break space, so that no candidate is broken in two.
    name = luckier[0].replace(" ", "\u00a0")
    text = (
        f"{name} "
        + (f"and {len(luckier) - 1} more were" if len(luckier) > 1 else "was")
        + " timed faster than *: by chance as far as all timings show, or with a loss that is "
        "less likely to be within the bound."
    )
    return ["", *(line.replace("\u00a0", " ") for line in textwrap.wrap(text, 80))]


def _row(trial: AssessedTrial, outcome: Outcome, colour: bool) -> str:
    assessment = trial.assessment
    assert assessment is not None
    mark = "*" if trial == outcome.winner else " "
    word = verdict(assessment)
    figures = f"{mark} {factor(assessment.speedup):17}  {percent(assessment.score_loss):18}  "
    name = short(trial.trial.candidate)
    # One that is too long for the line goes below its figures, where it can be read.
    is_long = len(figures) + VERDICT_WIDTH + 2 + len(name) > WIDTH
    padding = "" if is_long else " " * (VERDICT_WIDTH - len(word) + 2)
    below = f"\n      {name}" if is_long else name
    return figures + painted(word, word, colour=colour) + padding + below


def _ablations(outcome: Outcome) -> str:
    """Return the winner's speedup without each target of a joint search."""
    if not outcome.ablations:
        return ""
    prompts = max(ablation.assessment.prompts for ablation in outcome.ablations)
    lines = [f"The winner without one of its targets, on {counted(prompts, 'prompt')}:"]
    width = max(len(ablation.target) for ablation in outcome.ablations)
    lines += [
        f"  without {ablation.target:{width}}  speedup: {factor(ablation.assessment.speedup)}"
        for ablation in outcome.ablations
    ]
    return "\n".join(lines)


def _fewer_steps(outcome: Outcome, settings: Settings) -> str:
    """Compare the winner with the baseline pipeline at fewer steps, which costs nothing."""
    if outcome.winner is None or outcome.winner.assessment is None or not outcome.rivals:
        return ""
    lines = ["The baseline pipeline with fewer steps:"]
    for rival in outcome.rivals:
        lines.append(
            f"  {counted(rival.steps, 'step')}: speedup: {factor(rival.assessment.speedup)}  "
            f"score loss: {percent(rival.assessment.score_loss)}"
        )
    against = (outcome.winner, outcome.held_out, settings.goal)
    equal = [str(rival.steps) for rival in outcome.rivals if rival.rivals(*against)]
    unclear = [str(rival.steps) for rival in outcome.rivals if rival.may_rival(*against)]
    if equal:
        verdict = (
            f"{' and '.join(equal)} {'step is' if equal == ['1'] else 'steps are'} at least as "
            "fast within the timing noise, and within the bound as a candidate that passes: on the "
            "search's prompts fewer steps do as well, with nothing to apply."
        )
    elif unclear:
        verdict = (
            f"{' or '.join(unclear)} step{'' if unclear == ['1'] else 's'} may be as fast within "
            "the bound: the search's timings and prompts are too few to tell (--timing_pairs, "
            "--num_samples)."
        )
    else:
        verdict = (
            "None is as fast within the bound on the search's prompts: the winner is worth "
            "applying."
        )
    return "\n".join([*lines, *_indented(verdict)])


def _failures(outcome: Outcome) -> str:
    """Return how many candidates failed, and the commonest reason."""
    failures = [trial.trial.failure for trial in outcome.trials if trial.trial.failure is not None]
    return textwrap.fill(shown(describe_failures(failures)), WIDTH) if failures else ""


def shown(text: str) -> str:
    """Return a text that holds messages of others as one line for a terminal, cut to length."""
    line = in_one_line(without_secrets(text))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _coverage(outcome: Outcome, space: JointSpace) -> str:
    measured = [trial.assessment for trial in outcome.trials if trial.assessment is not None]
    failed = len(outcome.trials) - len(measured)
    complete = sum(assessment.is_complete for assessment in measured)
    prompts = len(outcome.baseline.scores)
    stopped = f"{outcome.stopped[0].upper()}{outcome.stopped[1:]}"
    return (
        f"{space.point_count:,} points, {len(space):,} distinct; {len(measured):,} measured"
        + (
            f", {complete:,} of them on all {counted(prompts, 'prompt')}"
            if complete < len(measured)
            else ""
        )
        + (f", {failed} failed" if failed else "")
        + (f", {outcome.resumed} in an earlier run" if outcome.resumed else "")
        + f", in {duration(outcome.seconds)}.\n{textwrap.fill(stopped, 80)}"
        + f"; {counted(outcome.could_win, 'candidate')} could still win" * bool(outcome.could_win)
        + "."
    )


def _use(lines: Sequence[str]) -> str:
    return "Use it:\n" + textwrap.indent("\n".join(lines), "  ") if lines else ""


def stored_summary(entry: SearchEntry, settings: Settings, use: Sequence[str] = ()) -> str:
    """Return the text that answers from a stored result; `use` is from `snippet`."""
    evidence, date = entry.evidence, entry.where.date or "an unknown date"
    loss = "not stored"
    if entry.score_loss is not None:
        loss = percent(estimate_of(entry.score_loss, evidence.score_loss_interval))
    lines = [
        f"{settings.output} holds this search's result, measured on this machine on {date}:",
        "",
        *(f"  {line}" for line in settings_lines(entry.candidate)),
        "",
        f"  speedup: {factor(estimate_of(entry.speedup, evidence.speedup_interval))}",
        f"  score loss: {loss}  {evidence.verdict}",
        *_likely(entry),
        "",
        *_paragraph(entry.no_gain),
        *([_use(use), ""] if use else []),
        "--verify measures it again, --force searches again.",
    ]
    return "\n".join(lines)


def _likely(entry: SearchEntry) -> list[str]:
    """Return how likely a stored winner that is not validated is within the bound."""
    chance = entry.evidence.chance_within_bound
    if chance is None or is_sure(chance):
        return []
    return [f"  likely ({100 * chance:.0f} %) to be within the bound, not validated"]


def _paragraph(text: str | None) -> list[str]:
    """Return a stored text's lines and an empty one; nothing where there is no text."""
    return [*textwrap.wrap(text, WIDTH), ""] if text else []


def bound_summary(entry: BoundEntry, settings: Settings) -> str:
    """Return the text that ends a search for speed alone."""
    fastest, evidence, where = entry.measured_max, entry.evidence, entry.where
    speedup = factor(estimate_of(entry.measured_max_speedup, fastest.speedup_interval))
    lines = [
        f"Latency only: {where.model_id}, {where.height} × {where.width} pixels, "
        f"batch size {where.batch_size}, {settings.steps} steps, {where.dtype}.",
        "Nothing was scored: these settings may lose any amount of quality.",
        "",
        f"The fastest of {' + '.join(settings.targets)}:",
        "",
        *(f"  {line}" for line in settings_lines(Candidate(fastest.settings))),
        "",
        f"  speedup: {speedup}",
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
    """Return the lines of Python that apply a stored result.

    They look it up in the file, by as few arguments as select it among the results there. If none
    do, or a replay wrote no file, they contain its settings.
    """
    scheduler = scheduler_option(workload.scheduler_class, settings.sched)
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
        if settings.implementation == "package":
            scheduler = [*scheduler, *choosing({"implementation": "package"})]
        return python_lines(
            literal(entry.settings),
            *scheduler,
            compiled=settings.compile,
            loras=entry.where.loras,
        )
    return python_lines(
        json.dumps(settings.output, ensure_ascii=False),
        *choosing({"steps": workload.steps}),
        *scheduler,
        *choosing(choice),
        compiled=settings.compile,
        loras=entry.where.loras,
    )
