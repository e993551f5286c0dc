"""Full-size architectures: what is built has the size that is published, in the dtype asked for."""

from __future__ import annotations

import pytest
import torch

from accel_search.runtime.loading.random_weights import ARCHITECTURES, build_random

# Parameters of the UNets in the repositories' own weight files.
UNETS = {"SD1.5": 859_520_964, "SD2.1": 865_910_724, "SDXL": 2_567_463_684}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_random_pipeline_has_the_published_size(name):
    pipe = build_random(name, torch.device("meta"), torch.float16)
    assert sum(each.numel() for each in pipe.unet.parameters()) == UNETS[name]
    parts = [each for each in pipe.components.values() if isinstance(each, torch.nn.Module)]
    assert {each.dtype for part in parts for each in part.parameters()} == {torch.float16}
    assert not any(each.requires_grad for part in parts for each in part.parameters())
    assert torch.get_default_dtype() == torch.float32
