"""Samplers: their usual names, and the schedulers of diffusers with options that they stand for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Option = bool | int | float | str

SCHEDULERS = {
    "DDIM": "DDIMScheduler",
    "DPM-Solver++": "DPMSolverMultistepScheduler",
    "UniPC": "UniPCMultistepScheduler",
}
"""The samplers of a sweep's table: name -> diffusers class."""
PLAIN = {
    **SCHEDULERS,
    "DDPM": "DDPMScheduler",
    "DEIS": "DEISMultistepScheduler",
    "DPM++ SDE": "DPMSolverSinglestepScheduler",
    "DPM2": "KDPM2DiscreteScheduler",
    "DPM2 a": "KDPM2AncestralDiscreteScheduler",
    "Euler": "EulerDiscreteScheduler",
    "Euler a": "EulerAncestralDiscreteScheduler",
    "Heun": "HeunDiscreteScheduler",
    "LCM": "LCMScheduler",
    "LMS": "LMSDiscreteScheduler",
    "PNDM": "PNDMScheduler",
    "SA-Solver": "SASolverScheduler",
    "TCD": "TCDScheduler",
}
"""All samplers at the defaults of their class."""
_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
VARIANTS: dict[str, tuple[str, dict[str, Option]]] = {
    "DPM++ 2M Karras": ("DPM-Solver++", {**_KARRAS}),
    "DPM++ 2M SDE": ("DPM-Solver++", {**_SDE}),
    "DPM++ 2M SDE Karras": ("DPM-Solver++", {**_SDE, **_KARRAS}),
    "DPM++ SDE Karras": ("DPM++ SDE", {**_KARRAS}),
    "DPM2 Karras": ("DPM2", {**_KARRAS}),
    "DPM2 a Karras": ("DPM2 a", {**_KARRAS}),
    "Euler Karras": ("Euler", {**_KARRAS}),
    "Heun Karras": ("Heun", {**_KARRAS}),
    "LMS Karras": ("LMS", {**_KARRAS}),
}
"""Samplers that are one of `PLAIN` with options."""
_ALIASES = {"DPM++ 2M": "DPM-Solver++", "DPM++": "DPM-Solver++", "Euler ancestral": "Euler a"}
OPTIONS = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
    "lu": "use_lu_lambdas",
    "spacing": "timestep_spacing",
    "algorithm": "algorithm_type",
    "order": "solver_order",
}
"""Short name of an option -> its name in diffusers."""
_LONG = {
    *OPTIONS.values(),
    *("euler_at_final", "final_sigmas_type", "lower_order_final", "predict_x0", "sigma_max"),
    *("rescale_betas_zero_snr", "set_alpha_to_one", "solver_type", "sigma_min", "variance_type"),
    *("original_inference_steps", "interpolation_type", "timestep_type", "predictor_order"),
    *("corrector_order", "lambda_min_clipped", "thresholding", "steps_offset"),
}
"""Options by their names in diffusers."""
_NOTATION = re.compile(r"\s*(?P<name>[^()]+?)\s*(?:\((?P<options>[^()]*)\))?\s*")


@dataclass(frozen=True)
class Sampler:
    """A scheduler of diffusers with options; its text is what `parse_sampler` takes."""

    name: str
    """A name of `PLAIN` or `VARIANTS`."""
    further: Mapping[str, Option] = field(default_factory=lambda: MappingProxyType({}))
    """Options beside those that the name stands for, by their names in diffusers."""

    @property
    def class_name(self) -> str:
        """Return the class of diffusers."""
        return PLAIN[VARIANTS[self.name][0] if self.name in VARIANTS else self.name]

    @property
    def options(self) -> dict[str, Option]:
        """Return the options that the scheduler is made with, beside the pipeline's own."""
        return {**(VARIANTS[self.name][1] if self.name in VARIANTS else {}), **self.further}

    def with_options(self, options: Iterable[tuple[str, Option]]) -> Sampler:
        """Return it with further options; those that its name stands for are left out."""
        own = Sampler(self.name).options
        further = dict(sorted({**self.further, **dict(options)}.items()))
        return Sampler(
            self.name,
            {key: value for key, value in further.items() if (key, value) not in own.items()},
        )

    def __str__(self) -> str:
        if not self.further:
            return self.name
        return f"{self.name}({', '.join(f'{name}={_text(v)}' for name, v in self.further.items())})"


