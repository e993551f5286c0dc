"""What is still to be explored, and which of it a worker takes next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

from accel_search.storage.keys import Configuration


@dataclass
class Queue:
    """The open configurations; safe from several threads.

    A worker stays with its model, which takes long to load, and with its workload (model,
    scheduler, steps), whose methods share the measurement of one baseline. Only when nothing else
    is left do two workers share a model or a workload.

    Args:
        pending: In the order of the table.
        expected: Seconds that a configuration should take. Where it is given the longest come
            first, so that at the end no worker waits long for another; it is for several workers.
    """

    pending: list[Configuration]
    expected: Callable[[Configuration], float] | None = None
    _in_hand: list[Configuration] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.pending = list(self.pending)
        if (expected := self.expected) is not None:
            of_model = _sums(self.pending, lambda each: each.model, expected)
            of_workload = _sums(self.pending, _workload, expected)
            # Stable: what belongs together stays together, in the order of the table.
            self.pending.sort(
                key=lambda each: (-of_model[each.model], -of_workload[_workload(each)])
            )

    def take(self, model: str | None, latest: Configuration | None) -> Configuration | None:
        """Take what suits a worker best; None if nothing is left.

        Args:
            model: What it has loaded.
            latest: What it explored before; None at its beginning.
        """
        with self._lock:
            models = {each.model for each in self._in_hand}
            workloads = {_workload(each) for each in self._in_hand}
            wishes: list[Callable[[Configuration], bool]] = [
                lambda each: each.model == model and _is_of(latest, each),
                lambda each: each.model == model and _workload(each) not in workloads,
                lambda each: each.model not in models,
                lambda each: each.model == model,
                lambda each: _workload(each) not in workloads,
                lambda each: True,
            ]
            for is_wished in wishes:
                for configuration in self.pending:
                    if is_wished(configuration):
                        self.pending.remove(configuration)
                        self._in_hand.append(configuration)
                        return configuration
            return None

    def finish(self, configuration: Configuration) -> None:
        """Tell that nobody is on a configuration any more."""
        with self._lock:
            self._in_hand.remove(configuration)

    def withdraw(self, model: str) -> list[Configuration]:
        """Take all that is left of a model off the table and return it."""
        with self._lock:
            found = [each for each in self.pending if each.model == model]
            self.pending = [each for each in self.pending if each.model != model]
            return found


def _workload(configuration: Configuration) -> tuple[str, str, int]:
    return configuration.model, configuration.sched, configuration.steps


def _is_of(latest: Configuration | None, each: Configuration) -> bool:
    return latest is not None and _workload(latest) == _workload(each)


def _sums(
    configurations: Iterable[Configuration],
    key: Callable[[Configuration], Hashable],
    seconds: Callable[[Configuration], float],
) -> dict[Hashable, float]:
    found: dict[Hashable, float] = {}
    for each in configurations:
        found[key(each)] = found.get(key(each), 0.0) + seconds(each)
    return found
