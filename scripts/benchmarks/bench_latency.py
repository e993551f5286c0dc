"""Measure how well the latency model predicts new candidates from a dozen runs.

    python scripts/benchmarks/bench_latency.py --model SDXL --out tests/data/latency_sdxl_h200.json
    python scripts/benchmarks/bench_latency.py --model demo --device cpu
    python scripts/benchmarks/bench_latency.py --recorded tests/data/latency_sdxl_h200.json

Full-size pipelines have random weights: values do not bear on time. The model chooses its own
calibration runs among all points of DeepCache, T-GATE and both together; then points drawn at
random are measured, and some of them twice for the noise floor. The baseline pipeline is called
between every few runs, and each run is compared with those around it. With --tome the same is done
for DeepCache, ToMe and both together. With --recorded nothing is measured: the model chooses its
runs among those of a file, and predicts the others.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_search.core.candidate import Candidate
from accel_search.core.workload import Prompt, Workload
from accel_search.search.space import JointSpace
from accel_search.search.strategies.latency_model import LatencyModel, Run
from accel_search.settings import Settings
from described_plans import plans_of

CALIBRATION_RUNS = 12
BESIDE = 5
"""Runs between two calls of the baseline pipeline."""
SAMPLES = {"tgate": 40, "tome": 24}
"""Points drawn of each accelerator alone; DeepCache's are all measured."""
JOINT = 20
REPEATED = 12
LEAST_NOISE = 0.003
SIZES = {"SD1.5": 512, "SD2.1": 768, "SDXL": 1024, "demo": 128}


def main() -> None:
    """Calibrate, measure, compare, and write every run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", choices=sorted(SIZES), default="SDXL")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tome", action="store_true", help="ToMe in place of T-GATE")
    parser.add_argument("--recorded", type=Path, help="a file of runs, in place of a pipeline")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.recorded is not None:
        recorded = Recorded(options.recorded)
        print(f"{options.recorded}: {recorded.heading}")
        report(recorded.errors(), recorded.floor())
        return
    bench = Bench(options)
    result = bench.run("tome" if options.tome else "tgate")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def group_of(candidate: Candidate) -> str:
    """Return the accelerators of a candidate, e.g. `deepcache+tgate`."""
    return "+".join(candidate)


def calibrate(
    model: LatencyModel,
    candidates: list[Candidate],
    log_time: Callable[[int], float],
    noise: float,
) -> set[int]:
    """Let the model choose its runs and learn from them; return which it chose.

    Every accelerator, and every combination, is to be predicted equally well, however many points
    it has.

    Args:
        model: Of the candidates' step plans.
        candidates: What may be run.
        log_time: Measures one of them, by its index.
        noise: Standard deviation of such a measurement.
    """
    groups: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        groups.setdefault(group_of(candidate), []).append(index)
    wanted = np.concatenate([_spread(np.array(group), 40) for group in groups.values()])
    runs: dict[int, Run] = {}
    for _ in range(CALIBRATION_RUNS):
        left = np.array([index for index in range(len(candidates)) if index not in runs])
        chosen = model.most_informative(left, noise, wanted)
        runs[chosen] = Run(chosen, log_time(chosen), noise)
        model.fit(list(runs.values()))
    return set(runs)


def _spread(members: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return `count` of the members, evenly spread; fewer of them are gone round again."""
    if len(members) < count:
        return np.resize(members, count)
    return members[np.linspace(0, len(members) - 1, count).astype(np.int64)]


def report(errors: Iterable[tuple[Candidate, float]], floor: list[float]) -> dict[str, Any]:
    """Print and return quantiles of the relative errors, by group."""
    groups: dict[str, list[float]] = {}
    for candidate, error in errors:
        groups.setdefault(group_of(candidate), []).append(error)
    groups["all"] = [error for group in groups.values() for error in group]
    if floor:
        groups["noise floor: measured twice"] = floor
    summary = {}
    for name, group in groups.items():
        middle, high, worst = np.quantile(group, [0.5, 0.95, 1.0]).tolist()
        summary[name] = {
            "points": len(group),
            "median": round(middle, 5),
            "p95": round(high, 5),
            "worst": round(worst, 5),
        }
        print(
            f"  {name:28} {len(group):3} points: relative error median {middle:.2%}, "
            f"95th percentile {high:.2%}, worst {worst:.2%}"
        )
    return summary


class Recorded:
    """Runs of a file, and what the model makes of most of them from a dozen."""

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        load = content["workload"]
        load["attention_downsamples"] = tuple(load["attention_downsamples"])
        self.workload = Workload(**load)
        seen: dict[Candidate, list[float]] = {}
        for row in content["calibration"] + content["measured"]:
            log_time = -float(np.log(row["speedup"]))
            seen.setdefault(Candidate(row["candidate"]), []).append(log_time)
        self.candidates = list(seen)
        self.log_times = list(seen.values())
        bare = np.log(content["baseline_seconds"])
        self.noise = max(float(np.std(np.diff(bare))), LEAST_NOISE)
        self.heading = (
            f"{self.workload.pipeline} {self.workload.height} px, batch "
            f"{self.workload.batch_size}, {self.workload.steps} steps, {content['device']}"
        )
        self.model = LatencyModel(plans_of(self.candidates, self.workload))

    def errors(self) -> list[tuple[Candidate, float]]:
        """Calibrate on a dozen runs and return the relative error of each other one."""
        used = calibrate(self.model, self.candidates, lambda i: self.log_times[i][0], self.noise)
        predicted = self.model.predict().log_time
        return [
            (candidate, abs(float(np.expm1(predicted[index] - self.log_times[index][0]))))
            for index, candidate in enumerate(self.candidates)
            if index not in used
        ]

    def floor(self) -> list[float]:
        """Return the relative difference of each candidate's two measurements, where it has two."""
        return [
            abs(float(np.expm1(times[1] - times[0]))) for times in self.log_times if len(times) > 1
        ]


