"""What computation a whole candidate stands for: its identity, canonical form and step types."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import product

from accel_search.accelerators import get
from accel_search.accelerators.base import PLAIN, Context, Effect, StepType, check_params
from accel_search.core.candidate import Candidate, Params
from accel_search.core.step_table import StepTable, tabulate
from accel_search.core.trial import Measurement
from accel_search.core.workload import Workload
from accel_search.errors import ConfigurationError


def effective_workload(candidate: Mapping[str, Params], workload: Workload) -> Workload:
    """Return the workload as a candidate leaves it, e.g. with fewer UNet calls."""
    for name, params in candidate.items():
        workload = get(name).workload_under(params, workload)
    return workload


def signatures(
    candidate: Mapping[str, Params], workload: Workload, targets: Collection[str] = ()
) -> dict[str, Hashable]:
    """Return accelerator name -> signature, for each that does anything in this context.

    Args:
        candidate: Accelerator name -> parameters.
        workload: What it is applied to.
        targets: Further accelerators that are to be reckoned with, though this candidate may
            lack them: then signatures of one space agree, whatever each candidate leaves out.
    """
    chosen = {name: (get(name), candidate[name]) for name in sorted(candidate)}
    active = {
        name: params
        for name, (accelerator, params) in chosen.items()
        if accelerator.signature(params, workload) is not None
    }
    reduced = effective_workload(active, workload)
    computed = {}
    for name, (accelerator, params) in chosen.items():
        # What changes the workload is itself judged on the whole one.
        reshapes = accelerator.workload_under(params, workload) != workload
        context = context_of(name, active, targets)
        signature = accelerator.signature(params, workload if reshapes else reduced, context)
        if signature is not None:
            computed[name] = signature
    return computed


def context_of(
    name: str, candidate: Mapping[str, Params], targets: Collection[str] = ()
) -> Context:
    """Return what the others of a candidate do that bears on the accelerator `name`."""
    others = candidate.keys() - {name}
    return Context(
        restarts=frozenset[int]().union(
            *(get(other).restarts(candidate[other]) for other in others)
        ),
        skips_modules=any(get(other).skips_modules for other in {*others, *targets} - {name}),
    )


def candidate_signature(candidate: Mapping[str, Params], workload: Workload) -> Hashable | None:
    """Return what identifies the computation that a whole candidate stands for on `workload`.

    Returns:
        None for the baseline. Two candidates with equal signatures make the same images.
    """
    return tuple(signatures(candidate, workload).items()) or None


def canonical(candidate: Mapping[str, Params], workload: Workload) -> Candidate:
    """Return the one candidate that stands for all that are the same computation.

    Accelerators that do nothing on this workload are left out, so the baseline in disguise is
    the empty candidate. Of each other one the mildest point of its own space with the same
    signature is taken; a point that has no twin there stands for itself.

    Args:
        candidate: Accelerator name -> parameters, of the accelerators' spaces or not.
        workload: Decides which points coincide: its steps, guidance, latent size and levels.
    """
    own = signatures(candidate, workload)
    chosen: dict[str, Params] = {}
    for name in own:
        accelerator = get(name)
        names = [parameter.name for parameter in accelerator.parameters]
        points = (
            dict(zip(names, values, strict=True))
            for values in product(*(parameter.values for parameter in accelerator.parameters))
        )
        twins = (
            point
            for point in points
            if signatures({**candidate, name: point}, workload).get(name) == own[name]
        )
        chosen[name] = next(twins, candidate[name])
    return Candidate(chosen)


def describe_steps(candidate: Mapping[str, Params], workload: Workload) -> tuple[StepType, ...]:
    """Return what a whole candidate does in each UNet call, as far as it changes its time.

    Args:
        candidate: Accelerator name -> parameters; the empty one makes plain calls.
        workload: What it is applied to.

    Returns:
        A step type a UNet call, effect names led by the accelerator's: `tgate gated`.
    """
    reduced = effective_workload(candidate, workload)
    types: list[set[Effect]] = [set() for _ in range(reduced.unet_calls)]
    for name, params in candidate.items():
        skipped = frozenset[int]().union(
            *(
                get(other).skipped_calls(candidate[other], reduced, context_of(other, candidate))
                for other in candidate.keys() - {name}
            )
        )
        context = replace(context_of(name, candidate), skipped=skipped)
        for call, effects in enumerate(get(name).step_types(params, reduced, context)):
            types[call] |= {Effect(f"{name} {effect.name}", effect.amount) for effect in effects}
    return tuple(frozenset(effects) for effects in types)


def numbered(steps: Sequence[StepType]) -> list[int]:
    """Return a number for each step, by its type; 0 is a plain call."""
    numbers: dict[StepType, int] = {PLAIN: 0}
    return [numbers.setdefault(step, len(numbers)) for step in steps]


def step_table(
    measurement: Measurement, candidate: Mapping[str, Params], workload: Workload
) -> StepTable | None:
    """Return where the time of a candidate's pipeline calls goes, by the type of its UNet calls.

    Returns:
        None where it was not measured, as in files of earlier versions, or cannot be described: the
        workload is incomplete, or another version or a plug-in that is not here made the candidate.
    """
    load = workload
    needed = (load.steps, load.unet_calls, load.latent_height, load.latent_width)
    if not measurement.step_times or not all(needed) or not load.attention_downsamples:
        return None
    try:
        for name, params in candidate.items():
            check_params(get(name), params)
        types = describe_steps(candidate, workload)
    except ConfigurationError:
        return None
    return tabulate(measurement, types)
