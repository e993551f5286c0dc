"""What the machine's state explains of noisy timings, on recorded samples."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from accel_search.core.machine_health import Health, noise_note

# An H100 with nothing wrong, on a host of 16 cores.
WELL = Health(1980.0, 1980.0, 512.3, 54.0, 0, 0.0, 1.3, 1.05, 16)
POWER = replace(WELL, sm_mhz=1410.0, watts=699.1, throttle_reasons=0x4)
HEAT = replace(WELL, sm_mhz=1185.0, celsius=87.0, throttle_reasons=0x8 | 0x40)
SHARED = replace(WELL, other_gpu_use=0.4)
BUSY = replace(WELL, busy_cores=9.0, own_cores=1.0)
ON_CPU = Health(busy_cores=1.9, own_cores=0.8, cores=2)

LOCK = "lock its clock lower (nvidia-smi -lgc {}), or --timing_pairs 8"
STOP = "stop other work, or --timing_pairs 8"


@pytest.mark.parametrize(
    ("samples", "cause", "advice"),
    [
        ([POWER] * 8, "the GPU ran at 1,410 of 1,980 MHz: power cap", LOCK.format(1410)),
        ([HEAT] * 2 + [WELL] * 6, "the GPU ran at 1,185 of 1,980 MHz: heat", LOCK.format(1185)),
        ([SHARED] * 8, "other processes used 40 % of the GPU", STOP),
        # On and off; the driver does not answer each time.
        (
            [SHARED, WELL, replace(WELL, other_gpu_use=None)] * 3,
            "other processes used 20 % of the GPU",
            STOP,
        ),
        ([BUSY] * 8, "other processes kept 8.0 of 16 cores busy", STOP),
        ([ON_CPU] * 8, "other processes kept 1.1 of 2 cores busy", STOP),
        (
            [replace(POWER, other_gpu_use=0.5)] * 8,
            "the GPU ran at 1,410 of 1,980 MHz: power cap; other processes used 50 % of the GPU",
            STOP,
        ),
    ],
)
def test_noise_is_explained_and_what_to_do_is_said(samples, cause, advice):
    note = noise_note(0.56, 4, samples)
    assert (note.cause, note.advice) == (cause, advice)
    assert str(note) == f"timing noise ±56 % ({cause}): {advice}"
    assert note.sentence == f"Timing noise ±56 % ({cause}): {advice}."


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [Health()] * 8,
        [WELL] * 8,
        # It was held back once, or by little, or to what a person has set, or had nothing to do.
        [POWER] + [WELL] * 15,
        [replace(POWER, sm_mhz=1935.0)] * 8,
        [replace(POWER, throttle_reasons=0x2)] * 8,
        [replace(POWER, throttle_reasons=0x1)] * 8,
        [replace(POWER, throttle_reasons=None)] * 8,
        [replace(POWER, max_sm_mhz=None)] * 8,
        [replace(SHARED, other_gpu_use=0.02)] * 8,
        [replace(BUSY, busy_cores=16.0, own_cores=15.0)] * 8,
        # A sandbox that shows no load.
        [replace(BUSY, busy_cores=0.0)] * 8,
        [replace(BUSY, busy_cores=None)] * 8,
        [Health(busy_cores=0.0, own_cores=0.0)] * 8,
    ],
)
def test_nothing_is_blamed_without_evidence(samples):
    note = noise_note(0.56, 4, samples)
    assert note.cause is None
    assert str(note) == f"timing noise ±56 %: {STOP}"


@pytest.mark.parametrize("noise", [0.0, 0.099, math.inf, math.nan])
def test_small_or_unknown_noise_needs_no_note(noise):
    assert noise_note(noise, 4, [POWER] * 8) is None
