"""The schedulers' names: on the command line, and as classes of diffusers."""

from __future__ import annotations

SCHEDULERS = {
    "DDIM": "DDIMScheduler",
    "DPM-Solver++": "DPMSolverMultistepScheduler",
    "UniPC": "UniPCMultistepScheduler",
}
"""Name on the command line -> diffusers class; the class name is accepted too."""


def parse_scheduler(text: str) -> str:
    """Return the short name of a scheduler given by either name, in any case.

    Raises:
        ValueError: It is not one of `SCHEDULERS`.
    """
    for name, class_name in SCHEDULERS.items():
        if text.lower() in (name.lower(), class_name.lower()):
            return name
    raise ValueError(f"one of {', '.join(SCHEDULERS)}")


def scheduler_class(name: str) -> str:
    """Return the class name of a scheduler given by either name."""
    try:
        return SCHEDULERS[parse_scheduler(name)]
    except ValueError:
        return name


def scheduler_name(class_name: str) -> str:
    """Return the short name of a scheduler's class; of one that has none, the class's own."""
    return {cls: name for name, cls in SCHEDULERS.items()}.get(class_name, class_name)
