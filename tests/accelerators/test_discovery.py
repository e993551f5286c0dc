"""Accelerators are found by file and by entry point."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

import accel_search.accelerators as accelerators
from accel_search.accelerators.deepcache import DeepCache
from accel_search.core import plugins as discovery
from accel_search.errors import ConfigurationError


class Plugin(DeepCache):
    name = "plugin"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def install(value: str) -> None:
        points = [EntryPoint("any", value, accelerators.ENTRY_POINT_GROUP)]
        monkeypatch.setattr(
            discovery,
            "entry_points",
            lambda group: points if group == accelerators.ENTRY_POINT_GROUP else [],
        )
        accelerators._discovered.cache_clear()

    yield install
    accelerators._discovered.cache_clear()


def test_own_accelerators() -> None:
    assert list(accelerators.all_accelerators()) == ["deepcache", "steps", "tgate", "tome"]


def test_unknown_name_says_what_is_allowed() -> None:
    with pytest.raises(
        ConfigurationError, match="'turbo': choose from deepcache, steps, tgate, tome"
    ):
        accelerators.get("turbo")


def test_the_result_is_the_callers_own() -> None:
    accelerators.all_accelerators().clear()
    assert accelerators.all_accelerators()


def test_a_plugin_is_found(plugin: Any) -> None:
    plugin(f"{__name__}:Plugin")
    assert isinstance(accelerators.get("plugin"), Plugin)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("no_such_module:Thing", "cannot be loaded"),
        (f"{__name__}:SimpleNamespace", "not a subclass of Accelerator"),
        ("accel_search.accelerators.deepcache:DeepCache", "name in use"),
    ],
)
def test_a_bad_plugin_is_named(plugin: Any, value: str, match: str) -> None:
    assert SimpleNamespace
    plugin(value)
    with pytest.raises(ConfigurationError, match=match):
        accelerators.all_accelerators()
