"""Folders of the real formats, made once, and evaluators on them."""

from tests.support.pipelines import (  # noqa: F401
    evaluator_for,
    loaded,
    made,
    one_thread,
    scorer,
    served,
    settings_for,
)
