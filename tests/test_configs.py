"""The committed configurations are valid and say what the code does."""

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from accel_search.accelerators import all_accelerators
from accel_search.cli.options import read_config
from accel_search.settings import Settings

CONFIGS = Path(__file__).parents[1] / "configs"
SWEEPS = {"paper.toml", "demo_sweep.toml"}
"""Read by accel-explore; tests/sweep/test_settings.py reads them."""
SEARCHES = sorted(path for path in CONFIGS.glob("*.toml") if path.name not in SWEEPS)


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.name)
def test_every_configuration_is_valid(path):
    assert Settings(**read_config(path, fields(Settings), "accel-search"))


def test_the_default_spaces_are_the_accelerators_own():
    written = tomllib.loads((CONFIGS / "default.toml").read_text())["space"]
    own = {
        accelerator.name: {
            parameter.name: list(parameter.values) for parameter in accelerator.parameters
        }
        for accelerator in all_accelerators().values()
    }
    assert written == own
