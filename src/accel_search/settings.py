"""What a search is asked for, checked before any model loads."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from accel_search.cli.completion import Words
from accel_search.cli.options import (
    MAX_SECONDS,
    build_parser,
    check_text,
    declare,
    given_options,
    parse_limit,
    parse_seconds,
    refuse,
)
from accel_search.core.paths import local_folder
from accel_search.core.schedulers import SCHEDULERS, parse_scheduler
from accel_search.core.trial import Goal
from accel_search.errors import ConfigurationError

ATTENTION = ("auto", "flash", "efficient", "cudnn", "math")
DTYPES = ("auto", "float32", "float16", "bfloat16")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
UPPER_BOUND = "upbound_speedup"
"""Goal of a search with no required speedup, as the result file's keys spell it."""


PIPELINES = ("demo", "SD1.5", "SD2.1", "SDXL")
"""What a shell completes; folders and hub ids are taken too."""


def target_names() -> list[str]:
    """Return the accelerators that are installed."""
    from accel_search import accelerators

    return list(accelerators.all_accelerators())


def parse_targets(text: str | Sequence[str]) -> tuple[str, ...]:
    """Parse `deepcache,tome` into sorted, distinct names."""
    names = text.split(",") if isinstance(text, str) else text
    return tuple(sorted({name.strip() for name in names if name.strip()}))


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a search does. Values are checked on construction."""

    # Workload
    pipe: str = declare(
        "demo", "demo, SD1.5, SD2.1, SDXL, a pipeline folder or a hub id", words=PIPELINES
    )
    sched: str = declare(
        "DDIM", "DDIM, DPM-Solver++ or UniPC", parse=parse_scheduler, words=tuple(SCHEDULERS)
    )
    steps: int = declare(20, "denoising steps", parse=int)
    revision: str | None = declare(None, "branch, tag or commit of the hub repository")
    vae: str | None = declare(None, "VAE in place of the pipeline's own: a hub id or a folder")
    device: str = declare(
        "auto", "auto (CUDA if there is one), cpu, cuda or cuda:N", words=("auto", "cpu", "cuda")
    )
    dtype: str = declare(
        "auto", "auto (float16 on CUDA, else float32), float32, float16, bfloat16", words=DTYPES
    )
    guidance_scale: float | None = declare(
        None, "classifier-free guidance scale (default: the model's own)", parse=float
    )
    height: int | None = declare(None, "pixels, a multiple of 8 (default: the model's)", parse=int)
    width: int | None = declare(None, "pixels, a multiple of 8 (default: the model's)", parse=int)
    batch_size: int = declare(4, "images a pipeline call", parse=int)
    threads: int | None = declare(
        None, "CPU threads (default: all cores but one, left to the rest)", parse=int
    )
    attention: str = declare(
        "auto",
        "attention kernel: auto (torch's choice), flash, efficient, cudnn or math",
        words=ATTENTION,
    )
    compile: bool = declare(
        False, "compile the UNet's blocks, for baseline and candidates alike", parse=bool
    )
    memory_limit: float | None = declare(
        None, "GiB of GPU memory to use, as on a smaller GPU (default: all there is)", parse=float
    )
    offload: bool = declare(
        False, "keep parts in main memory until they are called, for small GPUs", parse=bool
    )

    # What is searched
    targets: tuple[str, ...] = declare(
        ("deepcache",),
        "what is searched jointly, comma-separated: deepcache, tome, tgate, steps",
        parse=parse_targets,
        metavar="A,B",
        aliases=("search_targets",),
        words=target_names,
    )
    strategy: str = declare("guided", "what is measured next: guided, bayes, grid or random")
    sampler: str | None = declare(None, "for bayes: tpe or gp (default: tpe)", words=("tpe", "gp"))
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
    max_trials: int | None = declare(None, "begin no more than this many candidates", parse=int)
    time_budget: float | None = declare(
        None, "stop after this long, e.g. 90s, 30m, 2h", parse=parse_seconds, metavar="TIME"
    )
    trial_timeout: float | None = declare(
        None,
        "give up a candidate that hangs for so long; 0: never (default: by the baseline's pace)",
        parse=parse_limit,
        metavar="TIME",
    )
    seed: int = declare(0, "seed of the prompts' noise and of random strategies", parse=int)

    # Scoring
    latency_only: bool = declare(
        False, "speed alone: random weights at full size, nothing fetched or scored", parse=bool
    )
    prompts: str = declare(
        "auto",
        "builtin, coco, or a file; auto: builtin for demo, else coco",
        metavar="FILE",
    )
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
    mlflow: str | None = declare(
        None, "follow the search in MLflow too: its tracking URI", metavar="URI"
    )
    trials_out: str | None = declare(None, "write every trial with raw samples", metavar="FILE")
    replay: str | None = declare(None, "search such a file in place of a pipeline", metavar="FILE")
    report: str | None = declare(
        None,
        "write a page to read in a browser (alone: report.html in run_dir)",
        metavar="FILE",
        alone="auto",
    )
    pictures: int | None = declare(
        None, "prompts that the report shows pictures of (default: 4 with --report)", parse=int
    )
    export: str | None = declare(None, "write a Python script that uses the result", metavar="FILE")
    log_file: str = declare("traversal_search.log", "log, flushed line by line", metavar="FILE")

    # Behaviour
    force: bool = declare(False, "search again though a result or trials are stored", parse=bool)
    verify: bool = declare(
        False, "measure the stored result again; exit code 0 holds, 3 not, 7 open", parse=bool
    )
    json: bool = declare(False, "print one JSON object on stdout and nothing else", parse=bool)
    quiet: bool = declare(False, "print nothing but errors and the result", parse=bool)
    log_level: str = declare(
        "INFO", "DEBUG, INFO, WARNING or ERROR", parse=str.upper, words=LOG_LEVELS
    )

    space: Mapping[str, Mapping[str, tuple[int | float, ...]]] = field(default_factory=dict)
    """Values that replace an accelerator's own: accelerator -> parameter -> values (TOML only)."""

    def __post_init__(self) -> None:
        _check(self)
        # A whole number, as a file may hold, is the same search and has the same key.
        for name in _REAL:
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else float(value))

    @property
    def scheduler_class(self) -> str:
        """Return the diffusers class name of the scheduler."""
        return SCHEDULERS[self.sched]

    @property
    def pictured(self) -> int:
        """Return the prompts that pictures are kept of."""
        if self.pictures is not None:
            return self.pictures
        return 0 if self.report is None else 4

    @property
    def goal(self) -> Goal:
        """Return what is looked for."""
        return Goal(self.req_score_loss, self.req_speedup, self.min_psnr, self.min_ssim)

    @property
    def goal_key(self) -> str | float:
        """Return `upbound_speedup`, or the speedup required."""
        return UPPER_BOUND if self.req_speedup is None else self.req_speedup


