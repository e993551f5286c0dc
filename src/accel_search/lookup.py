"""Which of the results in `search_params.json` a pipeline is accelerated with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accel_search.errors import ConfigurationError
from accel_search.result_files import read_json
from accel_search.results import by_model, model_of
from accel_search.settings import scheduler_name
from accel_search.space import parse_key


@dataclass(frozen=True)
class Wanted:
    """What a result is to be of; None takes any."""

    pipeline_class: str | None = None
    """Class name of the pipeline."""
    scheduler_class: str | None = None
    """Class name of the scheduler."""
    steps: int | None = None
    targets: Sequence[str] | None = None
    """Accelerators that were searched, exactly these."""
    model: str | None = None
    """Hub id or folder."""

    def fits(self, key: tuple[Any, ...]) -> bool:
        """Tell whether a key of the file, as `parse_key` returns it, is of what is wanted."""
        steps = None if self.steps is None else str(self.steps)
        parts = zip((self.pipeline_class, self.scheduler_class, steps), key[:3], strict=True)
        return all(want in (None, got) for want, got in parts) and (
            self.targets is None or sorted(self.targets) == key[5]
        )

    def __str__(self) -> str:
        steps = None if self.steps is None else f"{self.steps} steps"
        named = (self.model, self.pipeline_class, self.scheduler_class, steps)
        parts = [each for each in named if each]
        if self.targets is not None:
            parts.append(f"targets {', '.join(self.targets)}")
        return ", ".join(parts) or "anything"


def find_settings(
    path: Path, wanted: Wanted | None = None, loaded_from: str | None = None
) -> dict[str, dict[str, Any]]:
    """Return the settings of the fastest stored result that fits.

    Args:
        path: The result file.
        wanted: What it is to be of; None takes any.
        loaded_from: Hub id or folder of the model, but only to choose where results of several
            models fit; None takes the fastest of all.

    Raises:
        ConfigurationError: No stored result fits, or those that do are of several models, none of
            which is that of `loaded_from`.
    """
    wanted = wanted or Wanted()
    content = read_json(path)
    fitting = _fitting(content, wanted)
    if not fitting:
        raise ConfigurationError(f"{path}: {_nothing(content, wanted)}")
    fitting = _of_model(path, fitting, loaded_from)
    best: dict[str, dict[str, Any]] = max(fitting, key=lambda each: float(each["speedup"]))[
        "settings"
    ]
    return best


def _fitting(content: Mapping[str, Any], wanted: Wanted) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for text, value in content.items():
        key = parse_key(text)
        if key is not None and wanted.fits(key):
            found += [
                each for each in by_model(value).values() if wanted.model in (None, model_of(each))
            ]
    return found


def _nothing(content: Mapping[str, Any], wanted: Wanted) -> str:
    """Say that no result fits, and which schedulers there are results of in its place."""
    anyhow = replace(wanted, scheduler_class=None)
    keys = [(text, parse_key(text)) for text in content]
    others = sorted(
        {
            scheduler_name(key[1])
            for text, key in keys
            if key is not None and _fitting({text: content[text]}, anyhow)
        }
    )
    if not others:
        return f"holds no result for {wanted}; run accel-search for it first"
    choice = " or ".join(f'"{each}"' for each in others)
    return f"holds no result for {wanted}, but some with another scheduler: give scheduler={choice}"


def _of_model(
    path: Path, fitting: list[dict[str, Any]], loaded_from: str | None
) -> list[dict[str, Any]]:
    """Return the results of the model that a pipeline was loaded from, if there are several."""
    models = sorted({model_of(each) for each in fitting})
    if loaded_from is None or len(models) < 2:
        return fitting
    found = [each for each in fitting if model_of(each) == loaded_from]
    if not found:
        raise ConfigurationError(
            f"{path}: holds results of {', '.join(models)}, and the pipeline was loaded from "
            f"{loaded_from or 'elsewhere'}: say whose with model="
        )
    return found
