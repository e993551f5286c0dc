"""Time our DeepCache and T-GATE against the packages' own, side by side, at full size.

    python scripts/benchmarks/bench_accelerators.py --out docs/data/accelerators_h200.json

The pipelines have random weights: their values do not bear on time. Every setting is called in
turn, the bare pipeline, ours and the package's, and the turns repeated, so that all meet the same
machine; each figure is a median, and its noise the spread of the bare pipeline's calls.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from accel_search.accelerators.compose import apply_candidate
from accel_search.runtime.loading.random_weights import build_random
from accel_search.runtime.provenance import machine

SETTINGS: dict[str, dict[str, Any]] = {
    "deepcache(3, 0)": {"deepcache": {"cache_interval": 3, "cache_branch_id": 0}},
    "tgate(10, 5, 1, 2)": {
        "tgate": {"gate_step": 10, "sp_interval": 5, "fi_interval": 1, "warmup": 2}
    },
    "tgate(5, 9, 5, 1)": {
        "tgate": {"gate_step": 5, "sp_interval": 9, "fi_interval": 5, "warmup": 1}
    },
}
SIZES = {"SD1.5": 512, "SDXL": 1024}


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
    where = machine(device)
    table: dict[str, Any] = {
        "device": where.pop("device_name"),
        **where,
        "dtype": "float16",
        "rows": [],
    }
    for model in options.models.split(","):
        pair = Pair(model, device)
        for batch in (int(each) for each in options.batches.split(",")):
            for steps in (int(each) for each in options.steps.split(",")):
                table["rows"] += pair.rows(batch, steps, options.repeats)
                if options.out is not None:  # What there is, should the time run out.
                    options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        del pair
        gc.collect()
        torch.cuda.empty_cache()


class Pair:
    """A pipeline that we accelerate and one with the same weights for the packages to patch."""

    def __init__(self, model: str, device: torch.device) -> None:
        self.model, self.device = model, device
        self.ours = build_random(model, device, torch.float16)
        # Their patches stay behind, so they get modules of their own.
        parts = dict(self.ours.components)
        parts["unet"] = copy.deepcopy(parts["unet"])
        parts["scheduler"] = copy.deepcopy(parts["scheduler"])
        extra = {"requires_safety_checker": False} if model != "SDXL" else {}
        self.theirs = type(self.ours)(**parts, **extra)
        self.theirs.set_progress_bar_config(disable=True)

    def rows(self, batch: int, steps: int, repeats: int) -> list[dict[str, Any]]:
        """Return one row a setting: seconds a call of the bare pipeline, ours and theirs."""
        calls: dict[tuple[str, str], Callable[[], float]] = {
            ("bare", ""): lambda: self._timed(self.ours, batch, steps)
        }
        for name, candidate in SETTINGS.items():
            calls["ours", name] = partial(self._ours, candidate, batch, steps)
            calls["theirs", name] = partial(self._theirs, candidate, batch, steps)
        samples: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
        for turn in range(repeats + 1):
            for key, call in calls.items():
                seconds = call()
                if turn:  # The first turn warms up.
                    samples[key].append(seconds)
        bare = samples["bare", ""]
        spread = (max(bare) - min(bare)) / statistics.median(bare)
        found = []
        for name in SETTINGS:
            ours, theirs = samples["ours", name], samples["theirs", name]
            middle = [statistics.median(each) for each in (bare, ours, theirs)]
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
            found.append(row)
            print(
                f"{self.model:6} batch {batch} steps {steps:2} {name:20} bare {middle[0]:.3f} s  "
                f"ours {row['speedup_ours']:.2f}x  theirs {row['speedup_theirs']:.2f}x  "
                f"ours / theirs {row['ours_over_theirs']:.2f}x  spread {spread:.1%}",
                flush=True,
            )
        return found

    def _timed(
        self, pipe: Any, batch: int, steps: int, call: str = "__call__", **more: Any
    ) -> float:
        size = SIZES[self.model]
        noise = torch.randn(
            batch, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(0)
        )
        latents = noise.to(self.device, self.ours.unet.dtype)
        torch.cuda.synchronize()
        began = time.perf_counter()
        getattr(pipe, call)(
            prompt=["a red ring"] * batch,
            num_inference_steps=steps,
            latents=latents,
            output_type="latent",
            **more,
        )
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def _ours(self, candidate: dict[str, Any], batch: int, steps: int) -> float:
        with apply_candidate(self.ours, candidate):
            return self._timed(self.ours, batch, steps)

    def _theirs(self, candidate: dict[str, Any], batch: int, steps: int) -> float:
        import tgate
        from DeepCache import DeepCacheSDHelper

        if "deepcache" in candidate:
            helper = DeepCacheSDHelper(pipe=self.theirs)
            helper.set_params(**candidate["deepcache"])
            helper.enable()
            try:
                return self._timed(self.theirs, batch, steps)
            finally:
                helper.disable()
                _clean(self.theirs.unet)
        loader = tgate.TgateSDXLLoader if self.model == "SDXL" else tgate.TgateSDLoader
        with torch.no_grad():
            loader(self.theirs)
            params = dict(candidate["tgate"])
            params["warm_up"] = params.pop("warmup")
            try:
                return self._timed(self.theirs, batch, steps, "tgate", **params)
            finally:
                _clean(self.theirs.unet)


def _clean(unet: Any) -> None:
    """Delete what the packages leave on modules."""
    for module in unet.modules():
        for name in ("forward", "cache"):
            vars(module).pop(name, None)


if __name__ == "__main__":
    main()