def parse_sampler(text: str) -> Sampler:
    """Return a sampler by its name or class, in any case, with options: `Euler(karras=true)`.

    Raises:
        ValueError: It is none; the message names the samplers, or the option that is wrong.
    """
    match = _NOTATION.fullmatch(text)
    name = None if match is None else _names().get(_plain(match["name"]))
    if match is None or name is None:
        near = difflib.get_close_matches(_plain(text), _names(), 1)
        guess = f"; did you mean {_names()[near[0]]!r}?" if near else ""
        raise ValueError(f"one of {', '.join((*PLAIN, *VARIANTS))}{guess}")
    given = (match["options"] or "").split(",")
    return Sampler(name).with_options(parse_option(each) for each in given if each.strip())


def parse_option(text: str) -> tuple[str, Option]:
    """Return an option of a sampler and its value: `karras=true`, `timestep_spacing=trailing`.

    Raises:
        ValueError: It has no value, or no scheduler has such an option.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    name = OPTIONS.get(name, name)
    if not equals or not re.fullmatch(r"[\w.+-]+", value):
        raise ValueError("an option with its value, e.g. karras=true or timestep_spacing=trailing")
    if name not in _LONG:
        known = (*OPTIONS, *sorted(_LONG - set(OPTIONS.values())))
        near = difflib.get_close_matches(name, (*known, *OPTIONS.values()), 1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"an option of schedulers: {', '.join(known)}{guess}")
    if name == "solver_order" and value not in ("1", "2", "3"):
        raise ValueError("order=1, order=2 or order=3")
    return name, _value(value)


def _value(text: str) -> Option:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _text(value: Option) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name.strip()).lower()


def _names() -> dict[str, str]:
    return dict(_spellings())


def _spellings() -> Iterator[tuple[str, str]]:
    """Yield each accepted spelling and its sampler; classes with and without `Scheduler`."""
    for name in (*PLAIN, *VARIANTS):
        yield _plain(name), name
    for alias, name in _ALIASES.items():
        yield _plain(alias), name
    for name, class_name in PLAIN.items():
        yield class_name.lower(), name
        yield class_name.removesuffix("Scheduler").lower(), name


def parse_scheduler(text: str) -> str:
    """Return the text of a sampler; raises as `parse_sampler`."""
    return str(parse_sampler(text))


def class_and_options(name: str) -> tuple[str, dict[str, Option]]:
    """Return the class name of a sampler and its options; anything else unchanged, without any."""
    try:
        sampler = parse_sampler(name)
    except ValueError:
        return name, {}
    return sampler.class_name, sampler.options


def scheduler_class(name: str) -> str:
    """Return the class name of a sampler; anything else unchanged."""
    return class_and_options(name)[0]


def sampler_name(class_name: str, options: Mapping[str, object] | None) -> str:
    """Return the sampler that a scheduler is: one of `VARIANTS` by its options, else its class's.

    Args:
        class_name: The class of diffusers.
        options: The scheduler's, as a provenance has them; None if unknown.
    """
    plain = scheduler_name(class_name)
    known = dict(options or {}).items()
    fitting = [
        (len(own), name)
        for name, (base, own) in VARIANTS.items()
        if base == plain and own.items() <= known
    ]
    return max(fitting, default=(0, plain))[1]


def scheduler_name(class_name: str, asked: str | None = None) -> str:
    """Return the sampler of a scheduler's class; of one that has none, the class's own name.

    Args:
        class_name: The class of diffusers.
        asked: The sampler that was asked for, which is returned where it is of that class.
    """
    try:
        sampler = parse_sampler(asked or "")
        if sampler.class_name == class_name:
            return str(sampler)
    except ValueError:  # A file may hold anything.
        pass
    return {cls: name for name, cls in PLAIN.items()}.get(class_name, class_name)