_WHOLE = {
    "steps": 1,
    "batch_size": 1,
    "num_samples": 2,
    "held_out_samples": 0,
    "timing_pairs": 1,
    "max_trials": 1,
    "threads": 1,
    "seed": 0,
    "pictures": 0,
}
"""Whole numbers, each with the least value allowed."""

_REAL = {
    "req_score_loss": (0.0, 1.0, "a fraction from 0 to 1, e.g. 0.02 for 2 %"),
    "req_speedup": (1.0, 1000.0, "a factor of 1 or more, e.g. 1.8"),
    "min_psnr": (0.0, 100.0, "decibels from 0 to 100, e.g. 25"),
    "min_ssim": (-1.0, 1.0, "a similarity up to 1, e.g. 0.9"),
    "guidance_scale": (0.0, 1000.0, "a number of 0 or more (1 or less: no guidance)"),
    "time_budget": (0.0, MAX_SECONDS, "a duration, e.g. 30m"),
    "trial_timeout": (0.0, MAX_SECONDS, "a duration, e.g. 90s or 30m, or 0 for none"),
    "memory_limit": (0.1, 1e6, "GiB, 0.1 or more, e.g. 8"),
}
"""Real numbers, each with the least and greatest value allowed and how to say it."""


MAX_PIXELS = 2**16
"""Largest height and width that are taken."""
MAX_VALUE = 2**31 - 1
"""Largest value of a parameter that has no limit of its own."""


