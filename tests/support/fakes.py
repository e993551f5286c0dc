"""An evaluator with a known truth, to run a whole search in a second with no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from accel_search.core.candidate import Candidate
from accel_search.core.step_times import StepTimes
from accel_search.core.trial import Measurement
from accel_search.core.workload import Provenance, Workload
from accel_search.errors import TrialFailure

WORKLOAD = Workload(
    pipeline="demo",
    pipeline_class="StableDiffusionPipeline",
    scheduler_class="DDIMScheduler",
    steps=20,
    unet_calls=20,
    height=128,
    width=128,
    batch_size=4,
    guidance_scale=4.0,
    dtype="float32",
    device="cpu",
    latent_height=16,
    latent_width=16,
    attention_downsamples=(1, 2, 4, 8),
)

PROVENANCE = Provenance(
    device_name="a processor",
    driver=None,
    threads=2,
    versions={"torch": "2.15.0"},
    dtype="float32",
    height=128,
    width=128,
    batch_size=4,
    guidance_scale=4.0,
    attention_backend="native",
    model_id="demo",
    revision=None,
    prompt_set_hash="0123456789abcdef",
    clip_model="demo",
    date="2026-01-01T00:00:00+00:00",
)


def deepcache_truth(candidate: Candidate) -> tuple[float, float]:
    """Return (speedup, relative score loss): longer intervals and lower branches are faster."""
    params = candidate["deepcache"]
    interval, branch = params["cache_interval"], params["cache_branch_id"]
    return 1 + 0.4 * (interval - 1) - 0.1 * branch, 0.001 * interval**3 / (1 + branch)


def called(
    call: float,
    seconds: tuple[float, ...],
    plain: tuple[int, ...] = (),
    probes: tuple[tuple[int, float], ...] = (),
) -> StepTimes:
    """Return the times of a pipeline call whose UNet calls are plain or of one other type.

    Args:
        call: Of the whole.
        seconds: Of each UNet call.
        plain: Indices of the plain ones.
        probes: As in `StepTimes`.
    """
    kinds = tuple(int(at not in plain) for at in range(len(seconds)))
    return StepTimes(call, seconds, kinds, max(len(seconds), 1), probes)


def step_times(speedup: float, seconds: float = 0.5) -> StepTimes:
    """Return the times of a call whose UNet calls tell a speedup below 5.

    Args:
        speedup: Over the baseline.
        seconds: The baseline's, per image.
    """
    plain = seconds / 20
    relative = (20 / speedup - 4) / 16
    kinds = tuple(min(at % 5, 1) for at in range(20))
    own = tuple(plain * (relative if kind else 1.0) for kind in kinds)
    return StepTimes(sum(own), own, kinds, 20)


class FakeEvaluator:
    """Measures what `truth` says, with a little noise that the seed decides."""

    def __init__(
        self,
        truth: Callable[[Candidate], tuple[float, float]] = deepcache_truth,
        workload: Workload = WORKLOAD,
        noise: float = 0.002,
        prompts: int = 32,
        held_out_shift: float = 0.0,
        fails: frozenset[Candidate] = frozenset(),
    ) -> None:
        self.workload = workload
        self.provenance = PROVENANCE
        self.calls: list[tuple[Candidate, str, range]] = []
        self.chunk, self.pairs, self.prompt_count = 4, 4, prompts
        self.held_out_stages = (prompts,)
        self.times_steps = False
        self.pairs_asked: list[tuple[str, int | None]] = []
        self._truth = truth
        self._noise = noise
        self._held_out_shift = held_out_shift
        self._fails = fails
        self._rng = np.random.default_rng(0)
        self._scores = {
            split: np.random.default_rng(seed).normal(30, 2, prompts)
            for split, seed in (("search", 1), ("held_out", 2))
        }

    def baseline(self, split="search", prompts=None):
        return self._measurement(1.0, 0.0, split, prompts)

    @property
    def baselines(self):
        return {}

    def check(self):
        self.checked = True

    def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
        wanted = range(self.prompt_count) if prompts is None else prompts
        self.calls.append((candidate, split, wanted))
        self.pairs_asked.append((split, pairs))
        if candidate in self._fails:
            raise TrialFailure("the pipeline said no")
        if list(candidate) == ["steps"]:
            share = candidate["steps"]["num_inference_steps"] / self.workload.steps
            speedup, loss = 1 / (0.1 + 0.9 * share), 0.049 * (1 - share)
        else:
            speedup, loss = self._truth(candidate)
        if split == "held_out":
            loss += self._held_out_shift
        return self._measurement(
            speedup, loss, split, wanted, self.pairs if pairs is None else pairs
        )

    def _measurement(self, speedup, loss, split, prompts=None, pairs=4):
        def noisy(seconds: float) -> tuple[float, ...]:
            return tuple(seconds * np.exp(self._rng.normal(0, self._noise, pairs)))

        wanted = range(self.prompt_count) if prompts is None else prompts
        scores = (self._scores[split] * (1 - loss))[wanted.start : wanted.stop]
        times = [step_times(speedup * x) for x in noisy(1.0) or (1.0,)] if self.times_steps else ()
        return Measurement(
            seconds_per_image=noisy(0.5 / speedup) or (0.5 / speedup,),
            baseline_seconds_per_image=noisy(0.5),
            step_times=tuple(times),
            scores=tuple(float(score) for score in scores),
            batch_size=4,
            seconds=10.0 * len(wanted) / self.prompt_count,
        )


def with_steps(steps: int) -> Workload:
    """Return the fake's workload at another number of steps."""
    return replace(WORKLOAD, steps=steps, unet_calls=steps)
