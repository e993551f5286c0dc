"""One row of a sweep's table."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from accel_search.core.schedulers import SCHEDULERS

_FAILED_KEY = re.compile(rf"(.+)_({'|'.join(map(re.escape, SCHEDULERS))})_(\d{{1,9}})_(.+)")


@dataclass(frozen=True)
class Configuration:
    """A model, a scheduler, a number of steps, and what is to make them faster."""

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
        """Return the configuration of a key in `failed_configs`; None where it is none.

        A model and a method may hold the separator; a scheduler, which stands between, does not.
        """
        found = _FAILED_KEY.fullmatch(key)
        return None if found is None else cls(found[1], found[2], int(found[3]), found[4])

    @property
    def slug(self) -> str:
        """Return a name for its folder; that of another configuration is another."""
        plain = re.sub(r"[^A-Za-z0-9.+-]+", "_", self.failed_key).strip("_.")
        if plain == self.failed_key:
            return plain
        return f"{plain[-60:]}-{hashlib.sha256(self.failed_key.encode()).hexdigest()[:8]}"

    def __str__(self) -> str:
        return f"{self.model} {self.sched} {self.steps} {self.method}"
