"""What each type of UNet call costs, and its share of a pipeline call."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from accel_search.core.step_times import StepTimes
from accel_search.core.trial import Measurement

PLAIN = "plain"
PROBES_ALONE = "plain, timed for comparison alone"
REST = "rest of the call (text encoder, scheduler, decoder)"
SHORTEST, LONGEST = 1e-9, 1e9
"""Seconds beyond which a time was not measured: such files are written by hand."""

Effects = frozenset[tuple[str, float]]
"""What is done in a UNet call: names led by the accelerator's, each with an amount from 0 to 1."""


@dataclass(frozen=True)
class StepRow:
    """One type of UNet call, or the rest of the pipeline call."""

    type: str
    """In words, e.g. `deepcache partial at branch 0`."""
    calls: int | None
    """UNet calls of the type in a pipeline call, 0 of those made for comparison alone; None of the
    rest of the call."""
    milliseconds: float
    """Median of one UNet call, or of the rest of a pipeline call, for the whole batch."""
    share: float
    """Of the pipeline call's time, a fraction."""
    relative_to_plain: float | None = None
    """Time relative to a plain UNet call; None where none was timed, and of the rest."""


@dataclass(frozen=True)
class StepTable:
    """Where the time of a candidate's pipeline calls goes."""

    pipeline_calls: int
    """Those whose UNet calls were timed."""
    batch_size: int
    """Images a call."""
    milliseconds: float
    """Median of a whole pipeline call."""
    rows: tuple[StepRow, ...]
    """Types of UNet calls, plain ones first, then in the order of their first call; the rest of the
    pipeline call last."""


def tabulate(measurement: Measurement, types: Sequence[Effects]) -> StepTable | None:
    """Return where the time of a candidate's pipeline calls goes.

    A pipeline call that was not made of UNet calls of these types is left out, e.g. where the
    scheduler makes two for each that is described. If all are of one type, their number does not
    matter. A type is compared with the plain calls, probes included, of the same pipeline call,
    since the machine's speed varies from one to the next.

    Args:
        measurement: Of the candidate.
        types: What is done in each UNet call of a pipeline call; an empty set is a plain call.

    Returns:
        None without a pipeline call to go by.
    """
    if len(set(types)) == 1 and measurement.step_times:
        types = tuple(types[:1]) * len(measurement.step_times[0].seconds)
    calls = [times for times in measurement.step_times if _fits(times, types)]
    if not calls:
        return None
    scale = 1000 * measurement.batch_size
    rest = [max(0.0, times.call - sum(times.seconds)) for times in calls]
    rest_shares = [seconds / times.call for seconds, times in zip(rest, calls, strict=True)]
    return StepTable(
        pipeline_calls=len(calls),
        batch_size=measurement.batch_size,
        milliseconds=round(scale * median(times.call for times in calls), 3),
        rows=(
            *_rows(calls, types, scale),
            StepRow(REST, None, round(scale * median(rest), 3), round(fmean(rest_shares), 5)),
        ),
    )


def _fits(times: StepTimes, types: Sequence[Effects]) -> bool:
    """Return whether a pipeline call was made of UNet calls of these types."""
    plain = {call for call, effects in enumerate(types) if not effects}
    every = (times.call, *times.seconds, *(seconds for _, seconds in times.probes))
    return (
        0 < len(types) == len(times.seconds)
        and plain.issuperset(at for at, kind in enumerate(times.kinds) if kind == 0)
        and all(SHORTEST < seconds < LONGEST for seconds in every)
    )


def _rows(calls: Sequence[StepTimes], types: Sequence[Effects], scale: float) -> Iterator[StepRow]:
    """Yield a row for each type of UNet call."""
    probes = [[seconds for _, seconds in times.probes] for times in calls]
    plain = [
        _of_type(Effects(), times, types) + more for times, more in zip(calls, probes, strict=True)
    ]
    first = (Effects(),) if any(plain) else ()
    kinds = list(dict.fromkeys((*first, *types)))
    for kind, name in zip(kinds, _names(kinds), strict=True):
        own = [_of_type(kind, times, types) for times in calls]
        shares = [sum(seconds) / times.call for seconds, times in zip(own, calls, strict=True)]
        timed = own if kind else plain
        ratios = [
            median(seconds) / median(beside)
            for seconds, beside in zip(timed, plain, strict=True)
            if beside
        ]
        count = types.count(kind)
        yield StepRow(
            type=name if count else PROBES_ALONE,
            calls=count,
            milliseconds=round(scale * median(itertools.chain(*timed)), 3),
            share=round(fmean(shares), 5),
            relative_to_plain=round(median(ratios), 5) if ratios else None,
        )


def _of_type(kind: Effects, times: StepTimes, types: Sequence[Effects]) -> list[float]:
    return [
        seconds for seconds, effects in zip(times.seconds, types, strict=True) if effects == kind
    ]


def _names(kinds: Sequence[Effects]) -> list[str]:
    """Return a name for each of several types, with amounts as exact as tells them apart."""
    names: list[str] = []
    for digits in (3, 6, 15):
        names = [_name(kind, digits) for kind in kinds]
        if len(set(names)) == len(names):
            break
    return names


def _name(kind: Effects, digits: int) -> str:
    """Return the name of a type: `tgate gated + tome merged at 1/1, 1/2 (50 %)`."""
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for name, amount in sorted(kind):
        accelerator, _, effect = name.partition(" ")
        head, _, last = effect.rpartition(" ")
        groups.setdefault((accelerator, head), {})[last] = amount
    parts: dict[str, list[str]] = {}
    for (accelerator, head), amounts in groups.items():
        parts.setdefault(accelerator, []).append(f"{head} {_listed(amounts, digits)}".strip())
    return " + ".join(f"{name} {', '.join(done)}" for name, done in parts.items()) or PLAIN


def _listed(amounts: Mapping[str, float], digits: int) -> str:
    """Write what is done with how much of it: one amount for all, or one for each."""
    shares = {name: f" ({100 * amount:.{digits}g} %)" for name, amount in amounts.items()}
    if len(set(amounts.values())) > 1:
        return ", ".join(f"{name}{share}" for name, share in shares.items())
    amount = next(iter(amounts.values()))
    return ", ".join(amounts) + ("" if amount == 1 else next(iter(shares.values())))
