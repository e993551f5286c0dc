"""Explain where an accelerator gains nothing, how certain that is, and a possible reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from accel_search import accelerators
from accel_search.core.assessment import AssessedTrial
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate
from accel_search.core.outcome import Outcome, SpeedBound
from accel_search.core.trial import Goal
from accel_search.core.workload import Provenance
from accel_search.search.space import JointSpace

SAME = Estimate(1.0, 1.0, 1.0)
"""The baseline's speedup over itself."""


def of_search(outcome: Outcome, space: JointSpace, provenance: Provenance | None) -> str | None:
    """Return which targets gain nothing, or None where each gains.

    A single target gains nothing if none of its settings is faster. One of several may cost time
    that the others gain, or not be shown to gain any.

    Args:
        outcome: Result of a search.
        space: Space that was searched.
        provenance: Hardware and versions; None for recorded trials.
    """
    if len(space.targets) == 1:
        speedups = [
            assessed.assessment.speedup
            for assessed in outcome.trials
            if assessed.assessment is not None
        ]
        return _of_one(space.targets[0], speedups, len(speedups), outcome.settled, provenance)
    explanations = [_of_several(name, outcome, space, provenance) for name in space.targets]
    return " ".join(text for text in explanations if text is not None) or None


def of_refusals(outcome: Outcome, goal: Goal) -> str | None:
    """Return which bounds beside that on score refused candidates that else would win, if any did.

    The table's verdict on those, which is of the score alone, may be `pass`.
    """
    winner = _speedup(outcome.winner).value
    refused: dict[str, list[AssessedTrial]] = {}
    for trial in outcome.trials:
        for name in _refusing(trial, goal, winner):
            refused.setdefault(name, []).append(trial)
    texts = []
    for name, trials in refused.items():
        fastest = max(trials, key=lambda trial: _speedup(trial).value)
        assert fastest.assessment is not None
        own = fastest.assessment.broken(goal)[name]
        value = "an unknown one" if own is None else f"{own:.3g}"
        texts.append(
            f"--{name} {getattr(goal, name):g} refused {len(trials)} of the candidates within the "
            f"bound on the score; the fastest of them, {fastest.trial.candidate} at "
            f"{_speedup(fastest).value:.2f}, has {value}."
        )
    return " ".join(texts) or None


def nothing_found(outcome: Outcome, goal: Goal, no_gain: str | None) -> dict[str, Any]:
    """Return why a search found nothing, as plain JSON types; `no_gain` is from `of_search`."""
    return {
        "speedup": None,
        "stopped": outcome.stopped,
        "no_gain": no_gain,
        "refused": of_refusals(outcome, goal),
        "noise_note": outcome.noise_note and asdict(outcome.noise_note),
    }


def _refusing(trial: AssessedTrial, goal: Goal, winner: float) -> Iterable[str]:
    """Return the bounds but for which a trial would be faster than the winner and feasible."""
    unbound = Goal(goal.max_score_loss, goal.min_speedup)
    if not trial.is_feasible(unbound) or _speedup(trial).value <= winner:
        return ()
    assert trial.assessment is not None
    return trial.assessment.broken(goal)


def of_bound(
    bound: SpeedBound, targets: Sequence[str], provenance: Provenance | None
) -> str | None:
    """Return the same for a search for speed alone, by its fastest candidate."""
    if bound.is_gain:
        return None
    # A gain within the timing noise does not count.
    low = min(bound.speedup.low, 1.0)
    fastest = Estimate(bound.speedup.value, low, bound.speedup.high)
    name = " + ".join(targets)
    return _of_one(name, [fastest], bound.timed, bound.settled, provenance)


