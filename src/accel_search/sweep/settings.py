"""The options of a sweep: its table, how it runs, and the options of its searches."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from accel_search.cli.options import (
    build_parser,
    check_value,
    declare,
    given_options,
    parse_seconds,
)
from accel_search.core.packages import check_packages
from accel_search.core.paths import PIPELINES
from accel_search.core.schedulers import PLAIN, SCHEDULERS, parse_sampler
from accel_search.errors import ConfigurationError, LoadError
from accel_search.report import trackers
from accel_search.search import strategies
from accel_search.settings import GROUPS, Settings, target_names
from accel_search.storage.keys import Configuration

FAILURES = (
    "cuda_oom",
    "timeout",
    "model_load",
    "invalid_image",
    "subprocess_error",
    "unknown_error",
)
"""Kinds of failures, as `failed_configs` holds them."""
ALL = "all"
ISOLATIONS = ("model", "config")
EXECUTORS = ("local", "ray")


def parse_names(text: str | Sequence[object]) -> tuple[str, ...]:
    """Parse `SD1.5,SDXL` into distinct names, in the order given.

    Raises:
        ValueError: There is none.
    """
    names = text.split(",") if isinstance(text, str) else map(str, text)
    distinct = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not distinct:
        raise ValueError("one or more names, comma-separated")
    return distinct


def parse_schedulers(text: str | Sequence[str]) -> tuple[str, ...]:
    """Parse the names of samplers.

    Raises:
        ValueError: One is none, or has options: a key of the results names a class alone.
    """
    samplers = [parse_sampler(name) for name in parse_names(text)]
    for sampler in samplers:
        if sampler.options:
            raise ValueError(
                f"one of {', '.join(PLAIN)}; accel-search --sched takes {sampler}, too"
            )
    return tuple(dict.fromkeys(map(str, samplers)))


def parse_step_counts(text: str | Sequence[int]) -> tuple[int, ...]:
    """Parse `20,25,50`.

    Raises:
        ValueError: One is not a whole number above 0.
    """
    names = parse_names(text)
    if not all(name.isdecimal() and int(name) > 0 for name in names):
        raise ValueError("whole numbers, comma-separated, e.g. 20,25,50")
    return tuple(dict.fromkeys(map(int, names)))


def parse_methods(text: str | Sequence[str]) -> tuple[str, ...]:
    """Parse `deepcache,deepcache+tome`: each a set of accelerators, its names sorted."""
    return tuple(
        dict.fromkeys(
            "+".join(sorted({part.strip() for part in name.split("+") if part.strip()}))
            for name in parse_names(text)
        )
    )


def parse_gpus(text: str | Sequence[int]) -> str | tuple[int, ...]:
    """Parse `all` or `0,2`.

    Raises:
        ValueError: It is neither.
    """
    if text == ALL:
        return ALL
    names = parse_names(text)
    if not all(name.isdecimal() for name in names):
        raise ValueError("all, or numbers of GPUs, e.g. 0,1")
    return tuple(dict.fromkeys(int(name) for name in names))


def parse_bytes(text: str) -> int:
    """Parse a size: `50MB`, `1GB`, `500000`.

    Raises:
        ValueError: It is not a size.
    """
    units = {"GB": 10**9, "MB": 10**6, "KB": 10**3, "": 1}
    spelled = text.strip().upper()
    for unit, factor in units.items():
        number = spelled.removesuffix(unit)
        if spelled.endswith(unit) and number.isdecimal() and int(number) > 0:
            return int(number) * factor
    raise ValueError("a size, e.g. 50MB")


@dataclass(frozen=True)
class SweepSettings:
    """The options of a sweep, checked on construction."""

    # fmt: off
    # Table
    models: tuple[str, ...] = declare(("SD1.5", "SD2.1", "SDXL"),
        "pipelines: the names that accel-search --pipe takes", parse=parse_names, metavar="A,B",
        aliases=("pipe", "pipes"), words=PIPELINES)
    scheds: tuple[str, ...] = declare(tuple(SCHEDULERS), "schedulers", parse=parse_schedulers,
        metavar="A,B", aliases=("sched",), words=tuple(PLAIN))
    steps: tuple[int, ...] = declare((20, 25, 50), "denoising steps", parse=parse_step_counts,
        metavar="N,M")
    methods: tuple[str, ...] = declare(("deepcache", "tgate", "tome"),
        "accelerators; several of one search are joined by +, e.g. deepcache+tome",
        parse=parse_methods, metavar="A,B", aliases=("targets",), words=target_names)

    # Execution
    dry_run: bool = declare(False, "print the table, what is done and an estimate", parse=bool)
    retry_failed: str | None = declare(None,
        f"explore failed configurations again: all, or one kind of {', '.join(FAILURES)}",
        metavar="KIND", alone=ALL, words=(ALL, *FAILURES), only=True)
    isolation: str = declare("model", "a process for each model, or for each config",
        words=ISOLATIONS, only=True)
    timeout: float = declare(3600, "longest that one configuration may take", parse=parse_seconds,
        metavar="TIME")
    gpus: str | tuple[int, ...] | None = declare(None,
        "all, or 0,1: a worker on each (default: one worker)", parse=parse_gpus, metavar="A,B")
    workers: int | None = declare(None,
        "workers on the CPU, each with its share of the cores (default: 1)", parse=int, least=1)
    executor: str = declare("local", "local processes, or ray for a cluster", words=EXECUTORS,
        only=True)
    ray_address: str | None = declare(None, "address of a Ray cluster (default: one started here)",
        metavar="ADDRESS")
    report: str | None = declare(None,
        "write a page to read in a browser (alone: beside the file of bounds)", metavar="FILE",
        alone="auto")
    log_file: str = declare("exploration.log", "log, flushed line by line", metavar="FILE")
    log_rotate: int | None = declare(None,
        "size at which a new log is begun, e.g. 50MB (default: never)", parse=parse_bytes)
    # fmt: on

    common: dict[str, Any] = field(default_factory=dict)
    """Options of `accel-search` that every configuration gets."""

    def __post_init__(self) -> None:
        self._check()
        # A mistake in any configuration shows before the first one runs.
        for configuration in self.table:
            search = self.search_settings(configuration)
            strategies.check(search.strategy, search.sampler)
            trackers.check(search)
            _check_files(search)

    @property
    def table(self) -> tuple[Configuration, ...]:
        """Return every configuration, in the order of running: a model's are together."""
        return tuple(
            Configuration(model, sched, steps, method)
            for model in self.models
            for sched in self.scheds
            for steps in self.steps
            for method in self.methods
        )

    @property
    def run_dir(self) -> str:
        """Return the folder that the configurations' own folders lie in."""
        return str(self.common.get("run_dir", Settings.run_dir))

    @property
    def log_level(self) -> str:
        """Return the least level of lines that are written."""
        return str(self.common.get("log_level", Settings.log_level))

    @property
    def latency_only(self) -> bool:
        """Return whether nothing is scored."""
        return bool(self.common.get("latency_only", False))

    def search_settings(self, configuration: Configuration) -> Settings:
        """Return the settings of one configuration's search, which keeps a study of its own.

        Raises:
            ConfigurationError: An option is out of range, or an accelerator unknown.
        """
        run_dir = Path(self.run_dir) / configuration.slug
        return Settings(
            **self.common
            | {
                "pipe": configuration.model,
                "sched": configuration.sched,
                "steps": configuration.steps,
                "targets": configuration.targets,
                "run_dir": str(run_dir),
            }
        )

    def _check(self) -> None:
        for option in fields(self):
            check_value(option, getattr(self, option.name))
        if self.workers is not None and self.gpus is not None:
            raise ConfigurationError(
                "--workers and --gpus: choose one; --gpus runs one worker on each GPU"
            )
        if self.ray_address is not None and self.executor != "ray":
            raise ConfigurationError("--ray_address: needs --executor ray")


