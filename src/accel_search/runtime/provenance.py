"""Describe the hardware, versions and inputs of a measurement."""

from __future__ import annotations

import platform
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from accel_search.core.loras import Lora
from accel_search.core.workload import PACKAGE_OF, PromptSet, Provenance, Workload
from accel_search.runtime.attention import describe_attention
from accel_search.runtime.loading.schedulers import options_of
from accel_search.runtime.nvml import driver_version

PACKAGES = (
    "accel-search",
    "deepcache",
    "diffusers",
    "open_clip_torch",
    "tgate",
    "tomesd",
    "torch",
    "transformers",
)
"""Packages that can change an image or a timing."""

RANDOM_WEIGHTS = "random weights"


def describe(
    pipe: Any,
    workload: Workload,
    prompts: PromptSet,
    *,
    remark: str | None = None,
    loras: Sequence[Lora] = (),
    attention: str = "auto",
    implementation: str = "own",
    targets: Collection[str] = (),
    **fields: Any,
) -> Provenance:
    """Return the provenance of measurements from now on.

    Args:
        pipe: The pipeline, on its device.
        workload: What is measured.
        prompts: Prompts to score on.
        remark: Follows the model's name, e.g. `RANDOM_WEIGHTS`.
        loras: The active LoRAs, in order.
        attention: The requested kernel.
        implementation: What computes the accelerators.
        targets: The accelerators searched.
        fields: What only the caller knows, as the provenance has it: `revision`, `clip_model`,
            `threads`, `weights`, `compiled`, `vae`, `controlnet`, `ip_adapter`, `memory_limit`.
    """
    device = torch.device(workload.device)
    least = min(workload.attention_downsamples, default=1)
    tokens = (workload.latent_height // least) * (workload.latent_width // least)
    where = machine(device)
    used = [PACKAGE_OF.get(name) for name in targets] if implementation == "package" else []
    _keep_used(where["versions"], [*used, *(["peft"] if loras else [])])
    return Provenance(
        **where,
        **fields,
        dtype=workload.dtype,
        height=workload.height,
        width=workload.width,
        batch_size=workload.batch_size,
        guidance_scale=workload.guidance_scale,
        attention_backend=describe_attention(pipe, attention, tokens),
        model_id=model_id(workload.pipeline) + (f" ({remark})" if remark else ""),
        prompt_set_hash=prompts.digest,
        further_prompts_hash=prompts.further_digest,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        implementation=implementation,
        loras=tuple(loras) or None,
        scheduler=options_of(pipe.scheduler),
        call=dict(workload.call) or None,
        offload="model" if getattr(pipe, "_all_hooks", None) else None,
    )


def _keep_used(versions: dict[str, str], used: Collection[str | None]) -> None:
    """Leave the packages of accelerators and LoRAs that are used, and all others."""
    for name in set(PACKAGE_OF.values()) - set(used):
        versions.pop(name, None)
    if "peft" in used:
        versions["peft"] = metadata.version("peft")


def machine(device: torch.device) -> dict[str, Any]:
    """Return the fields of a provenance that depend on the machine alone."""
    return {
        "device_name": device_name(device),
        "driver": driver_version() if device.type == "cuda" else None,
        "versions": package_versions(),
    }


def model_id(pipeline: str) -> str:
    """Return the hub id of a short name; anything else unchanged."""
    from accel_search.runtime.loading.pipeline_folder import HUB_IDS

    return HUB_IDS.get(pipeline, pipeline)


def package_versions() -> dict[str, str]:
    """Return package -> version, for installed packages."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def device_name(device: torch.device) -> str:
    """Return the GPU's model, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