def _check(settings: Settings) -> None:
    """Raise ConfigurationError for the first value that is out of range."""
    _check_numbers(settings)
    for each in fields(settings):
        value = getattr(settings, each.name)
        if isinstance(value, str):
            check_text(each.name, value, is_path=each.name != "storage")
    choices = {
        "attention": ATTENTION,
        "dtype": DTYPES,
        "log_level": LOG_LEVELS,
        "sched": tuple(SCHEDULERS),
    }
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            refuse(name, getattr(settings, name), f"one of {', '.join(allowed)}")
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", settings.device):
        refuse("device", settings.device, "auto, cpu, cuda or cuda:N")
    if settings.offload and settings.device == "cpu":
        raise ConfigurationError(
            "--offload: moves parts between main memory and a GPU, but --device is cpu; leave it "
            "out"
        )
    if settings.latency_only and settings.replay is not None:
        raise ConfigurationError(
            "--latency_only and --replay: choose one; a replay measures no pipeline"
        )
    if settings.verify and settings.force:
        raise ConfigurationError(
            "--verify and --force: choose one; --verify measures a stored result again, --force "
            "searches again"
        )
    if settings.json and settings.quiet:
        raise ConfigurationError(
            "--json and --quiet: choose one; --json already prints nothing else"
        )
    _check_revision(settings)
    _check_names(settings)


def _check_revision(settings: Settings) -> None:
    """Refuse a revision of what has none: to ignore it would measure something else."""
    if settings.revision is None:
        return
    instead = None
    if settings.replay is not None:
        instead = "--replay loads no pipeline"
    elif settings.pipe == "demo":
        instead = "--pipe demo is part of this package"
    elif settings.latency_only and settings.pipe in PIPELINES:
        instead = f"--latency_only fetches nothing for --pipe {settings.pipe}"
    elif local_folder(settings.pipe) is not None:
        instead = f"--pipe {settings.pipe} is a folder"
    if instead is not None:
        raise ConfigurationError(
            f"--revision {settings.revision}: {instead}, and only a repository of the hub has "
            "revisions; leave it out, or give a hub id to --pipe"
        )


def _check_numbers(settings: Settings) -> None:
    for name, least in _WHOLE.items():
        value = getattr(settings, name)
        if value is not None and (type(value) is not int or not least <= value < 2**31):
            refuse(name, value, f"a whole number, {least} or more")
    for name in ("height", "width"):
        value = getattr(settings, name)
        if value is not None and (
            type(value) is not int or not 8 <= value <= MAX_PIXELS or value % 8
        ):
            refuse(name, value, f"a multiple of 8 in pixels, at most {MAX_PIXELS}")
    for name, (low, high, allowed) in _REAL.items():
        value = getattr(settings, name)
        # Written so that NaN, which is in no range, is refused too.
        if value is not None and not (type(value) in (int, float) and low <= value <= high):
            refuse(name, value, allowed)


def _check_names(settings: Settings) -> None:
    """Check the names of accelerators and parameters against what is installed."""
    from accel_search import accelerators

    if not settings.targets:
        refuse("targets", "", f"one or more of {', '.join(accelerators.all_accelerators())}")
    for name in settings.targets:
        accelerators.get(name)
    for name, parameters in settings.space.items():
        accelerator = accelerators.get(name)
        known = {parameter.name: parameter for parameter in accelerator.parameters}
        for key, values in parameters.items():
            if key not in known:
                raise ConfigurationError(
                    f"[space.{name}] {key!r}: expected one of {', '.join(known)}"
                )
            parameter = known[key]
            kind = type(parameter.values[0])
            for value in values:
                of_kind = type(value) is kind or (kind is float and type(value) is int)
                most = MAX_VALUE if parameter.maximum is None else parameter.maximum
                # Written so that NaN, which is in no range, is refused too.
                if not of_kind or not parameter.minimum <= value <= most:
                    limit = "" if parameter.maximum is None else f" to {parameter.maximum}"
                    raise ConfigurationError(
                        f"[space.{name}] {key} = {value!r}: expected {kind.__name__} "
                        f"from {parameter.minimum}{limit}"
                    )
            if not values:
                raise ConfigurationError(f"[space.{name}] {key}: expected at least one value")


GROUPS = {
    "pipe": "workload",
    "targets": "search",
    "latency_only": "scoring and timing",
    "output": "files",
    "force": "behaviour",
}
"""First option of each group in the help -> title of the group."""


def search_parser(
    prog: str, description: str, version: str, words: Mapping[str, Words] | None = None
) -> argparse.ArgumentParser:
    """Return the command line of `accel-search`.

    Args:
        prog: Name of the program.
        description: What it does.
        version: Printed by `--version`.
        words: Option -> values that a shell completes, of options whose values are not known here.
    """
    return build_parser(prog, description, version, fields(Settings), GROUPS, words)


def from_command_line(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> Settings:
    """Return the settings of a command line: defaults, then the TOML file, then flags.

    Raises:
        ConfigurationError: An option or a TOML entry is unknown or out of range.
    """
    return Settings(**given_options(parser, arguments, fields(Settings)))
