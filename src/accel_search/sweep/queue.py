"""The open configurations of a sweep, and which one a worker takes next."""

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
        expected: Seconds that a configuration should take, for several workers: the longest come
            first, so that at the end no worker waits long for another.
    """

    pending: list[Configuration]
    expected: Callable[[Configuration], float] | None = None
    _in_hand: list[Configuration] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.pending = list(self.pending)
        if (expected := self.expected) is not None:
            of_model = _sums(self.pending, lambda one: one.model, expected)
            of_workload = _sums(self.pending, _workload, expected)
            # Stable: configurations of a workload stay together, in the order of the table.
            self.pending.sort(key=lambda one: (-of_model[one.model], -of_workload[_workload(one)]))

    def take(self, model: str | None, latest: Configuration | None) -> Configuration | None:
        """Take the configuration that suits a worker's model and latest configuration best."""
        with self._lock:
            models = {one.model for one in self._in_hand}
            workloads = {_workload(one) for one in self._in_hand}
            wishes: list[Callable[[Configuration], bool]] = [
                lambda one: one.model == model and _is_of(latest, one),
                lambda one: one.model == model and _workload(one) not in workloads,
                lambda one: one.model not in models,
                lambda one: one.model == model,
                lambda one: _workload(one) not in workloads,
                lambda one: True,
            ]
            for is_wished in wishes:
                for configuration in self.pending:
                    if is_wished(configuration):
                        self.pending.remove(configuration)
                        self._in_hand.append(configuration)
                        return configuration
            return None

    def finish(self, configuration: Configuration) -> None:
        """Mark a configuration as no longer explored by a worker."""
        with self._lock:
            self._in_hand.remove(configuration)

    def withdraw(self, model: str) -> list[Configuration]:
        """Remove the open configurations of a model and return them."""
        with self._lock:
            withdrawn = [other for other in self.pending if other.model == model]
            self.pending = [other for other in self.pending if other.model != model]
            return withdrawn


def _workload(configuration: Configuration) -> tuple[str, str, int]:
    return configuration.model, configuration.sched, configuration.steps


def _is_of(latest: Configuration | None, other: Configuration) -> bool:
    return latest is not None and _workload(latest) == _workload(other)


def _sums(
    configurations: Iterable[Configuration],
    key: Callable[[Configuration], Hashable],
    seconds: Callable[[Configuration], float],
) -> dict[Hashable, float]:
    sums: dict[Hashable, float] = {}
    for configuration in configurations:
        group = key(configuration)
        sums[group] = sums.get(group, 0.0) + seconds(configuration)
    return sums
