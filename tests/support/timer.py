"""A fake evaluator that times and scores nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from accel_search.accelerators.computation import describe_steps
from accel_search.core.trial import Measurement
from accel_search.errors import TrialFailure
from tests.support.fakes import WORKLOAD, FakeEvaluator


class Timer(FakeEvaluator):
    """Times candidates by what their UNet calls are, and scores nothing."""

    def __init__(self, noise=0.002, fails=frozenset(), halve_after=None, slower=1.0):
        super().__init__(noise=noise, fails=fails)
        self.prompt_count = 4
        self.halve_after = halve_after
        self.slower = slower
        self.checked = False

    def baseline(self, split="search"):
        return self._timed(1.0, 4)

    @property
    def baselines(self):
        return {"search": self._timed(1.0, 4)}

    def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
        self.calls.append((candidate, split, pairs))
        if candidate in self._fails or "all" in self._fails:
            raise TrialFailure("the pipeline said no")
        if self.halve_after is not None and len(self.calls) > self.halve_after:
            self.workload = replace(self.workload, batch_size=2)
            self.chunk = 2
        return self._timed(true_time(candidate) * self.slower, pairs)

    def _timed(self, share, pairs):
        def noisy(seconds):
            return tuple(seconds * np.exp(self._rng.normal(0, self._noise, pairs)))

        return Measurement(
            noisy(0.5 * share), noisy(0.5), (), self.workload.batch_size, seconds=1.0
        )


def true_time(candidate):
    """Overhead, and what is left of a call under each effect; a call is a sum of effects."""
    calls = describe_steps(candidate, WORKLOAD)
    unet = sum(
        math.exp(sum(-0.25 * effect.amount - 0.2 for effect in call)) for call in calls
    ) / len(calls)
    return 0.1 + 0.9 * unet
