"""Names in files: the keys of results, and the rows of a sweep's table."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from accel_search.core.schedulers import PLAIN
from accel_search.core.workload import Workload

_FAILED_KEY = re.compile(rf"(.+)_({'|'.join(map(re.escape, PLAIN))})_(\d{{1,9}})_(.+)")


@dataclass(frozen=True)
class Configuration:
    """A row and column of a sweep's table: model, scheduler, steps and method."""

    model: str
    """What `accel-search --pipe` takes."""
    sched: str
    """Short name, e.g. `DPM-Solver++`."""
    steps: int
    method: str
    """An accelerator, or several: `deepcache+tome`."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Return the accelerators that are searched jointly."""
        return tuple(self.method.split("+"))

    @property
    def failed_key(self) -> str:
        """Return its key in `failed_configs`."""
        return f"{self.model}_{self.sched}_{self.steps}_{self.method}"

    @classmethod
    def from_failed_key(cls, key: str) -> Configuration | None:
        """Return the configuration of a key in `failed_configs`; None for an invalid key.

        A model or a method may contain the separator; the scheduler between them does not.
        """
        match = _FAILED_KEY.fullmatch(key)
        return None if match is None else cls(match[1], match[2], int(match[3]), match[4])

    @property
    def slug(self) -> str:
        """Return a unique name for its folder."""
        plain = re.sub(r"[^A-Za-z0-9.+-]+", "_", self.failed_key).strip("_.")
        if plain == self.failed_key:
            return plain
        return f"{plain[-60:]}-{hashlib.sha256(self.failed_key.encode()).hexdigest()[:8]}"

    def __str__(self) -> str:
        return f"{self.model} {self.sched} {self.steps} {self.method}"


class Key(NamedTuple):
    """A key of a result file, which holds it as the text of a Python tuple."""

    pipeline_class: str
    scheduler_class: str
    steps: str
    goal: str | float
    """`upbound_speedup`, or the speedup that was reached."""
    req_score_loss: float
    """The bound on the loss of score, a fraction."""
    targets: list[str]
    """Names of the accelerators searched, sorted."""

    def __str__(self) -> str:
        return str(tuple(self))


def search_key(
    workload: Workload, goal: str | float, req_score_loss: float, targets: Sequence[str]
) -> str:
    """Return the key of a search's result; `goal` and `req_score_loss` as in `Key`."""
    classes = (workload.pipeline_class, workload.scheduler_class)
    return str(Key(*classes, str(workload.steps), goal, req_score_loss, sorted(targets)))


def parse_key(text: str) -> Key | None:
    """Return the key of such a text, None for an invalid one; nothing in it is executed."""
    try:
        parts = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return Key(*parts) if isinstance(parts, tuple) and _is_key(parts) else None


def _is_key(parts: tuple[Any, ...]) -> bool:
    """Return whether a tuple has the parts of a key; a file may hold anything."""
    if len(parts) != 6:
        return False
    pipeline, scheduler, steps, goal, loss, targets = parts
    return (
        all(isinstance(name, str) for name in (pipeline, scheduler, steps))
        and steps.isdecimal()
        and len(steps) < 10
        and type(goal) in (str, int, float)
        and type(loss) in (int, float)
        and isinstance(targets, list)
        and all(isinstance(name, str) for name in targets)
    )
