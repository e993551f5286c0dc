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


def declare(
    default: Any,
    help_text: str,
    *,
    parse: Callable[[str], Any] = str,
    metavar: str | None = None,
    aliases: tuple[str, ...] = (),
    alone: Any = None,
) -> Any:
    """Declare an option.

    Args:
        default: Its value where it is not given.
        help_text: One line.
        parse: Makes a value of its text, or raises ValueError with what is allowed.
        metavar: Stands for the value in the help.
        aliases: Other names that are understood.
        alone: Its value where it is given without one; None asks for a value.
    """
    metadata = {
        "help": help_text,
        "parse": parse,
        "metavar": metavar,
        "aliases": aliases,
        "alone": alone,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a search does. Values are checked on construction."""

    # Workload
    pipe: str = declare("demo", "demo, SD1.5, SD2.1, SDXL, a pipeline folder or a hub id")
    sched: str = declare("DDIM", "DDIM, DPM-Solver++ or UniPC", parse=parse_scheduler)
    steps: int = declare(20, "denoising steps", parse=int)
    revision: str | None = declare(None, "branch, tag or commit of the hub repository")
    device: str = declare("auto", "auto (CUDA if there is one), cpu, cuda or cuda:N")
    dtype: str = declare("auto", "auto (float16 on CUDA, else float32), float32, float16, bfloat16")
    guidance_scale: float | None = declare(
        None, "classifier-free guidance scale (default: the model's own)", parse=float
    )
    height: int | None = declare(None, "pixels, a multiple of 8 (default: the model's)", parse=int)
    width: int | None = declare(None, "pixels, a multiple of 8 (default: the model's)", parse=int)
    batch_size: int = declare(4, "images a pipeline call", parse=int)
    threads: int | None = declare(
        None, "CPU threads (default: all cores but one, left to the rest)", parse=int
    )
    memory_limit: float | None = declare(
        None, "GiB of GPU memory to use, as on a smaller GPU (default: all there is)", parse=float
    )

    # What is searched
    targets: tuple[str, ...] = declare(
        ("deepcache",),
        "what is searched jointly, comma-separated: deepcache, tome, tgate, steps",
        parse=parse_targets,
        metavar="A,B",
        aliases=("search_targets",),
    )
    strategy: str = declare("guided", "what is measured next: guided, bayes, grid or random")
    sampler: str | None = declare(None, "for bayes: tpe or gp (default: tpe)")
    req_score_loss: float = declare(0.02, "largest loss of CLIP score, as a fraction", parse=float)
    req_speedup: float | None = declare(
        None, "stop at the first candidate this fast (default: find the fastest)", parse=float
    )
    min_psnr: float | None = declare(
        None, "least likeness to the baseline's pictures, in dB (default: none)", parse=float
    )
    min_ssim: float | None = declare(
        None, "least structural similarity to them, 0 to 1 (default: none)", parse=float
    )
    max_trials: int | None = declare(None, "stop after this many measured candidates", parse=int)
    time_budget: float | None = declare(
        None, "stop after this long, e.g. 90s, 30m, 2h", parse=parse_seconds, metavar="TIME"
    )
    seed: int = declare(0, "seed of the prompts' noise and of random strategies", parse=int)

    # Scoring
    latency_only: bool = declare(
        False, "speed alone: random weights at full size, nothing fetched or scored", parse=bool
    )
    prompts: str = declare("auto", "builtin, coco, or a file; auto: builtin for demo, else coco")
    num_samples: int = declare(32, "prompts each candidate is scored on", parse=int)
    held_out_samples: int | None = declare(
        None, "further prompts that confirm the winner (default: as num_samples)", parse=int
    )
    timing_pairs: int = declare(3, "baseline calls timed beside each candidate's own", parse=int)
    clip_model: str | None = declare(
        None, "open_clip model name or folder (default: the demo's, else ViT-L-14)"
    )
    clip_pretrained: str | None = declare(
        None, "open_clip weights tag or file (default: openai for ViT-L-14)"
    )

    # Files
    output: str = declare("search_params.json", "result file", metavar="FILE")
    bounds: str = declare(
        "speedup_bounds.json", "result file of bounds on speed (--latency_only)", metavar="FILE"
    )
    run_dir: str = declare("accel_search_runs", "folder of the trials' database", metavar="DIR")
    storage: str | None = declare(
        None, "Optuna storage URL (default: SQLite in run_dir)", metavar="URL"
    )
    trials_out: str | None = declare(None, "write every trial with raw samples", metavar="FILE")
    replay: str | None = declare(None, "search such a file in place of a pipeline", metavar="FILE")
    log_file: str = declare("traversal_search.log", "log, flushed line by line", metavar="FILE")

    # Behaviour
    force: bool = declare(False, "search again though a result or trials are stored", parse=bool)
    json: bool = declare(False, "print one JSON object on stdout and nothing else", parse=bool)
    quiet: bool = declare(False, "print nothing but errors and the result", parse=bool)
    log_level: str = declare("INFO", "DEBUG, INFO, WARNING or ERROR", parse=str.upper)

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
    "memory_limit": (0.1, math.inf, "GiB, 0.1 or more, e.g. 8"),
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
    if settings.latency_only and settings.replay is not None:
        raise ConfigurationError(
            "--latency_only and --replay: choose one; a replay measures no pipeline"
        )
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


_GROUPS = {
    "pipe": "workload",
    "targets": "search",
    "latency_only": "scoring and timing",
    "output": "files",
    "force": "behaviour",
}
"""First option of each group in the help -> title of the group."""


def build_parser(
    prog: str,
    description: str,
    version: str,
    options: Sequence[Field[Any]] | None = None,
    groups: Mapping[str, str] | None = None,
) -> argparse.ArgumentParser:
    """Return a command line made from the fields of a dataclass.

    Args:
        prog: Name of the program.
        description: What it does.
        version: Printed by `--version`.
        options: Fields that were declared with `option`; None takes those of `Settings`.
        groups: First option of each group in the help -> title of the group, where not as in
            `Settings`.
    """
    titles = _GROUPS | dict(groups or {})
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
    for each in fields(Settings) if options is None else options:
        if not each.metadata:
            continue
        if each.name in titles or group is None:
            group = parser.add_argument_group(titles[each.name])
        _add_option(group, f"--{each.name}", each, _help_line(each))
        # Understood but not shown: the usual spelling with hyphens, and older names.
        for name in (each.name, *each.metadata["aliases"]):
            for flag in dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")):
                if flag != f"--{each.name}":
                    _add_option(group, flag, each, argparse.SUPPRESS)
    return parser


def _help_line(each: Field[Any]) -> str:
    """Return an option's help with its default, as argparse formats it."""
    text: str = each.metadata["help"].replace("%", "%%")
    if each.default in (None, MISSING) or each.metadata["parse"] is bool:
        return text
    shown = each.default
    if isinstance(shown, tuple):
        shown = ",".join(str(one) for one in shown)
    return f"{text} [{shown}]"


def _add_option(
    group: argparse._ArgumentGroup, flag: str, each: Field[Any], help_text: str
) -> None:
    parse = each.metadata["parse"]
    if parse is bool:
        group.add_argument(flag, dest=each.name, action="store_true", help=help_text)
        return
    alone = each.metadata["alone"]
    group.add_argument(
        flag,
        dest=each.name,
        type=_typed(each.name, parse),
        **({} if alone is None else {"nargs": "?", "const": alone}),
        metavar=each.metadata["metavar"] or {int: "N", float: "X"}.get(parse, "NAME"),
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
    return Settings(**given_options(parser, arguments))


def given_options(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    options: Sequence[Field[Any]] | None = None,
) -> dict[str, Any]:
    """Return what a command line and the TOML file that it names say; flags win.

    Args:
        parser: From `build_parser`.
        arguments: None takes the process's own.
        options: Fields that the file may set; None takes those of `Settings`.

    Raises:
        ConfigurationError: An option or a TOML entry is unknown, or cannot be parsed.
    """
    given = vars(parser.parse_args(arguments))
    config = given.pop("config", None)
    return (read_config(Path(config), options, parser.prog) if config else {}) | given


def read_config(
    path: Path, options: Sequence[Field[Any]] | None = None, program: str = "accel-search"
) -> dict[str, Any]:
    """Read a TOML file of options; `[space.NAME]` tables replace parameter values.

    Args:
        path: The file.
        options: Fields that it may set; None takes those of `Settings`.
        program: Whose options they are, for messages.

    Raises:
        ConfigurationError: The file cannot be read or parsed, or holds an unknown key.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"--config {path}: cannot be read as TOML: {error}") from error
    known = {each.name: each for each in (fields(Settings) if options is None else options)}
    names = {
        alias: each.name for each in known.values() for alias in each.metadata.get("aliases", ())
    }
    result: dict[str, Any] = {}
    for name, value in content.items():
        spelled = name.replace("-", "_")
        key = names.get(spelled, spelled)
        if key not in known:
            raise ConfigurationError(
                f"--config {path}: unknown option {name!r}; {program} --help lists them"
            )
        result[key] = _space(path, value) if key == "space" else _value(path, known[key], value)
    return result


def _value(path: Path, each: Field[Any], value: Any) -> Any:
    """Return a TOML value as the option wants it: of its own type, or parsed from text."""
    parse = each.metadata["parse"]
    kinds: dict[Any, Any] = {int: int, float: (int, float), bool: bool, str: str, str.upper: str}
    if parse not in kinds:
        # These read text on the command line; a file may also hold their lists and numbers.
        numbers = type(value) in (int, float) and parse is parse_seconds
        if isinstance(value, str | list):
            return _typed(each.name, parse)(value)  # type: ignore[arg-type]
        if numbers:
            return value
    elif isinstance(value, kinds[parse]) and (parse is bool or not isinstance(value, bool)):
        return parse(value) if parse is str.upper else value
    raise ConfigurationError(f"--config {path}: {each.name} = {value!r} has the wrong type")


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
