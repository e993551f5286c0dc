"""Says where an accelerator gains nothing, how sure that is, and why it may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from accel_search import accelerators
from accel_search.core.assessment import AssessedTrial
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate
from accel_search.core.outcome import Outcome, SpeedBound
from accel_search.core.workload import Provenance
from accel_search.search.space import JointSpace

SAME = Estimate(1.0, 1.0, 1.0)
"""The baseline's speedup over itself."""


def of_search(outcome: Outcome, space: JointSpace, provenance: Provenance | None) -> str | None:
    """Return what is to be said of targets that gain nothing; None where there is nothing to say.

    Of a single target, that none of its settings is faster. Of several, which one takes time that
    the others gain, where what was measured shows it, and which one is not shown to gain any.

    Args:
        outcome: What a search found.
        space: What was searched.
        provenance: Where and with what; None of recorded trials.
    """
    if len(space.targets) == 1:
        found = [each.assessment.speedup for each in outcome.trials if each.assessment is not None]
        return _of_one(space.targets[0], found, len(found), outcome.settled, provenance)
    said = [_of_several(name, outcome, space, provenance) for name in space.targets]
    return " ".join(each for each in said if each is not None) or None


def of_bound(
    bound: SpeedBound, targets: Sequence[str], provenance: Provenance | None
) -> str | None:
    """Return the same of a search for speed alone, by the fastest that it found."""
    if bound.is_gain:
        return None
    # A gain that is within the timing noise is none that is shown.
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
    if not speedups or any(each.low > 1.0 for each in speedups):
        return None
    reason = _reason(name, provenance)
    may_be = f" It may gain nothing: {reason}." if reason else ""
    none = (
        f"none of the settings measured ({measured}) is shown to be faster than the bare pipeline"
    )
    if not settled:
        return f"{name} does not pay so far: {none}, and the search ended with others left.{may_be}"
    if any(each.high > 1.0 for each in speedups):
        return (
            f"{name} is not shown to pay here: {none}, and the timing is too noisy to tell that "
            f"none is (more --timing_pairs, or a quieter machine).{may_be}"
        )
    return (
        f"{name} does not pay here: none of the settings measured ({measured}) is faster than the "
        f"bare pipeline{f': {reason}' if reason else ''}."
    )


def _of_several(
    name: str, outcome: Outcome, space: JointSpace, provenance: Provenance | None
) -> str | None:
    """Say that a target costs time, changes nothing in the winner, or is not shown to help it."""
    ablated = _ablated(name, outcome)
    pairs = [*ablated, *_measured(name, outcome, space)]
    costly = [pair for pair in pairs if pair.speedup.high < pair.without.low]
    reason = _reason(name, provenance)
    if costly:
        found = costly[0]
        return (
            f"{name} costs time here: {found.rest or 'the bare pipeline'} is "
            f"{found.without.value:.2f} times as fast as the bare pipeline, and with {found.part} "
            f"{found.speedup.value:.2f} times{f': {reason}' if reason else ''}. Search without it."
        )
    if outcome.winner is None:
        return None
    if name not in dict(space.key(outcome.winner.trial.candidate)):
        return f"{name} adds nothing to the winner: its settings there change no computation."
    unclear = [pair for pair in ablated if pair.speedup.low <= pair.without.high]
    if not unclear:
        return None
    found = unclear[0]
    return (
        f"{name} is not shown to pay here: without it the winner is {_shown(found.without)} times "
        f"as fast as the bare pipeline, and with it {_shown(found.speedup)}, which may be noise "
        f"(more --timing_pairs tell).{f' It may gain nothing: {reason}.' if reason else ''}"
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
    """Return the winner and what it is without a target, which was timed to tell."""
    winner = outcome.winner
    return [
        _Pair(
            Candidate({name: winner.trial.candidate[name]}),
            each.candidate,
            _speedup(winner),
            each.assessment.speedup,
        )
        for each in outcome.ablations
        if each.target == name and winner is not None
    ]


def _measured(name: str, outcome: Outcome, space: JointSpace) -> list[_Pair]:
    """Return the fastest trial whose computation without a target is another trial's, if any."""
    trials = {
        space.key(each.trial.candidate): each
        for each in outcome.trials
        if each.assessment is not None
    }
    pairs = []
    for key, each in trials.items():
        rest = tuple(part for part in key if part[0] != name)
        if rest != key and (rest in trials or not rest):
            other = trials.get(rest)
            alone = Candidate() if other is None else other.trial.candidate.without(name)
            part = Candidate({name: each.trial.candidate[name]})
            pairs.append(_Pair(part, alone, _speedup(each), _speedup(other)))
    return sorted(pairs, key=lambda pair: -pair.speedup.value)[:1]


def _speedup(each: AssessedTrial | None) -> Estimate:
    return SAME if each is None or each.assessment is None else each.assessment.speedup


def _reason(name: str, provenance: Provenance | None) -> str:
    """Return why an accelerator may gain nothing; of several at once nothing is known."""
    known = accelerators.all_accelerators().get(name)
    attention = None if provenance is None else provenance.attention_backend
    return "" if known is None else known.why_no_gain(attention)
