"""Accelerators applied in an order that they are not made for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from accel_search.accelerators import get
from accel_search.accelerators.clock import StepClock


@contextmanager
def stacked(pipe: Any, tome: dict[str, Any], tgate: dict[str, Any]) -> Iterator[None]:
    """T-GATE inside ToMe: what is reused is another step's merged tokens."""
    clock = StepClock()
    with ExitStack() as stack:
        stack.enter_context(get("tgate").apply(pipe, tgate, clock))
        stack.enter_context(get("tome").apply(pipe, tome, clock))
        stack.enter_context(clock.install(pipe))
        yield
