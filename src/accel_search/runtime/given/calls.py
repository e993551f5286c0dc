"""Call a pipeline as its owner does: with arguments of theirs, or through a function of theirs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import xxhash

from accel_search.core.workload import Prompt, Workload
from accel_search.errors import ConfigurationError
from accel_search.runtime.given.fingerprint import described
from accel_search.runtime.loading.pipelines import default_of, takes
from accel_search.runtime.measuring.generation import Call, prepare, prompt_generators

Generate = Callable[[Any, Sequence[Mapping[str, Any]], Sequence[torch.Generator]], Any]
"""Makes an image per case: called with the pipeline, the cases and a generator for each."""
OPTIONS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance_scale",
    "height": "height",
    "width": "width",
    "prompt": "prompts",
}
"""Argument of a call -> the option that sets it."""
OURS = (
    *("generator", "latents", "output_type", "return_dict", "num_images_per_prompt"),
    *("prompt_embeds", "callback_on_step_end", "callback"),
)
"""Arguments that every measured call has of its own, or that would make its prompts something
else."""


@dataclass(frozen=True)
class OwnersCalls:
    """Prepares the calls of a pipeline with the arguments, or by the function, of its owner."""

    call: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of every call."""
    generate: Generate | None = None
    """Makes the images in place of one call; None calls the pipeline."""
    cases: Mapping[Prompt, Mapping[str, Any]] = field(default_factory=dict)
    """Prompt -> the case that it was given as."""

    def check(self, pipe: Any) -> None:
        """Raise ConfigurationError for arguments that are not taken, or that an option sets."""
        if self.generate is not None:
            if self.call:
                raise ConfigurationError(
                    f"call={{{', '.join(map(repr, self.call))}}}: generate= makes the calls: give "
                    "their arguments there"
                )
            return
        known = arguments_of(pipe)
        further = {name for case in self.cases.values() for name in case} - {"prompt", "seed"}
        for name in (*self.call, *sorted(further)):
            if name in OPTIONS:
                raise ConfigurationError(f"call: {name!r} is set by {OPTIONS[name]}=; give that")
            if name in OURS:
                raise ConfigurationError(
                    f"call: {name!r} is set in every measured call; leave it out, or give generate="
                )
            if known is not None and name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise ConfigurationError(
                    f"call: {type(pipe).__name__} takes no argument {name!r}"
                    + (f"; did you mean {near[0]!r}?" if near else "")
                )

    def described(self, pipe: Any) -> tuple[tuple[str, Any], ...]:
        """Return what a result's identity holds of these calls."""
        given = dict(self.call)
        if self.generate is not None:
            given["generate"] = _named(self.generate)
        elif takes(pipe, "strength"):  # By which the number of UNet calls is known.
            given.setdefault("strength", default_of(pipe, "strength"))
        return tuple((name, described(value)) for name, value in sorted(given.items()))

    def prepare(
        self,
        pipe: Any,
        workload: Workload,
        prompts: Sequence[Prompt],
        steps: int | None = None,
        *,
        decode: bool = True,
    ) -> Call:
        """Prepare one call, as `generation.prepare` does; `generate` knows no shorter calls."""
        cases = [self.cases.get(prompt, {"prompt": prompt.text}) for prompt in prompts]
        if self.generate is not None:
            generators = prompt_generators([prompt.seed for prompt in prompts])
            return _Generated(self.generate, pipe, cases, generators)
        further = {name: _for_all(value, len(prompts)) for name, value in self.call.items()}
        further |= _columns(cases)
        return prepare(pipe, workload, prompts, steps, decode=decode, further=further)


def arguments_of(pipe: Any) -> set[str] | None:
    """Return the arguments that a pipeline's call takes; None where it takes any."""
    cls = type(pipe)
    parameters = inspect.signature(cls.__call__).parameters
    # Those of diffusers take further ones, too, but ignore all that are not of earlier versions.
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    if takes_any and not cls.__module__.startswith("diffusers."):
        return None
    return set(parameters) - {"self", "kwargs"}


@dataclass(frozen=True)
class _Generated:
    """One prepared call of the owner's function."""

    generate: Generate
    pipe: Any
    cases: Sequence[Mapping[str, Any]]
    generators: Sequence[torch.Generator]

    def __call__(self) -> torch.Tensor:
        """Return `[B, 3, H, W]`, 0..1."""
        return as_tensor(self.generate(self.pipe, self.cases, self.generators), len(self.cases))


def as_tensor(images: Any, count: int) -> torch.Tensor:
    """Return images of any kind that pipelines make as `[B, 3, H, W]`, 0..1.

    Args:
        images: A pipeline's output, a tensor `[B, 3, H, W]`, an array `[B, H, W, 3]`, or a list of
            such without their first axis, or of Pillow's pictures.
        count: Images that are expected.

    Raises:
        ConfigurationError: They are something else.
    """
    import numpy as np

    images = getattr(images, "images", images)
    if isinstance(images, list | tuple) and images:
        if isinstance(images[0], torch.Tensor):
            images = torch.stack(list(images))
        else:
            rgb = [each.convert("RGB") if hasattr(each, "convert") else each for each in images]
            images = np.stack([np.asarray(each) for each in rgb])
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    shape = list(getattr(images, "shape", ()))
    if not isinstance(images, torch.Tensor) or len(shape) != 4 or shape[:2] != [count, 3]:
        raise ConfigurationError(
            f"generate: returned {type(images).__name__} {shape or ''} for {count} cases; return a "
            "pipeline's output, a list of pictures, or a tensor [cases, 3, height, width] from 0 "
            "to 1"
        )
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _for_all(value: Any, count: int) -> Any:
    """Return a text for each prompt: of a single one, SD1.5 would make one embedding in all."""
    return [value] * count if isinstance(value, str) else value


def _columns(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the further arguments of cases as lists, one value a case.

    Raises:
        ConfigurationError: Some cases have an argument that others lack.
    """
    names = {name for case in cases for name in case} - {"prompt", "seed"}
    for name in names:
        lacking = sum(name not in case for case in cases)
        if lacking:
            raise ConfigurationError(f"prompts: {name!r} is missing in some cases; give it in all")
    return {name: [case[name] for case in cases] for name in sorted(names)}


def _named(function: Callable[..., Any]) -> str:
    """Return a function's name with a digest of its text, so that a changed one is another."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        text = ""
    return f"{described(function)} {xxhash.xxh3_64_hexdigest(text.encode())}"