def _check_files(search: Settings) -> None:
    """Raise ConfigurationError for a file that needs another option, or a LoRA that fits none."""
    from accel_search.runtime.loading.lora.files import check_loras
    from accel_search.runtime.loading.single_file.load import check_file

    # What the file lacks is recorded when its turn comes, as of any model.
    with suppress(LoadError):
        check_file(search)
    check_loras(search)


_GROUPS = GROUPS | {"models": "table", "dry_run": "running", "revision": "each search"}


def options() -> list[Field[Any]]:
    """Return the fields that `accel-explore` takes: a sweep's own, then those of every search."""
    own = [option for option in fields(SweepSettings) if option.metadata]
    return own + [option for option in fields(Settings) if option.metadata.get("sweep", True)]


def sweep_parser(prog: str, description: str, version: str) -> argparse.ArgumentParser:
    """Return the command line of `accel-explore`."""
    words = {"strategy": strategies.all_strategies}
    parser = build_parser(prog, description, version, options(), _GROUPS, words)
    parser.add_argument(
        "--sweep", dest="config", metavar="FILE", help="TOML file of these options; flags win"
    )
    return parser


def from_command_line(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> SweepSettings:
    """Return the settings of a command line: defaults, then the TOML file, then flags.

    Raises:
        ConfigurationError: An option or a TOML entry is unknown or out of range, or a package that
            a sweep needs is not installed.
    """
    given = given_options(parser, arguments, options())
    check_packages("accel-explore")  # Here, as the check of a strategy loads all of them.
    own = {option.name for option in fields(SweepSettings) if option.metadata}
    return SweepSettings(
        **{name: value for name, value in given.items() if name in own},
        common={name: value for name, value in given.items() if name not in own},
    )
