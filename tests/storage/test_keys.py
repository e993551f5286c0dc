"""One row of a sweep's table, and its key."""

from __future__ import annotations

import pytest

from accel_search.core.schedulers import SCHEDULERS
from accel_search.storage.keys import Configuration


@pytest.mark.parametrize("sched", SCHEDULERS)
@pytest.mark.parametrize("model", ["SDXL", "SD1.5", "me/my_model_DDIM_20", "a_b"])
@pytest.mark.parametrize("method", ["tome", "deepcache+tome", "my_accelerator", "a_b+c_d"])
def test_a_failures_key_is_read_back(model, sched, method):
    configuration = Configuration(model, sched, 20, method)
    assert Configuration.from_failed_key(configuration.failed_key) == configuration


@pytest.mark.parametrize("key", ["", "x", "SDXL_Eulr_20_tome", "SDXL_DDIM_x_tome", "_DDIM_20_"])
def test_what_is_no_key_is_none(key):
    assert Configuration.from_failed_key(key) is None
