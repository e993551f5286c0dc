"""The prompts and cases that a caller gives in Python."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import TypeIs

from accel_search.core.workload import Prompt, PromptSet
from accel_search.errors import ConfigurationError
from accel_search.runtime.given.fingerprint import described
from accel_search.runtime.loading.prompts import cut, load_prompts, noise_seed, rank
from accel_search.runtime.workbench import timing_prompts
from accel_search.settings import Settings

Case = str | Mapping[str, Any]
"""A prompt, or a mapping with `prompt`, perhaps `seed`, and arguments of its call."""
Given = str | Path | Sequence[Case] | None
SOURCE = "given"
"""Where prompts in memory are from, as a record says it."""
MOST = 32
"""Default number of prompts to search on."""


def is_source(prompts: Given) -> TypeIs[str | Path | None]:
    """Return whether prompts are named as `--prompts` names them, and not given themselves."""
    return prompts is None or isinstance(prompts, str | Path)


def samples_of(prompts: Sequence[Case]) -> int:
    """Return the default number of prompts to search on, and of held-out ones.

    Raises:
        ConfigurationError: There are too few.
    """
    count = len(dict.fromkeys(map(described, prompts)))
    if count < 4:
        raise ConfigurationError(
            f"prompts: {count} given; give 4 or more different ones, better 64, or builtin or a "
            "file: half are searched on, the others validate the winner"
        )
    return min(MOST, count // 2)


def prompt_set(
    prompts: Given, settings: Settings
) -> tuple[PromptSet, dict[Prompt, Mapping[str, Any]]]:
    """Return the prompts of a search, and what each was given as.

    Args:
        prompts: Texts or cases; a name or a file is loaded as the settings say.
        settings: Give the numbers and the seed.

    Raises:
        ConfigurationError: A case has no prompt, a seed that is none, or there are too few.
        LoadError: They cannot be loaded.
    """
    if settings.latency_only and is_source(prompts):
        return timing_prompts(settings.batch_size), {}
    if is_source(prompts):
        return load_prompts(settings), {}
    cases = dict(_cases(prompts, settings.seed))
    ordered = sorted(cases, key=lambda prompt: rank(settings.seed, _key(prompt, settings.seed)))
    held_out = settings.held_out_samples
    held_out = settings.num_samples if held_out is None else held_out
    return cut(ordered, SOURCE, settings.num_samples, held_out), cases


def _key(prompt: Prompt, seed: int) -> str:
    """Return what a prompt's place depends on: of a text alone what a prompts file's depends on."""
    is_text_alone = not prompt.inputs and prompt.seed == noise_seed(seed, prompt.text)
    return prompt.text if is_text_alone else json.dumps(prompt.identity)


def _cases(prompts: Iterable[Any], seed: int) -> Iterable[tuple[Prompt, Mapping[str, Any]]]:
    for number, given in enumerate(prompts, 1):
        case = {"prompt": given} if isinstance(given, str) else given
        if not isinstance(case, Mapping) or not isinstance(case.get("prompt"), str):
            raise ConfigurationError(
                f"prompts: number {number} is {type(given).__name__}; give a text, or a mapping "
                "with a text as its prompt"
            )
        text = unicodedata.normalize("NFC", case["prompt"]).strip()
        if not text:
            continue
        own = case.get("seed")
        if own is not None and (not isinstance(own, int) or not 0 <= own < 2**63):
            raise ConfigurationError(
                f"prompts: the seed of number {number} is {own!r}; give a whole number, 0 or more"
            )
        further = {name: value for name, value in case.items() if name not in ("prompt", "seed")}
        inputs = tuple((name, described(value)) for name, value in sorted(further.items()))
        noise = noise_seed(seed, text) if own is None else own
        yield Prompt(text, noise, inputs), {**case, "prompt": text, "seed": noise}
