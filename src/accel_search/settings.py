"""The options of a search, checked before any model loads."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from accel_search.cli.completion import Words
from accel_search.cli.options import (
    MAX_SECONDS,
    build_parser,
    declare,
    given_options,
    is_real,
    parse_limit,
    parse_seconds,
    refuse,
)
from accel_search.core.candidate import Candidate
from accel_search.core.loras import AskedLora, parse_lora, parse_loras
from accel_search.core.paths import PIPELINES, local_file
from accel_search.core.schedulers import (
    PLAIN,
    VARIANTS,
    Option,
    Sampler,
    parse_option,
    parse_sampler,
    parse_scheduler,
)
from accel_search.core.tasks import TASKS
from accel_search.core.trial import Goal
from accel_search.core.workload import IMPLEMENTATIONS
from accel_search.errors import ConfigurationError
from accel_search.option_checks import check

ATTENTION = ("auto", "flash", "efficient", "cudnn", "math")
DTYPES = ("auto", "float32", "float16", "bfloat16")
PREDICTIONS = ("epsilon", "v_prediction")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
UPPER_BOUND = "upbound_speedup"
"""Goal of a search with no required speedup, as the result file's keys spell it."""
NAMED = "named"
"""In place of a strategy, where a user named what is measured."""


MAX_PIXELS = 2**16
"""Largest height and width that are taken."""
PIXELS = f"a multiple of 8 in pixels, at most {MAX_PIXELS}"


def target_names() -> list[str]:
    """Return the accelerators that are installed."""
    from accel_search import accelerators

    return list(accelerators.all_accelerators())


def parse_candidates(given: str | Sequence[Any]) -> tuple[Candidate, ...]:
    """Parse one candidate, or a list of them; raises as `notation.parse_candidates`."""
    from accel_search.accelerators import notation

    return notation.parse_candidates(given)


def parse_options(given: str | Sequence[Any]) -> tuple[tuple[str, Option], ...]:
    """Parse one option of a sampler, or a list of them; raises as `parse_option`."""
    texts = [given] if isinstance(given, str) else given
    return tuple(parse_option(each) if isinstance(each, str) else each for each in texts)


def parse_names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return one name, or a list of them, as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given)


