"""What the driver says of a real GPU around a call."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from accel_search.runtime import nvml  # noqa: E402
from accel_search.runtime.measuring.health import HealthSampler  # noqa: E402
from accel_search.runtime.measuring.timing import timed  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("index", range(torch.cuda.device_count()))
def test_the_gpu_that_computes_is_sampled(index):
    device = torch.device("cuda", index)
    matrix = torch.randn(8192, 8192, device=device, dtype=torch.float16)

    def work():
        for _ in range(300):
            matrix @ matrix

    sampler = HealthSampler(device)
    samples = sampler.begin()
    for _ in range(4):
        with sampler.watch():
            timed(work, device)
        sampler.keep()
    assert len(samples) == 4
    for sample in samples:
        assert 0 < sample.sm_mhz <= sample.max_sm_mhz
        assert sample.watts > 0 and sample.celsius > 0
        assert sample.throttle_reasons >= 0
        assert sample.other_gpu_use is None or 0 <= sample.other_gpu_use <= 1
        assert sample.own_cores > 0 and sample.busy_cores >= 0
    # Torch and NVML may count the GPUs in two orders.
    uuid = nvml.ask(lambda lib: lib.nvmlDeviceGetUUID(sampler._gpu))
    assert uuid.endswith(str(torch.cuda.get_device_properties(device).uuid))


def test_the_driver_and_the_gpus_are_named():
    assert nvml.driver_version()
    assert len(nvml.gpu_names()) >= torch.cuda.device_count() > 0
