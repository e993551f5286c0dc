"""What the user asked for: defaults, a TOML file and flags, checked before any model loads.

Each option is declared once, as a field of `Settings`; the command line and the TOML keys
are made from the fields.
"""

from __future__ import annotations

import argparse
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from accel_search.errors import ConfigurationError
from accel_search.records import Goal

SCHEDULERS = {
    "DDIM": "DDIMScheduler",
    "DPM-Solver++": "DPMSolverMultistepScheduler",
    "UniPC": "UniPCMultistepScheduler",
}
"""Name on the command line -> diffusers class; the class name is accepted too."""

DTYPES = ("auto", "float32", "float16", "bfloat16")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
UPPER_BOUND = "upbound_speedup"
"""Goal of a search with no required speedup, as the result file's keys spell it."""


def parse_seconds(text: str) -> float:
    """Parse a duration: `90`, `90s`, `30m`, `2h`, `1h30m`.

    Raises:
        ValueError: It is none of these, or is zero.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    if not match or not any(match.groups()):
        raise ValueError("a duration is seconds or like 90s, 30m, 1h30m")
    hours, minutes, seconds = (float(group or 0) for group in match.groups())
    total = hours * 3600 + minutes * 60 + seconds
    if total <= 0:
        raise ValueError("a duration is more than 0 seconds")
    return total


def parse_targets(text: str | Sequence[str]) -> tuple[str, ...]:
    """Parse `deepcache,tome` into sorted, distinct names."""
    names = text.split(",") if isinstance(text, str) else text
    return tuple(sorted({name.strip() for name in names if name.strip()}))


def parse_scheduler(text: str) -> str:
    """Return the short name of a scheduler given by either name, in any case.

    Raises:
        ValueError: It is not one of `SCHEDULERS`.
    """
    for name, class_name in SCHEDULERS.items():
        if text.lower() in (name.lower(), class_name.lower()):
            return name
    raise ValueError(f"one of {', '.join(SCHEDULERS)}")


def _option(
    default: Any,
    help_text: str,
    *,
    parse: Callable[[str], Any] = str,
    metavar: str | None = None,
    aliases: tuple[str, ...] = (),
) -> Any:
    """Declare an option: its default, one line of help, and how its text is parsed."""
    metadata = {"help": help_text, "parse": parse, "metavar": metavar, "aliases": aliases}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a search does. Values are checked on construction."""

    # Workload
    pipe: str = _option("demo", "demo, SD1.5, SD2.1, SDXL, a pipeline folder or a hub id")
    sched: str = _option("DDIM", "DDIM, DPM-Solver++ or UniPC", parse=parse_scheduler)
    steps: int = _option(20, "denoising steps", parse=int)
    revision: str | None = _option(None, "branch, tag or commit of the hub repository")
    device: str = _option("auto", "auto (CUDA if there is one), cpu, cuda or cuda:N")
    dtype: str = _option("auto", "auto (float16 on CUDA, else float32), float32, float16, bfloat16")
    guidance_scale: float | None = _option(
        None, "classifier-free guidance scale (default: the model's own)", parse=float
    )
    height: int | None = _option(None, "pixels, a multiple of 8 (default: the model's)", parse=int)
    width: int | None = _option(None, "pixels, a multiple of 8 (default: the model's)", parse=int)
    batch_size: int = _option(4, "images a pipeline call", parse=int)
    threads: int | None = _option(
        None, "CPU threads (default: all cores but one, left to the rest)", parse=int
    )

    # What is searched
    targets: tuple[str, ...] = _option(
        ("deepcache",),
        "what is searched jointly, comma-separated: deepcache, tome, tgate, steps",
        parse=parse_targets,
        metavar="A,B",
        aliases=("search_targets",),
    )
    strategy: str = _option("guided", "what is measured next: guided, bayes, grid or random")
    sampler: str | None = _option(None, "for bayes: tpe or gp (default: tpe)")
    req_score_loss: float = _option(0.02, "largest loss of CLIP score, as a fraction", parse=float)
    req_speedup: float | None = _option(
        None, "stop at the first candidate this fast (default: find the fastest)", parse=float
    )
    min_psnr: float | None = _option(
        None, "least likeness to the baseline's pictures, in dB (default: none)", parse=float
    )
    min_ssim: float | None = _option(
        None, "least structural similarity to them, 0 to 1 (default: none)", parse=float
    )
    max_trials: int | None = _option(None, "stop after this many measured candidates", parse=int)
    time_budget: float | None = _option(
        None, "stop after this long, e.g. 90s, 30m, 2h", parse=parse_seconds, metavar="TIME"
    )
    seed: int = _option(0, "seed of the prompts' noise and of random strategies", parse=int)

    # Scoring
    prompts: str = _option("auto", "builtin, coco, or a file; auto: builtin for demo, else coco")
    num_samples: int = _option(32, "prompts each candidate is scored on", parse=int)
    held_out_samples: int | None = _option(
        None, "further prompts that confirm the winner (default: as num_samples)", parse=int
    )
    timing_pairs: int = _option(3, "baseline calls timed beside each candidate's own", parse=int)
    clip_model: str | None = _option(
        None, "open_clip model name or folder (default: the demo's, else ViT-L-14)"
    )
    clip_pretrained: str | None = _option(
        None, "open_clip weights tag or file (default: openai for ViT-L-14)"
    )

    # Files
    output: str = _option("search_params.json", "result file", metavar="FILE")
    run_dir: str = _option("accel_search_runs", "folder of the trials' database", metavar="DIR")
    storage: str | None = _option(
        None, "Optuna storage URL (default: SQLite in run_dir)", metavar="URL"
    )
    trials_out: str | None = _option(None, "write every trial with raw samples", metavar="FILE")
    replay: str | None = _option(None, "search such a file in place of a pipeline", metavar="FILE")
    log_file: str = _option("traversal_search.log", "log, flushed line by line", metavar="FILE")

    # Behaviour
    force: bool = _option(False, "search again though a result or trials are stored", parse=bool)
    json: bool = _option(False, "print one JSON object on stdout and nothing else", parse=bool)
    quiet: bool = _option(False, "print nothing but errors and the result", parse=bool)
    log_level: str = _option("INFO", "DEBUG, INFO, WARNING or ERROR", parse=str.upper)

    space: Mapping[str, Mapping[str, tuple[int | float, ...]]] = field(default_factory=dict)
    """Values that replace an accelerator's own: accelerator -> parameter -> values (TOML only)."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def scheduler_class(self) -> str:
        """Return the diffusers class name of the scheduler."""
        return SCHEDULERS[self.sched]

    @property
    def goal(self) -> Goal:
        """Return what is looked for."""
        return Goal(self.req_score_loss, self.req_speedup, self.min_psnr, self.min_ssim)

    @property
    def goal_key(self) -> str | float:
        """Return `upbound_speedup`, or the speedup required."""
        return UPPER_BOUND if self.req_speedup is None else self.req_speedup


def _refuse(name: str, value: Any, allowed: str) -> NoReturn:
    raise ConfigurationError(f"--{name} {value!r}: expected {allowed}")


_WHOLE = {
    "steps": 1,
    "batch_size": 1,
    "num_samples": 2,
    "held_out_samples": 0,
    "timing_pairs": 1,
    "max_trials": 1,
    "threads": 1,
    "seed": 0,
}
"""Whole numbers, each with the least value allowed."""

_REAL = {
    "req_score_loss": (0.0, 1.0, "a fraction from 0 to 1, e.g. 0.02 for 2 %"),
    "req_speedup": (1.0, 1000.0, "a factor of 1 or more, e.g. 1.8"),
    "min_psnr": (0.0, 100.0, "decibels from 0 to 100, e.g. 25"),
    "min_ssim": (-1.0, 1.0, "a similarity up to 1, e.g. 0.9"),
    "guidance_scale": (0.0, 1000.0, "a number of 0 or more (1 or less: no guidance)"),
    "time_budget": (0.0, math.inf, "a duration, e.g. 30m"),
}
"""Real numbers, each with the least and greatest value allowed and how to say it."""


def _check(settings: Settings) -> None:
    """Raise ConfigurationError for the first value that is out of range."""
    _check_numbers(settings)
    choices = {"dtype": DTYPES, "log_level": LOG_LEVELS, "sched": tuple(SCHEDULERS)}
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            _refuse(name, getattr(settings, name), f"one of {', '.join(allowed)}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", settings.device):
        _refuse("device", settings.device, "auto, cpu, cuda or cuda:N")
    if settings.json and settings.quiet:
        raise ConfigurationError(
            "--json and --quiet: choose one; --json already prints nothing else"
        )
    _check_names(settings)


def _check_numbers(settings: Settings) -> None:
    for name, least in _WHOLE.items():
        value = getattr(settings, name)
        if value is not None and (type(value) is not int or not least <= value < 2**31):
            _refuse(name, value, f"a whole number, {least} or more")
    for name in ("height", "width"):
        value = getattr(settings, name)
        if value is not None and (type(value) is not int or value < 8 or value % 8):
            _refuse(name, value, "a multiple of 8 in pixels")
    for name, (low, high, allowed) in _REAL.items():
        value = getattr(settings, name)
        # Written so that NaN, which is in no range, is refused too.
        if value is not None and not (type(value) in (int, float) and low <= value <= high):
            _refuse(name, value, allowed)


def _check_names(settings: Settings) -> None:
    """Check the names of accelerators, strategies and parameters against what is installed."""
    from accel_search import accelerators, strategies

    if not settings.targets:
        _refuse("targets", "", f"one or more of {', '.join(accelerators.all_accelerators())}")
    for name in settings.targets:
        accelerators.get(name)
    samplers = strategies.get(settings.strategy).samplers
    if settings.sampler is not None and settings.sampler not in samplers:
        allowed = f"one of {', '.join(samplers)}" if samplers else "no sampler"
        _refuse("sampler", settings.sampler, f"{allowed} for --strategy {settings.strategy}")
    for name, parameters in settings.space.items():
        accelerator = accelerators.get(name)
        known = {parameter.name: parameter for parameter in accelerator.parameters}
        for key, values in parameters.items():
            if key not in known:
                raise ConfigurationError(
                    f"[space.{name}] {key}: expected one of {', '.join(known)}"
                )
            parameter = known[key]
            kind = type(parameter.values[0])
            for value in values:
                of_kind = type(value) is kind or (kind is float and type(value) is int)
                too_low = of_kind and value < parameter.minimum
                too_high = of_kind and parameter.maximum is not None and value > parameter.maximum
                if not of_kind or too_low or too_high:
                    limit = "" if parameter.maximum is None else f" to {parameter.maximum}"
                    raise ConfigurationError(
                        f"[space.{name}] {key} = {value!r}: expected {kind.__name__} "
                        f"from {parameter.minimum}{limit}"
                    )
            if not values:
                raise ConfigurationError(f"[space.{name}] {key}: expected at least one value")


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, through the same error as everything else."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; see {self.prog} --help")


def build_parser(prog: str, description: str, version: str) -> argparse.ArgumentParser:
    """Return the command line made from `Settings`' fields."""
    parser = _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        usage="%(prog)s [OPTION ...]",
        epilog="Every option also works with hyphens in place of underscores.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=100),
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    parser.add_argument("--config", metavar="FILE", help="TOML file of these options; flags win")
    group: argparse._ArgumentGroup | None = None
    for each in fields(Settings):
        if not each.metadata:
            continue
        if each.name in _GROUPS or group is None:
            group = parser.add_argument_group(_GROUPS[each.name])
        _add_option(group, f"--{each.name}", each, _help_line(each))
        # Understood but not shown: the usual spelling with hyphens, and older names.
        for name in (each.name, *each.metadata["aliases"]):
            for flag in dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")):
                if flag != f"--{each.name}":
                    _add_option(group, flag, each, argparse.SUPPRESS)
    return parser