def _of_one(
    name: str,
    speedups: Sequence[Estimate],
    measured: int,
    settled: bool,
    provenance: Provenance | None,
) -> str | None:
    if not speedups or any(speedup.low > 1.0 for speedup in speedups):
        return None
    reason = _reason(name, provenance)
    may_be = f" It may gain nothing: {reason}." if reason else ""
    none = f"none of the settings measured ({measured}) is shown to be faster than the baseline"
    if not settled:
        return f"{name} does not pay so far: {none}, and the search ended with others left.{may_be}"
    if any(speedup.high > 1.0 for speedup in speedups):
        return (
            f"{name} is not shown to pay here: {none}, and the timing is too noisy to rule it "
            f"out (use more --timing_pairs or a quieter machine).{may_be}"
        )
    return (
        f"{name} does not pay here: none of the settings measured ({measured}) is faster than the "
        f"baseline{f': {reason}' if reason else ''}."
    )


def _of_several(
    name: str, outcome: Outcome, space: JointSpace, provenance: Provenance | None
) -> str | None:
    """Return whether a target costs time, changes nothing in the winner or may not help it."""
    ablated = _ablated(name, outcome)
    pairs = [*ablated, *_measured(name, outcome, space)]
    costly = [pair for pair in pairs if pair.speedup.high < pair.without.low]
    reason = _reason(name, provenance)
    if costly:
        pair = costly[0]
        return (
            f"{name} costs time here: {pair.rest or 'the baseline'} is "
            f"{pair.without.value:.2f} times as fast as the baseline, and with {pair.part} "
            f"{pair.speedup.value:.2f} times{f': {reason}' if reason else ''}. Search without it."
        )
    if outcome.winner is None:
        return None
    if name not in dict(space.key(outcome.winner.trial.candidate)):
        return f"{name} adds nothing to the winner: its settings there change no computation."
    unclear = [pair for pair in ablated if pair.speedup.low <= pair.without.high]
    if not unclear:
        return None
    pair = unclear[0]
    return (
        f"{name} is not shown to pay here: without it the winner is {_shown(pair.without)} times "
        f"as fast as the baseline, and with it {_shown(pair.speedup)}, which may be noise "
        f"(use more --timing_pairs).{f' It may gain nothing: {reason}.' if reason else ''}"
    )


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


class _Pair(NamedTuple):
    """A candidate with and without one of its targets."""

    part: Candidate
    """That target's settings alone."""
    rest: Candidate
    speedup: Estimate
    without: Estimate


def _ablated(name: str, outcome: Outcome) -> list[_Pair]:
    """Return the winner and its ablation of a target, if it was timed."""
    winner = outcome.winner
    return [
        _Pair(
            Candidate({name: winner.trial.candidate[name]}),
            ablation.candidate,
            _speedup(winner),
            ablation.assessment.speedup,
        )
        for ablation in outcome.ablations
        if ablation.target == name and winner is not None
    ]


def _measured(name: str, outcome: Outcome, space: JointSpace) -> list[_Pair]:
    """Return the fastest trial that was also measured without a target, if any."""
    trials = {
        space.key(assessed.trial.candidate): assessed
        for assessed in outcome.trials
        if assessed.assessment is not None
    }
    pairs = []
    for key, assessed in trials.items():
        rest = tuple(part for part in key if part[0] != name)
        if rest != key and (rest in trials or not rest):
            base = trials.get(rest)
            alone = Candidate() if base is None else base.trial.candidate.without(name)
            part = Candidate({name: assessed.trial.candidate[name]})
            pairs.append(_Pair(part, alone, _speedup(assessed), _speedup(base)))
    return sorted(pairs, key=lambda pair: -pair.speedup.value)[:1]


def _speedup(assessed: AssessedTrial | None) -> Estimate:
    return SAME if assessed is None or assessed.assessment is None else assessed.assessment.speedup


def _reason(name: str, provenance: Provenance | None) -> str:
    """Return why an accelerator may gain nothing; empty for several at once."""
    known = accelerators.all_accelerators().get(name)
    attention = None if provenance is None else provenance.attention_backend
    return "" if known is None else known.why_no_gain(attention)