def parse_targets(text: str | Sequence[str]) -> tuple[str, ...]:
    """Parse `deepcache,tome` into sorted, distinct names."""
    names = text.split(",") if isinstance(text, str) else text
    return tuple(sorted({name.strip() for name in names if name.strip()}))


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a search does. Values are checked on construction."""

    # `device` and `latency_only` matter too: a result's provenance and its label record them.
    # fmt: off
    # Workload
    pipe: str = declare("demo",
        "demo, SD1.5, SD2.1, SDXL, a folder, a .safetensors file or a hub id", words=PIPELINES,
        affects="timing", sweep=False)
    sched: str = declare("DDIM", "a sampler: DDIM, DPM-Solver++, UniPC, 'Euler a', LCM …",
        parse=parse_scheduler, words=(*PLAIN, *VARIANTS), affects="timing", sweep=False)
    sched_option: tuple[tuple[str, Option], ...] = declare((),
        "an option of the sampler, e.g. karras=true or spacing=trailing; repeat it for several",
        parse=parse_options, metavar="NAME=VALUE", repeat=True, affects=None, sweep=False)
    steps: int = declare(20, "denoising steps", parse=int, affects="timing", sweep=False, least=1)
    revision: str | None = declare(None, "branch, tag or commit of the hub repository",
        affects="timing")
    prediction_type: str | None = declare(None,
        "epsilon or v_prediction, of a .safetensors file (default: as it says)", words=PREDICTIONS,
        affects="score", only=True)
    vae: str | None = declare(None, "VAE in place of the pipeline's own: a hub id or a folder",
        affects="timing")
    lora: tuple[str, ...] = declare((),
        "LoRA, a .safetensors file, folder or hub id, and its scale; repeat it for several",
        parse=parse_loras, metavar="FILE_OR_ID[:SCALE]", repeat=True, affects="timing")
    pipe_class: str = declare("auto",
        f"{', '.join(TASKS)}; auto: as the prompts file's columns say", words=("auto", *TASKS),
        only=True, affects="timing", sweep=False)
    controlnet: tuple[str, ...] = declare((),
        "a ControlNet, a folder or a hub id, and its scale; repeat it for several",
        parse=parse_names, metavar="NAME[:SCALE]", repeat=True, affects="timing", sweep=False)
    ip_adapter: str | None = declare(None,
        "an IP-Adapter: a .safetensors file, a folder with one, or owner/name/FILE of the hub",
        metavar="NAME", affects="timing", sweep=False)
    ip_adapter_scale: float = declare(1.0, "how strongly the IP-Adapter acts", parse=float,
        affects="score", sweep=False, least=0.0, most=10.0, expected="a number from 0 to 10")
    device: str = declare("auto", "auto (CUDA if there is one), cpu, cuda or cuda:N",
        words=("auto", "cpu", "cuda"), affects=None)
    dtype: str = declare("auto", "auto (float16 on CUDA, else float32), float32, float16, bfloat16",
        words=DTYPES, affects="timing", only=True)
    guidance_scale: float | None = declare(None,
        "classifier-free guidance scale (default: the model's own)", parse=float, affects="timing",
        least=0.0, most=1000.0, expected="a number of 0 or more (1 or less: no guidance)")
    negative_prompt: str | None = declare(None, "what no picture shall show, of every prompt",
        metavar="TEXT", affects="score")
    clip_skip: int | None = declare(None,
        "layers of the text encoder left out at its end (default: none)", parse=int,
        affects="score", least=1, most=100)
    height: int | None = declare(None, "pixels, a multiple of 8 (default: the model's)", parse=int,
        affects="timing", least=8, most=MAX_PIXELS, multiple=8, expected=PIXELS)
    width: int | None = declare(None, "pixels, a multiple of 8 (default: the model's)", parse=int,
        affects="timing", least=8, most=MAX_PIXELS, multiple=8, expected=PIXELS)
    batch_size: int = declare(4, "images a pipeline call", parse=int, affects="timing", least=1)
    threads: int | None = declare(None,
        "CPU threads (default: all cores but one, left to the rest)", parse=int, affects="timing",
        least=1)
    attention: str = declare("auto",
        "attention kernel: auto (torch's choice), flash, efficient, cudnn or math", words=ATTENTION,
        affects="timing", only=True)
    compile: bool = declare(False, "compile the UNet's blocks, for baseline and candidates alike",
        parse=bool, affects="timing")
    memory_limit: float | None = declare(None,
        "GiB of GPU memory to use, as on a smaller GPU (default: all there is)", parse=float,
        affects="timing", least=0.1, most=1e6, expected="GiB, 0.1 or more, e.g. 8")
    offload: bool = declare(False,
        "keep parts in main memory until they are called, for small GPUs", parse=bool,
        affects="timing")

    # What is searched
    targets: tuple[str, ...] = declare(("deepcache",),
        "accelerators to search jointly, comma-separated: deepcache, tome, tgate, steps",
        parse=parse_targets, metavar="A,B", aliases=("search_targets",), words=target_names,
        affects="timing", sweep=False)
    candidate: tuple[Candidate, ...] = declare((),
        "measure these settings and no others, e.g. 'deepcache(3,0)'; repeat it for several",
        parse=parse_candidates, metavar="SETTINGS", repeat=True, affects=None, sweep=False)
    implementation: str = declare("own",
        "own, or package: the accelerators of DeepCache, tomesd and tgate themselves",
        words=IMPLEMENTATIONS, affects="timing", only=True)
    strategy: str = declare("guided", "search strategy: guided, bayes, grid or random",
        affects="search")
    sampler: str | None = declare(None, "for bayes: tpe or gp (default: tpe)", words=("tpe", "gp"),
        affects="search")
    req_score_loss: float = declare(0.02, "largest loss of CLIP score, as a fraction", parse=float,
        affects="search", least=0.0, most=1.0, expected="a fraction from 0 to 1, e.g. 0.02 for 2 %")
    req_speedup: float | None = declare(None,
        "stop at the first candidate this fast (default: find the fastest)", parse=float,
        affects="search", sweep=False, least=1.0, most=1000.0,
        expected="a factor of 1 or more, e.g. 1.8")
    min_psnr: float | None = declare(None,
        "least PSNR to the baseline's images, in dB (default: none)", parse=float,
        affects="search", least=0.0, most=100.0, expected="decibels from 0 to 100, e.g. 25")
    min_ssim: float | None = declare(None,
        "least structural similarity to them, 0 to 1 (default: none)", parse=float,
        affects="search", least=-1.0, most=1.0, expected="a similarity up to 1, e.g. 0.9")
    max_tail_loss: float | None = declare(None,
        "largest loss over the worst tenth of prompts, as a fraction (default: none)", parse=float,
        affects="search", least=0.0, most=1.0, expected="a fraction from 0 to 1, e.g. 0.2 for 20 %")
    max_trials: int | None = declare(None, "measure no more than this many candidates", parse=int,
        affects="search", least=1)
    time_budget: float | None = declare(None, "stop after this long, e.g. 90s, 30m, 2h",
        parse=parse_seconds, metavar="TIME", affects="search", least=0.0, most=MAX_SECONDS,
        expected="a duration, e.g. 30m")
    trial_timeout: float | None = declare(None,
        "give up a candidate after this long; 0: never (default: by the baseline's pace)",
        parse=parse_limit, metavar="TIME", affects=None, least=0.0, most=MAX_SECONDS,
        expected="a duration, e.g. 90s or 30m, or 0 for none")
    seed: int = declare(0, "seed of the prompts' noise and of random strategies", parse=int,
        affects="score", least=0)

    # Scoring
    latency_only: bool = declare(False,
        "speed alone: random weights at full size, nothing fetched or scored", parse=bool,
        affects=None)
    prompts: str = declare("auto", "builtin, coco, or a file; auto: builtin for demo, else coco",
        metavar="FILE", affects="score")
    num_samples: int = declare(32, "prompts each candidate is scored on", parse=int,
        affects="score", least=2)
    held_out_samples: int | None = declare(None,
        "prompts that validate a winner at first; 4 times as many at most (default: num_samples)",
        parse=int,
        affects="score", least=0)
    timing_pairs: int = declare(4, "baseline calls timed beside each candidate's own", parse=int,
        affects="timing", least=1)
    clip_model: str | None = declare(None,
        "open_clip model name or folder (default: the demo's, else ViT-L-14)", affects="score")
    clip_pretrained: str | None = declare(None,
        "open_clip weights tag or file (default: openai for ViT-L-14)", affects="score")

    # Files
    output: str = declare("search_params.json", "result file", metavar="FILE", affects=None)
    bounds: str = declare("speedup_bounds.json", "result file of bounds on speed (--latency_only)",
        metavar="FILE", affects=None)
    run_dir: str = declare("accel_search_runs", "folder of the trials' database", metavar="DIR",
        affects=None)
    storage: str | None = declare(None, "Optuna storage URL (default: SQLite in run_dir)",
        metavar="URL", affects=None)
    mlflow: str | None = declare(None, "follow the search in MLflow too: its tracking URI",
        metavar="URI", affects=None)
    trials_out: str | None = declare(None, "write every trial with its raw samples", metavar="FILE",
        affects=None, sweep=False)
    replay: str | None = declare(None, "search a --trials_out file, not a pipeline", metavar="FILE",
        affects=None, sweep=False)
    report: str | None = declare(None,
        "write a page to read in a browser (alone: report.html in run_dir)", metavar="FILE",
        alone="auto", affects=None, sweep=False)
    pictures: int | None = declare(None,
        "prompts whose images the report shows (default: 4 with --report)", parse=int,
        affects=None, least=0)
    export: str | None = declare(None, "write a Python script that uses the result", metavar="FILE",
        affects=None, sweep=False)
    junit: str | None = declare(None, "write the verdicts as JUnit XML, for a CI", metavar="FILE",
        affects=None, sweep=False)
    markdown: str | None = declare(None, "write the verdicts and figures as a Markdown table",
        metavar="FILE", affects=None, sweep=False)
    log_file: str = declare("traversal_search.log", "log, flushed line by line", metavar="FILE",
        affects=None, sweep=False)

    # Behaviour
    force: bool = declare(False, "search again even if a result is stored", parse=bool,
        affects=None)
    verify: bool = declare(False,
        "measure the stored result again; exit code: 0 holds, 3 does not, 7 open", parse=bool,
        affects=None, sweep=False)
    list: bool = declare(False, "show what the result file holds, and measure nothing", parse=bool,
        affects=None, sweep=False)
    json: bool = declare(False, "print one JSON object on stdout and nothing else", parse=bool,
        affects=None, sweep=False)
    quiet: bool = declare(False, "print nothing but errors and the result", parse=bool,
        affects=None, sweep=False)
    log_level: str = declare("INFO", "DEBUG, INFO, WARNING or ERROR", parse=str.upper,
        words=LOG_LEVELS, affects=None, only=True)
    # fmt: on

    space: Mapping[str, Mapping[str, tuple[int | float, ...]]] = field(default_factory=dict)
    """Values that replace an accelerator's own: accelerator -> parameter -> values (TOML only)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidate", tuple(self.candidate))
        object.__setattr__(self, "lora", _spelled(self.lora))
        object.__setattr__(self, "controlnet", tuple(self.controlnet))
        if self.candidate:
            own = None if self.targets == Settings.targets else self.targets
            object.__setattr__(self, "targets", _targets_of(self.candidate, own))
        object.__setattr__(self, "sched", _sampler(self.sched, self.sched_option))
        object.__setattr__(self, "sched_option", ())  # A part of the sampler from now on.
        check(self)
        # A file may hold a whole number: it must give the same search and the same key.
        for option in fields(self):
            value = getattr(self, option.name)
            if is_real(option) and value is not None:
                object.__setattr__(self, option.name, float(value))

    @property
    def call(self) -> tuple[tuple[str, str | int], ...]:
        """Return further arguments of every pipeline call, with their values."""
        given = {"negative_prompt": self.negative_prompt, "clip_skip": self.clip_skip}
        return tuple((name, value) for name, value in given.items() if value is not None)

    @property
    def loras(self) -> tuple[AskedLora, ...]:
        """Return the LoRAs that the pipeline gets, in order."""
        return tuple(parse_lora(text) for text in self.lora)

    @property
    def sampler_asked(self) -> Sampler:
        """Return the scheduler and its options."""
        return parse_sampler(self.sched)

    @property
    def pipe_file(self) -> Path | None:
        """Return the file that `pipe` is; None for a name, a folder, a hub id or a replay."""
        if self.pipe in PIPELINES or self.replay is not None:
            return None
        return local_file(self.pipe)

    @property
    def scheduler_class(self) -> str:
        """Return the diffusers class name of the scheduler."""
        return self.sampler_asked.class_name

    @property
    def pictured(self) -> int:
        """Return the number of prompts whose images are kept."""
        if self.pictures is not None:
            return self.pictures
        return 0 if self.report is None else 4

    @property
    def goal(self) -> Goal:
        """Return what the search looks for."""
        return Goal(
            self.req_score_loss,
            self.req_speedup,
            self.min_psnr,
            self.min_ssim,
            self.max_tail_loss,
        )

    @property
    def goal_key(self) -> str | float:
        """Return `upbound_speedup`, or the speedup required."""
        return UPPER_BOUND if self.req_speedup is None else self.req_speedup


