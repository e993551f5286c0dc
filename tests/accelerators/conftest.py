"""Fixtures: the tiny pipelines of `tiny.py`, built once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.tiny import KINDS, STEPS, make_pipe, make_scheduler, render


@pytest.fixture(scope="session")
def pipes() -> dict[str, Any]:
    """One pipeline of each kind for the whole session: accelerators leave no trace on it."""
    return {kind: make_pipe(kind) for kind in KINDS}


@pytest.fixture(scope="session")
def baselines(pipes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Latents of each kind with no accelerator, at `STEPS` steps."""
    return {kind: render(pipe, (0,), steps=STEPS) for kind, pipe in pipes.items()}


@pytest.fixture
def sd(pipes: dict[str, Any]) -> Any:
    pipes["SD"].scheduler = make_scheduler("DDIMScheduler")
    return pipes["SD"]
