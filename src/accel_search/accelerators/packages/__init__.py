"""The packages' own DeepCache, ToMe and T-GATE, applied through their public API and removed.

Parameters, limits and canonical keys are those of our accelerators. Importing this loads neither
torch nor a package.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from accel_search.accelerators import get
from accel_search.accelerators.base import check_params
from accel_search.accelerators.packages import deepcache, tgate, tome
from accel_search.accelerators.tome import merge_plan, tokens_of
from accel_search.core.candidate import Params, Value
from accel_search.core.packages import check_packages
from accel_search.core.workload import PACKAGE_OF, Workload
from accel_search.errors import ConfigurationError

OPTION = "--implementation package"
WAY_OUT = "or use --implementation own"


@contextmanager
def apply_packages(pipe: Any, candidate: Mapping[str, Params]) -> Iterator[None]:
    """Let the packages accelerate `pipe` for the length of a `with` block.

    Every call in it gives the images of the first one: what the packages keep from one call to the
    next is reset. On exit what they leave on the modules is removed.

    Args:
        pipe: A pipeline of SD or SDXL type that nothing else accelerates.
        candidate: Accelerator name -> parameter name -> value, every parameter given.

    Raises:
        ConfigurationError: The packages cannot do it.
        AcceleratorError: The pipeline's UNet is not of a kind that can be patched.
    """
    check_targets(candidate)
    needed = [PACKAGE_OF[name] for name in candidate if name in PACKAGE_OF]
    if needed:
        check_packages("implementation='package'", *needed)
    with ExitStack() as stack:
        if "tome" in candidate:
            stack.enter_context(tome.apply(pipe, candidate["tome"]))
        if "tgate" in candidate:
            cached = candidate.get("deepcache")
            stack.enter_context(tgate.apply(pipe, candidate["tgate"], cached))
        elif "deepcache" in candidate:
            stack.enter_context(deepcache.apply(pipe, candidate["deepcache"]))
        if "steps" in candidate:  # An argument of diffusers' call, not a package's; outermost.
            from accel_search.accelerators.clock import StepClock

            stack.enter_context(get("steps").apply(pipe, candidate["steps"], StepClock()))
        yield


def check_targets(
    targets: Collection[str],
    *,
    guidance_scale: float | None = None,
    compiled: bool = False,
    offloaded: bool = False,
) -> None:
    """Refuse what the packages get wrong or cannot do, as far as options tell.

    Args:
        targets: Names of accelerators.
        guidance_scale: None is not known yet.
        compiled: Whether the UNet's blocks are compiled.
        offloaded: Whether parts wait in main memory.

    Raises:
        ConfigurationError: The reason, in one line.
    """
    for name in targets:
        if name not in PACKAGE_OF and name != "steps":
            raise _refusal(f"no package implements {name}", "leave it out of --targets")
    if {"tome", "tgate"} <= set(targets):
        raise _refusal(
            "tomesd un-merges the self-attention that tgate reuses with another step's tokens",
            "search tome and tgate separately",
        )
    if "tgate" in targets and guidance_scale is not None and guidance_scale <= 1:
        raise _refusal(
            f"tgate raises without guidance (--guidance_scale {guidance_scale:g})",
            "give a scale above 1",
        )
    compiling = [name for name in ("tgate", "tome") if name in targets]
    if compiled and compiling:
        raise _refusal(
            f"{PACKAGE_OF[compiling[0]]} makes new functions or classes whenever it is applied, so "
            "that compiled blocks compile again in every call",
            "leave --compile out",
        )
    if offloaded and "deepcache" in targets:
        raise _refusal(
            "DeepCacheSDHelper wraps the UNet's forward, which offloading replaces at every call",
            "leave --offload out",
        )


def check_workload(
    targets: Collection[str],
    workload: Workload,
    timesteps: Sequence[float],
    space: Mapping[str, Mapping[str, Sequence[Value]]],
) -> None:
    """Refuse what the packages get wrong, as far as only a loaded pipeline tells.

    Args:
        targets: Names of accelerators.
        workload: What is measured.
        timesteps: The scheduler's, one for each UNet call.
        space: Values that replace an accelerator's own: accelerator -> parameter -> values.

    Raises:
        ConfigurationError: The reason, in one line.
    """
    check_targets(targets, guidance_scale=workload.guidance_scale)
    if "deepcache" in targets and len(set(timesteps)) < len(timesteps):
        raise _refusal(
            f"DeepCacheSDHelper finds a step by its timestep, and {workload.scheduler_class} "
            f"repeats some at {workload.steps} steps",
            "choose another --sched or fewer steps",
        )
    if "tgate" in targets and workload.unet_calls != workload.steps:
        raise _refusal(
            f"tgate counts steps wrongly where {workload.scheduler_class} makes "
            f"{workload.unet_calls} UNet calls in {workload.steps} steps",
            "choose another --sched",
        )
    if "tome" not in targets:
        return
    values = {own.name: own.values for own in get("tome").parameters} | dict(space.get("tome", {}))
    ratio, deepest = max(values["ratio"]), int(max(values["max_downsample"]))
    size = (workload.latent_height, workload.latent_width)
    for factor in workload.attention_downsamples:
        tokens = tokens_of(workload, factor)
        # Where ours has no plan for even the whole level, it merges nothing, and tomesd raises.
        is_sound = merge_plan(size, tokens, 1.0, 1 << 30) is not None
        if not is_sound and tome.merges(size, tokens, ratio, deepest):
            raise _refusal(
                f"tomesd misjudges the grid of {tokens} tokens at 1/{factor} of {size[1]} × "
                f"{size[0]} latents and raises",
                f"give --height and --width as multiples of {16 * factor} pixels",
            )


def script_parts(
    candidate: Mapping[str, Params], *, is_xl: bool
) -> tuple[list[str], list[str], str, dict[str, Value]]:
    """Return what a script that uses the packages alone needs.

    Args:
        candidate: Accelerator name -> parameter name -> value.
        is_xl: Whether the pipeline is of SDXL type.

    Returns:
        Its imports, the lines that accelerate `pipe`, what is called (`pipe` or `pipe.tgate`), and
        further arguments of that call.

    Raises:
        ConfigurationError: A parameter or a value is unknown, as in a corrupt file.
    """
    check_targets(candidate)
    for name, params in candidate.items():
        check_params(get(name), params)
    imports, lines, call, arguments = [], [], "pipe", {}
    if "tome" in candidate:
        imports.append("import tomesd")
        lines += tome.script_lines(candidate["tome"])
    if "tgate" in candidate:
        loader = tgate.loader_name(is_xl=is_xl, cached="deepcache" in candidate)
        imports.append(f"from tgate import {loader}")
        lines.append(f"{loader}({_arguments('pipe', candidate.get('deepcache', {}))})")
        call, arguments = "pipe.tgate", tgate.arguments_of(candidate["tgate"])
    elif "deepcache" in candidate:
        imports.append("from DeepCache import DeepCacheSDHelper")
        lines += [
            "helper = DeepCacheSDHelper(pipe=pipe)",
            f"helper.set_params({_arguments('', candidate['deepcache'])})",
            "helper.enable()",
        ]
    return imports, lines, call, dict(arguments)


def _arguments(first: str, params: Params) -> str:
    named = [f"{name}={value!r}" for name, value in params.items()]
    return ", ".join([first, *named] if first else named)


def _refusal(reason: str, instead: str) -> ConfigurationError:
    return ConfigurationError(f"{OPTION}: {reason}: {instead}, {WAY_OUT}")
