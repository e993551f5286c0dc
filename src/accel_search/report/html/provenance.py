"""Where and with what a search was measured, as a page lists it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from accel_search.storage.run import Run


def provenance_of(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the names and values of what is known."""
    load, where = run.record.workload, run.record.where
    guidance = load.known().get("guidance_scale")
    named = {
        "Model": where.model_id or load.pipeline,
        "Revision": where.revision,
        "Pipeline": load.pipeline_class,
        "Weights": where.weights,
        "LoRAs": ", ".join(map(str, where.loras or ())),
        "ControlNets": where.controlnet,
        "IP-Adapter": where.ip_adapter,
        "Scheduler": load.scheduler_class,
        "Its options": _options(where.scheduler),
        "Steps": load.steps,
        "Picture": f"{load.width} × {load.height} pixels" if load.width and load.height else None,
        "Batch size": run.baseline.batch_size,
        "Call": _options(where.call),
        "Guidance scale": guidance if guidance is None else str(guidance),
        "Precision": where.dtype or load.dtype,
        "Device": where.device_name or load.device,
        "Driver": where.driver,
        "CPU threads": where.threads,
        "Attention": where.attention_backend,
        "Scored by": where.clip_model,
        "Prompts": where.prompt_set_hash,
        "Measured": where.date or run.record.date,
        "Study": run.record.study,
        "Read from": run.origin,
    }
    for name, value in named.items():
        if value:
            yield name, str(value)
    yield from where.versions.items()


def _options(options: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in (options or {}).items())