_GROUPS = {
    "pipe": "workload",
    "targets": "search",
    "prompts": "scoring and timing",
    "output": "files",
    "force": "behaviour",
}
"""First option of each group in the help -> title of the group."""


def _help_line(option: Field[Any]) -> str:
    """Return an option's help with its default, as argparse formats it."""
    text: str = option.metadata["help"].replace("%", "%%")
    if option.default in (None, MISSING) or option.metadata["parse"] is bool:
        return text
    shown = ",".join(option.default) if isinstance(option.default, tuple) else option.default
    return f"{text} [{shown}]"


def _add_option(
    group: argparse._ArgumentGroup, flag: str, option: Field[Any], help_text: str
) -> None:
    parse = option.metadata["parse"]
    if parse is bool:
        group.add_argument(flag, dest=option.name, action="store_true", help=help_text)
        return
    group.add_argument(
        flag,
        dest=option.name,
        type=_typed(option.name, parse),
        metavar=option.metadata["metavar"] or {int: "N", float: "X"}.get(parse, "NAME"),
        help=help_text,
    )


def _typed(name: str, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Wrap a parser of text so that what it refuses names the option and what is allowed."""
    kinds = {int: "a whole number", float: "a number"}

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            _refuse(name, text, kinds.get(parse, str(error)))  # type: ignore[call-overload]

    return convert


def from_command_line(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> Settings:
    """Return the settings of a command line: defaults, then the TOML file, then flags.

    Raises:
        ConfigurationError: An option or a TOML entry is unknown or out of range.
    """
    given = vars(parser.parse_args(arguments))
    config = given.pop("config", None)
    from_file = read_config(Path(config)) if config else {}
    return Settings(**(from_file | given))


def read_config(path: Path) -> dict[str, Any]:
    """Read a TOML file of options; `[space.NAME]` tables replace parameter values.

    Raises:
        ConfigurationError: The file cannot be read or parsed, or holds an unknown key.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"--config {path}: cannot be read as TOML: {error}") from error
    options = {each.name: each for each in fields(Settings)}
    result: dict[str, Any] = {}
    for name, value in content.items():
        key = "targets" if name == "search_targets" else name.replace("-", "_")
        if key not in options:
            raise ConfigurationError(
                f"--config {path}: unknown option {name!r}; accel-search --help lists them"
            )
        if key == "space":
            result[key] = _space(path, value)
        elif isinstance(value, str | list) and key in ("sched", "targets", "time_budget"):
            parse = _typed(key, options[key].metadata["parse"])
            result[key] = parse(value)  # type: ignore[arg-type]
        else:
            result[key] = _of_declared_type(path, options[key], value)
    return result


def _of_declared_type(path: Path, option: Any, value: Any) -> Any:
    """Refuse a TOML value of another type than the option's own, e.g. text for a number."""
    parse = option.metadata["parse"]
    numbers = (int, float)
    kinds: dict[Any, Any] = {int: int, float: numbers, bool: bool, parse_seconds: numbers}
    expected = kinds.get(parse, str)
    if not isinstance(value, expected) or (isinstance(value, bool) and parse is not bool):
        raise ConfigurationError(f"--config {path}: {option.name} = {value!r} has the wrong type")
    return value


def _space(path: Path, tables: Any) -> dict[str, dict[str, tuple[int | float, ...]]]:
    """Return `[space.NAME]` tables as accelerator -> parameter -> values."""
    result: dict[str, dict[str, tuple[int | float, ...]]] = {}
    for name, parameters in tables.items() if isinstance(tables, dict) else [("", None)]:
        if not isinstance(parameters, dict) or not all(
            isinstance(values, list) for values in parameters.values()
        ):
            raise ConfigurationError(
                f"--config {path}: [space.{name}] holds `parameter = [values]` lines"
            )
        result[name] = {key: tuple(values) for key, values in parameters.items()}
    return result