class Bench:
    """Times candidates on one pipeline, bare calls in between."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from accel_search.accelerators.compose import apply_candidate
        from accel_search.runtime.devices import resolve_device, set_threads
        from accel_search.runtime.loading.pipelines import attention_downsamples, load_pipeline
        from accel_search.runtime.loading.random_weights import build_random
        from accel_search.runtime.measuring.calls import Accounting, Caller
        from accel_search.runtime.provenance import machine
        from accel_search.runtime.quiet import quiet_libraries

        device = resolve_device(options.device)
        set_threads(None, device)
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        if options.model == "demo":
            log = logging.getLogger("bench_latency")
            pipe, _ = load_pipeline(Settings(device=options.device), log)
        else:
            pipe = build_random(options.model, device, dtype)
        size = SIZES[options.model]
        self.workload = Workload(
            pipeline=options.model,
            pipeline_class=type(pipe).__name__,
            scheduler_class=type(pipe.scheduler).__name__,
            steps=options.steps,
            unet_calls=options.steps,
            height=size,
            width=size,
            batch_size=options.batch,
            guidance_scale=5.0,
            dtype=str(dtype).removeprefix("torch."),
            device=str(device),
            latent_height=size // pipe.vae_scale_factor,
            latent_width=size // pipe.vae_scale_factor,
            attention_downsamples=attention_downsamples(pipe.unet),
        )
        where = machine(device)
        self.provenance = {"device": where.pop("device_name"), **where}
        self._caller = Caller(pipe, apply_candidate, Accounting())
        self._quiet = quiet_libraries
        self._prompts = [Prompt("a red ring on white", index) for index in range(options.batch)]
        self._met: set[Any] = set()
        self._bare: list[float] = []
        self._rows: list[tuple[Candidate, float, int]] = []

    def run(self, other: str) -> dict[str, Any]:
        """Calibrate, then measure points of DeepCache, another accelerator and both together."""
        began = time.perf_counter()
        self._call(Candidate(), warm=True)
        for _ in range(8):
            self._bare.append(self._call(Candidate()))
        noise = max(float(np.std(np.diff(np.log(self._bare)))), LEAST_NOISE)
        spaces = [
            JointSpace(targets, self.workload)
            for targets in (("deepcache",), (other,), ("deepcache", other))
        ]
        points = [[space.candidate_at(i) for i in range(len(space))] for space in spaces]
        candidates = [each for group in points for each in group]
        model = LatencyModel(plans_of(candidates, self.workload))
        calibrate(model, candidates, lambda i: self._measure(candidates[i]), noise)
        print(
            f"{self.workload.pipeline} {self.workload.height} px, batch "
            f"{self.workload.batch_size}, {self.workload.steps} steps, "
            f"{self.provenance['device']}: {CALIBRATION_RUNS} calibration runs in "
            f"{time.perf_counter() - began:.0f} s, misfit {model.misfit:.2%}, noise {noise:.2%}"
        )
        predicted = dict(zip(candidates, model.predict().log_time.tolist(), strict=True))
        first = len(self._rows)
        rng = np.random.default_rng(0)
        tests = points[0]
        for group, count in zip(points[1:], (SAMPLES[other], JOINT), strict=True):
            tests = tests + [group[i] for i in rng.permutation(len(group))[:count].tolist()]
        again = tests[:: max(1, len(tests) // REPEATED)]
        for candidate in tests + again:
            self._measure(candidate)
        self._bare.append(self._call(Candidate()))
        times = self._log_times()
        measured = dict(zip(tests, times[first:], strict=False))
        errors = [(each, abs(float(np.expm1(predicted[each] - measured[each])))) for each in tests]
        floor = [
            abs(float(np.expm1(log_time - measured[each])))
            for each, log_time in zip(again, times[first + len(tests) :], strict=True)
        ]
        written = [
            {
                "candidate": candidate.as_dict(),
                "seconds": round(seconds, 5),
                "speedup": round(float(np.exp(-log_time)), 5),
            }
            for (candidate, seconds, _), log_time in zip(self._rows, times, strict=True)
        ]
        return {
            **self.provenance,
            "workload": asdict(self.workload),
            "baseline_seconds": [round(each, 5) for each in self._bare],
            "calibration": written[:first],
            "measured": written[first:],
            "relative_error": report(errors, floor),
        }

    def _measure(self, candidate: Candidate) -> float:
        """Time one candidate; return its log time in units of the bare calls so far."""
        self._call(candidate, warm=True)
        self._rows.append((candidate, self._call(candidate), len(self._bare)))
        if len(self._rows) % BESIDE == 0:
            self._bare.append(self._call(Candidate()))
        return self._log_times()[-1]

    def _log_times(self) -> list[float]:
        """Return each run's log time in units of the bare calls before and after it."""
        bare = [*self._bare, self._bare[-1]]
        return [
            float(np.log(2 * seconds / (bare[at - 1] + bare[at]))) for _, seconds, at in self._rows
        ]

    def _call(self, candidate: Candidate, *, warm: bool = False) -> float:
        from accel_search.accelerators.computation import describe_steps

        if warm:
            types = set(describe_steps(candidate, self.workload))
            if types <= self._met:
                return 0.0
            self._met |= types
        with self._quiet():
            _, seconds = self._caller.call(self.workload, self._prompts, candidate)
        return seconds * len(self._prompts)


if __name__ == "__main__":
    main()
