"""Says where an accelerator gains nothing, how sure that is, and why it may be."""

from __future__ import annotations

from collections.abc import Sequence

from accel_search import accelerators
from accel_search.records import Candidate, Provenance
from accel_search.search import Outcome
from accel_search.space import JointSpace
from accel_search.speed_bound import SpeedBound
from accel_search.statistics import AssessedTrial, Estimate

SAME = Estimate(1.0, 1.0, 1.0)
"""The baseline's speedup over itself."""


def of_search(outcome: Outcome, space: JointSpace, provenance: Provenance | None) -> str | None:
    """Return what is to be said of targets that gain nothing; None where there is nothing to say.

    Of a single target, that none of its settings is faster. Of several, which one takes time that
    the others gain, where what was measured shows it.

    Args:
        outcome: What a search found.
        space: What was searched.
        provenance: Where and with what; None of recorded trials.
    """
    if len(space.targets) == 1:
        found = [each.assessment.speedup for each in outcome.trials if each.assessment is not None]
        return _of_one(space.targets[0], found, len(found), outcome.settled, provenance)
    costly = [_costs(name, outcome, space, provenance) for name in space.targets]
    return " ".join(each for each in costly if each is not None) or None


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


def _costs(
    name: str, outcome: Outcome, space: JointSpace, provenance: Provenance | None
) -> str | None:
    """Say that a target costs time, if the fastest with it is faster still without it."""
    measured = {
        space.key(each.trial.candidate): each
        for each in outcome.trials
        if each.assessment is not None
    }
    pairs = []
    for key, each in measured.items():
        without = tuple(part for part in key if part[0] != name)
        if without != key and (without in measured or not without):
            pairs.append((each, measured.get(without)))
    if not pairs:
        return None
    one, other = max(pairs, key=lambda pair: _speedup(pair[0]).value)
    if _speedup(one).high >= _speedup(other).low:
        return None
    alone = Candidate() if other is None else _without(one.trial.candidate, name)
    reason = _reason(name, provenance)
    return (
        f"{name} costs time here: {alone or 'the bare pipeline'} is "
        f"{_speedup(other).value:.2f} times as fast as the bare pipeline, and with "
        f"{Candidate({name: one.trial.candidate[name]})} {_speedup(one).value:.2f} times"
        f"{f': {reason}' if reason else ''}. Search without it."
    )


def _without(candidate: Candidate, name: str) -> Candidate:
    return Candidate({each: params for each, params in candidate.items() if each != name})


def _speedup(each: AssessedTrial | None) -> Estimate:
    return SAME if each is None or each.assessment is None else each.assessment.speedup


def _reason(name: str, provenance: Provenance | None) -> str:
    """Return why an accelerator may gain nothing; of several at once nothing is known."""
    known = accelerators.all_accelerators().get(name)
    attention = None if provenance is None else provenance.attention_backend
    return "" if known is None else known.why_no_gain(attention)
