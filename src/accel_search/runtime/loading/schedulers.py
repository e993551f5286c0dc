"""Build the requested scheduler from the noise that the pipeline was trained with.

The pipeline's own scheduler is never built, only its configuration is read: its class may need
another package, or refuse values that the requested one accepts.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from accel_search.core.tasks import text_class_of
from accel_search.errors import ConfigurationError, LoadError, first_line

_BETAS = ("beta_start", "beta_end", "beta_schedule", "trained_betas")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
TRIED_STEPS = 10
"""Steps with which a scheduler's options are tried, before anything is loaded."""
_PLUS_PLUS = ("dpmsolver++", "sde-dpmsolver++")


def check_class(given: str, name: str) -> None:
    """Raise LoadError for a scheduler class that diffusers lacks or whose noise is not DDIM's.

    Args:
        given: Option and value, for messages.
        name: Class in `model_index.json`.
    """
    import diffusers

    cls = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if cls is None:
        raise LoadError(
            f"{given}: its scheduler is {name}, which is no scheduler of diffusers "
            f"{diffusers.__version__}: give a pipeline with one, or install the version of "
            "diffusers that it was saved with"
        )
    if not _is_placeholder(cls) and not {"beta_start", "trained_betas"} & _parameters(cls):
        raise _other_noise(given, name)


def check_config(given: str, name: str, config: Mapping[str, Any]) -> None:
    """Raise LoadError for a `scheduler_config.json` from which no DDIM can be built."""
    import diffusers

    says = any(key in config for key in _BETAS)
    if not says and _is_placeholder(getattr(diffusers, name)):
        raise _other_noise(given, name)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS or config.get("use_flow_sigmas"):
        raise _other_noise(given, f"{name} with prediction_type {str(prediction)[:40]!r}")


def check_exchange(given: str, own: Any, class_name: str) -> None:
    """Raise LoadError where a scheduler cannot replace the pipeline's own.

    Args:
        given: Option and value, for messages.
        own: The pipeline's scheduler.
        class_name: diffusers class of the requested one.
    """
    import diffusers

    name = type(own).__name__
    if hasattr(diffusers, name):
        check_class(f"{given}: the pipeline", name)
        check_config(f"{given}: the pipeline", name, own.config)
    asked = _parameters(getattr(diffusers, class_name))
    if not {"beta_start", "trained_betas"} & asked:
        raise LoadError(
            f"{given}: it is for models trained with another noise than Stable Diffusion's (flow "
            "matching, EDM): give DDIM, DPM-Solver++, UniPC or another of theirs"
        )


def check_options(given: str, class_name: str, asked: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for a sampler that diffusers lacks here, or its class's options."""
    import diffusers

    cls = getattr(diffusers, class_name, None)
    if cls is None or _is_placeholder(cls):
        raise ConfigurationError(
            f"{given}: diffusers {diffusers.__version__} has no {class_name} here; give another"
        )
    defaults = inspect.signature(cls.__init__).parameters
    for name, value in asked.items():
        if name not in defaults:
            known = ", ".join(sorted(_parameters(cls) - {"self"}))
            raise ConfigurationError(f"{given}: {class_name} has no option {name}; it has {known}")
        if isinstance(defaults[name].default, bool) is not isinstance(value, bool):
            kind = "true or false" if isinstance(defaults[name].default, bool) else "a value"
            raise ConfigurationError(f"{given}: {name} is {value!r}; give {kind}")
    try:
        cls(**asked).set_timesteps(TRIED_STEPS)
    except Exception as error:  # Values of wrong types raise many classes.
        raise ConfigurationError(f"{given}: no {class_name}: {first_line(error)}") from error


def build_scheduler(
    class_name: str,
    own: Mapping[str, Any],
    pipeline_class: str,
    given: str = "the pipeline",
    asked: Mapping[str, Any] | None = None,
) -> Any:
    """Return a scheduler of a class with the configuration of a pipeline's own scheduler.

    It sets what diffusers' pipelines fix only in the scheduler that they are created with: no
    clipping of the predicted sample, and SD1.5's offset of timesteps by one.

    Args:
        class_name: diffusers class.
        own: Content of the pipeline's `scheduler_config.json`, or its scheduler's `config`.
        pipeline_class: Class of the pipeline.
        given: Option and value, for messages.
        asked: Options that were asked for, whatever the pipeline's own scheduler has.

    Raises:
        LoadError: The configuration does not fit that class.
    """
    import diffusers

    cls = getattr(diffusers, class_name)
    parameters = _parameters(cls)
    stated = own.keys() - set(own.get("_use_default_values", ()))
    options: dict[str, Any] = {}
    is_first = text_class_of(pipeline_class) == "StableDiffusionPipeline"
    if "clip_sample" not in stated or is_first:
        options["clip_sample"] = False
    if is_first:
        options["steps_offset"] = 1
    if "DPMSolver" not in class_name and "algorithm_type" in parameters:  # Theirs is another.
        options["algorithm_type"] = inspect.signature(cls).parameters["algorithm_type"].default
    elif own.get("algorithm_type") not in _PLUS_PLUS:
        options["algorithm_type"] = _PLUS_PLUS[0]
    if "skip_prk_steps" not in stated:  # PNDM as Stable Diffusion uses it.
        options["skip_prk_steps"] = True
    options = {key: value for key, value in options.items() if key in parameters}
    try:
        return cls.from_config(dict(own), **{**options, **(asked or {})})
    except Exception as error:  # Values of wrong types raise many classes.
        raise LoadError(
            f"{given}: its scheduler configuration makes no {class_name} ({first_line(error)}): "
            "choose another --sched, or fetch or save it again"
        ) from error


def options_of(scheduler: Any) -> dict[str, Any]:
    """Return the options of a scheduler that are not its class's defaults, as plain JSON types."""
    defaults = inspect.signature(type(scheduler).__init__).parameters
    stated = {
        name: value
        for name, value in dict(scheduler.config).items()
        if name in defaults and value != defaults[name].default
    }
    plain: dict[str, Any] = json.loads(json.dumps(stated, sort_keys=True, default=list))
    return plain


def _other_noise(given: str, name: str) -> LoadError:
    return LoadError(
        f"{given}: its scheduler is {name}, so the model was trained with noise that DDIM, "
        "DPM-Solver++ and UniPC cannot remove: it cannot be searched"
    )


def _parameters(cls: Any) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters)


def _is_placeholder(cls: Any) -> bool:
    """Return whether a class is diffusers' placeholder for a missing package."""
    from diffusers.utils.import_utils import DummyObject

    return isinstance(cls, DummyObject)