AFFECTING = {
    option.name: option.metadata["affects"]
    for option in fields(Settings)
    if option.metadata and option.metadata["affects"] and option.metadata["sweep"]
}
"""Option that a stored result depends on -> what it affects; those of its key are left out."""


def _spelled(loras: Sequence[str]) -> tuple[str, ...]:
    """Return LoRAs in their one spelling, whoever made the settings."""
    try:
        return parse_loras(loras)
    except ValueError as error:
        refuse("lora", list(loras), str(error))


def _sampler(sched: str, options: Sequence[tuple[str, Option]]) -> str:
    """Return the text of a sampler with further options."""
    try:
        return str(parse_sampler(sched).with_options(options))
    except ValueError as error:
        refuse("sched", sched, str(error))


def _targets_of(
    candidates: Sequence[Candidate], targets: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Return the accelerators of candidates; other targets given beside them are a mistake."""
    used = tuple(sorted({name for candidate in candidates for name in candidate}))
    if targets not in (None, used):
        raise ConfigurationError(
            f"--targets {','.join(targets)}: the accelerators of --candidate are {','.join(used)}; "
            "leave --targets out"
        )
    return used


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
        words: Option -> values that a shell completes, where they are not known here.
    """
    return build_parser(prog, description, version, fields(Settings), GROUPS, words)


def from_command_line(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> Settings:
    """Return the settings of a command line: defaults, then the TOML file, then flags.

    Raises:
        ConfigurationError: An option or a TOML entry is unknown or out of range.
    """
    given = given_options(parser, arguments, fields(Settings))
    if "candidate" in given and "targets" in given:
        _targets_of(given["candidate"], given["targets"])  # The default's name is not the default.
    return Settings(**given)
