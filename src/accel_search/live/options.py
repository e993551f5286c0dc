"""The options of the command line, as arguments in Python."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from accel_search.cli.options import value_of
from accel_search.core.schedulers import parse_sampler
from accel_search.errors import ConfigurationError
from accel_search.settings import Settings

_OF_THE_PIPELINE = "the pipeline has its own: set it there"
NOT_HERE = {
    **dict.fromkeys(("pipe", "revision", "prediction_type", "vae"), "the pipeline is given"),
    **dict.fromkeys(("device", "dtype", "offload", "attention"), _OF_THE_PIPELINE),
    "compile": "call accel_search.compile_unet(pipe) before",
    "memory_limit": "call torch.cuda.set_per_process_memory_fraction before",
    "sched_option": "write it behind the sampler: sched='Euler(karras=true)'",
    "candidate": "call accel_search.measure(pipe, settings, …)",
    "verify": "call accel_search.verify(pipe, result, …)",
    "replay": "nothing of a pipeline is measured by it: accel-search --replay",
    "list": "call accel_search.load_results(path)",
    "json": "the result has to_json()",
}
"""Option of the command line that Python has not -> what to do instead."""


def settings_of(pipe_name: str, own_sampler: str, given: Mapping[str, Any]) -> Settings:
    """Return the settings of arguments in Python.

    Args:
        pipe_name: What the pipeline was loaded from.
        own_sampler: The sampler of its scheduler, taken where no `sched` is given.
        given: Option -> value; None is the option's default.

    Raises:
        ConfigurationError: There is no such option, or not here; a value is not allowed.
    """
    options = {option.name: option for option in fields(Settings)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name in NOT_HERE:
            raise ConfigurationError(f"{name}=: {NOT_HERE[name]}")
        if name not in options:
            near = difflib.get_close_matches(name, options, 1)
            raise ConfigurationError(
                f"{name}=: there is no such option"
                + (f"; did you mean {near[0]}=?" if near else "; docs/options.md lists them")
            )
        if value is None:
            continue
        if name == "space":
            values[name] = {
                target: {key: tuple(each) for key, each in parameters.items()}
                for target, parameters in value.items()
            }
            continue
        plain = str(value) if isinstance(value, Path) else value
        plain = list(value) if isinstance(value, tuple) else plain
        values[name] = value_of(options[name], plain, f"{name}")
    values.setdefault("sched", _known(own_sampler))
    return Settings(pipe=pipe_name, **values)


def _known(sampler: str) -> str:
    try:
        return str(parse_sampler(sampler))
    except ValueError as error:
        raise ConfigurationError(
            f"sched: the pipeline's scheduler is {sampler}, which is none that is searched; give "
            f"{error}"
        ) from error
