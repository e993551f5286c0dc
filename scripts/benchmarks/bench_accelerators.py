r"""Time our accelerators against the packages' own, in turn, on one pipeline.

    python scripts/benchmarks/bench_accelerators.py --models SDXL --steps 20 --batches 4 \
        --out docs/data/packages_h200.json
    python scripts/benchmarks/bench_accelerators.py --models demo --device cpu

Full-size pipelines have random weights: their values do not bear on time. Every setting is called
in turn, the baseline pipeline, ours and the package's (as `--implementation package` applies it),
and the turns repeated, so that all meet the same machine; each figure is a median, and its noise
the spread of the baseline's calls.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from accel_search.accelerators.compose import apply_candidate
from accel_search.runtime.devices import dtype_name
from accel_search.runtime.loading.pipelines import load_pipeline
from accel_search.runtime.loading.random_weights import build_random
from accel_search.runtime.measuring.timing import timed
from accel_search.runtime.provenance import machine
from accel_search.settings import Settings

DEEPCACHE = {"deepcache": {"cache_interval": 3, "cache_branch_id": 0}}
TOME = {"tome": {"ratio": 0.5, "max_downsample": 1}}
TGATE = {"tgate": {"gate_step": 10, "sp_interval": 5, "fi_interval": 1, "warmup": 2}}
HARSH = {"tgate": {"gate_step": 5, "sp_interval": 9, "fi_interval": 5, "warmup": 1}}
SETTINGS: dict[str, dict[str, Any]] = {
    "deepcache(3, 0)": DEEPCACHE,
    "tgate(10, 5, 1, 2)": TGATE,
    "tgate(5, 9, 5, 1)": HARSH,
    "tome(0.5, 1)": TOME,
    "deepcache + tgate": DEEPCACHE | TGATE,
    "deepcache + tome": DEEPCACHE | TOME,
}
SIZES = {"demo": 128, "SD1.5": 512, "SDXL": 1024}


def main() -> None:
    """Time every setting and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", default="SD1.5,SDXL")
    parser.add_argument("--steps", default="20,50")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = torch.device(options.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    where = machine(device)
    table: dict[str, Any] = {
        "device": where.pop("device_name"),
        **where,
        "dtype": dtype_name(dtype),
        "rows": [],
    }
    for model in options.models.split(","):
        comparison = Comparison(model, device, dtype)
        for batch in (int(count) for count in options.batches.split(",")):
            for steps in (int(count) for count in options.steps.split(",")):
                table["rows"] += comparison.rows(batch, steps, options.repeats)
                if options.out is not None:  # What there is, should the time run out.
                    options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        del comparison
        gc.collect()
        torch.cuda.empty_cache()


class Comparison:
    """A pipeline that ours and the packages' accelerators are applied to in turn."""

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.device = model, device
        if model == "demo":
            settings = Settings(device=str(device), dtype=dtype_name(dtype))
            self.pipe, _ = load_pipeline(settings, logging.getLogger(__name__))
        else:
            self.pipe = build_random(model, device, dtype)
        self.pipe.set_progress_bar_config(disable=True)

    def rows(self, batch: int, steps: int, repeats: int) -> list[dict[str, Any]]:
        """Return one row a setting: seconds a call of the baseline, ours and the package's."""
        calls: dict[tuple[str, str], dict[str, Any]] = {("baseline", ""): {}}
        for name, candidate in SETTINGS.items():
            calls["own", name] = calls["package", name] = candidate
        samples: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
        for turn in range(repeats + 1):
            for (kind, name), candidate in calls.items():
                seconds = self._seconds(candidate, kind, batch, steps)
                if turn:  # The first turn warms up.
                    samples[kind, name].append(seconds)
        bare = samples["baseline", ""]
        spread = (max(bare) - min(bare)) / statistics.median(bare)
        rows = []
        for name in SETTINGS:
            ours, theirs = samples["own", name], samples["package", name]
            middle = [statistics.median(seconds) for seconds in (bare, ours, theirs)]
            row = {
                "model": self.model,
                "batch": batch,
                "steps": steps,
                "setting": name,
                "seconds_bare": bare,
                "seconds_ours": ours,
                "seconds_theirs": theirs,
                "speedup_ours": round(middle[0] / middle[1], 3),
                "speedup_theirs": round(middle[0] / middle[2], 3),
                "ours_over_theirs": round(middle[2] / middle[1], 3),
                "bare_spread": round(spread, 4),
            }
            rows.append(row)
            print(
                f"{self.model:6} batch {batch} steps {steps:2} {name:20} baseline "
                f"{middle[0]:.3f} s  ours {row['speedup_ours']:.2f}x  package "
                f"{row['speedup_theirs']:.2f}x  ours / package {row['ours_over_theirs']:.2f}x  "
                f"spread {spread:.1%}",
                flush=True,
            )
        return rows

    def _seconds(self, candidate: dict[str, Any], kind: str, batch: int, steps: int) -> float:
        side = SIZES[self.model] // self.pipe.vae_scale_factor
        channels = self.pipe.unet.config.in_channels
        noise = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0))
        latents = noise.to(self.device, self.pipe.unet.dtype)
        applied = apply_candidate(self.pipe, candidate, kind) if candidate else nullcontext()
        with applied:
            return timed(
                lambda: (
                    self.pipe(
                        prompt=["a red ring"] * batch,
                        num_inference_steps=steps,
                        latents=latents,
                        output_type="latent",
                    ).images
                ),
                self.device,
            )[1]


if __name__ == "__main__":
    main()
