"""Folders of the real formats, made once, and evaluators on them."""

import pytest

from tests.support.hub import forget_session
from tests.support.pipelines import (  # noqa: F401
    evaluator_for,
    loaded,
    made,
    one_thread,
    scorer,
    served,
    settings_for,
)


@pytest.fixture(autouse=True)
def new_session():
    """Let the hub's client forget that a test was offline; versions below 1 keep a session."""
    yield
    forget_session()
