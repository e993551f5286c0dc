"""The committed configurations are valid and say what the code does."""

import tomllib
from pathlib import Path

import pytest

from accel_search.accelerators import all_accelerators
from accel_search.settings import Settings, read_config

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_configuration_is_valid(path):
    assert Settings(**read_config(path))


def test_the_default_spaces_are_the_accelerators_own():
    written = tomllib.loads((CONFIGS / "default.toml").read_text())["space"]
    own = {
        accelerator.name: {
            parameter.name: list(parameter.values) for parameter in accelerator.parameters
        }
        for accelerator in all_accelerators().values()
    }
    assert written == own
