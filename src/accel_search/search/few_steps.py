"""What few UNet calls leave to gain, by the plan of each call, before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accel_search import accelerators
from accel_search.accelerators.base import PLAIN, StepType
from accel_search.core.workload import Workload
from accel_search.errors import ConfigurationError, NothingMeasured
from accel_search.search.space import ALL_BASELINE, JointSpace, Overrides
from accel_search.settings import Settings


def check_gain(settings: Settings, workload: Workload) -> list[str]:
    """Return what there is to know of each target at that many UNet calls, a line each.

    Args:
        settings: Give the targets and their values.
        workload: As far as it is known before the pipeline is loaded.

    Raises:
        NothingMeasured: No setting of any target changes anything.
        ConfigurationError: A target has no possible value.
    """
    if not _is_searched(settings, _usual(workload)):
        return []  # Not for the number of steps: it is said once the pipeline is known.
    space = JointSpace(settings.targets, workload, settings.space)
    if not len(space):
        raise NothingMeasured(
            f"{ALL_BASELINE}: at {_calls(workload)} {' and '.join(space.targets)} can gain nothing"
        )
    lines = []
    for name in space.targets:
        note = accelerators.get(name).note(workload)
        lines += [f"{name} {note}"] if note else []
        lines += _of_reuse(name, workload, settings.space)
    return lines


def _is_searched(settings: Settings, workload: Workload) -> bool:
    """Return whether there is anything to search on a workload."""
    try:
        return len(JointSpace(settings.targets, workload, settings.space)) > 0
    except ConfigurationError:
        return False


def _usual(workload: Workload) -> Workload:
    """Return a workload with the default number of steps."""
    return replace(workload, steps=Settings.steps, unet_calls=Settings.steps)


def _of_reuse(name: str, workload: Workload, values: Overrides) -> list[str]:
    """Return the line of a target that has little to gain, if it reuses from call to call.

    What is reused is as old as the run of calls in which it is. At the default number of steps
    settings reuse over a known part of the denoising; where all must reuse over more, few keep the
    score.
    """
    space = JointSpace((name,), workload, values)
    if not len(space):
        return [f"{name} can gain nothing at {_calls(workload)}: no setting changes anything there"]
    plans = _plans(space, workload)
    usual = _usual(workload)
    before = [_reach(plan) for plan in _plans(JointSpace((name,), usual), usual)]
    if not plans or not before or not all(PLAIN in plan for plan in plans):
        return []  # It makes fewer calls, or does the same in each.
    least = min(map(_reach, plans))
    if least <= max(before):
        return []
    reused = sorted({len(plan) - plan.count(PLAIN) for plan in plans})
    most = len(plans[0]) / (len(plans[0]) - reused[-1])
    count = f"{reused[0]} to {reused[-1]}" if len(reused) > 1 else f"{reused[0]}"
    return [
        f"{name} has little to gain at {_calls(workload)}: its settings reuse features in {count} "
        f"of them (at most {most:.1f} times as fast, were those calls free), over "
        f"{100 * least:.0f} % of the denoising or more, where at {Settings.steps} steps none "
        f"reuses over more than {100 * max(before):.0f} %: few may keep the score"
    ]


def _plans(space: JointSpace, workload: Workload) -> list[tuple[StepType, ...]]:
    """Return what each setting of one target does in each UNet call, if their number is kept."""
    (name,) = space.targets
    accelerator = accelerators.get(name)
    plans = []
    for position in range(len(space)):
        params = space.candidate_at(position)[name]
        if accelerator.workload_under(params, workload) == workload:
            plans.append(accelerator.step_types(params, workload))
    return plans


def _reach(plan: Sequence[StepType]) -> float:
    """Return the longest run of calls that are not plain, as a part of all."""
    longest = run = 0
    for step in plan:
        run = 0 if step == PLAIN else run + 1
        longest = max(longest, run)
    return longest / len(plan)


def _calls(workload: Workload) -> str:
    calls = workload.unet_calls
    return f"{calls} UNet call{'' if calls == 1 else 's'}"
