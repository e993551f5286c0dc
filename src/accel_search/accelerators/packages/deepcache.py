"""DeepCache by the package `DeepCache`: `DeepCacheSDHelper`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accel_search.accelerators.deepcache import skipped_modules
from accel_search.accelerators.packages.leftovers import restored
from accel_search.core.candidate import Params


@contextmanager
def apply(pipe: Any, params: Params) -> Iterator[None]:
    """Enable the helper for the length of a `with` block.

    `disable` leaves `forward` in the instance dict of every module that it wrapped.

    Raises:
        AcceleratorError: The UNet has no branch `cache_branch_id`, where the helper would skip the
            middle block alone.
    """
    from DeepCache import DeepCacheSDHelper

    skipped_modules(pipe.unet, int(params["cache_branch_id"]))
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(**params)
    with restored(pipe.unet.modules(), "forward"):
        helper.enable()
        try:
            yield
        finally:
            helper.disable()
