"""Estimate how long a sweep takes: from known call times, corrected by finished results."""

from __future__ import annotations

from collections.abc import Mapping

from accel_search.storage.keys import Configuration
from accel_search.sweep.settings import SweepSettings
from accel_search.sweep.status import Status

CALL_SECONDS = {"demo": 2.0, "SD1.5": 0.81, "SD2.1": 1.40, "SDXL": 3.42}
"""Seconds of a call of 20 steps and 4 images: the three on an H200, the demo on two CPU cores."""
UNKNOWN_CALL = 2.0
TIMED_CALLS = 18
"""Calls as long as the baseline's that a configuration takes without scoring."""
SCORED_CALLS = 15
"""The same with scoring, for each batch of prompts."""


class Estimate:
    """Expected seconds of a sweep's configurations.

    Args:
        settings: The sweep.
    """

    def __init__(self, settings: SweepSettings) -> None:
        self._settings = settings

    def seconds(self, configuration: Configuration) -> float:
        """Return how long one configuration should take on the machine of `CALL_SECONDS`."""
        settings = self._settings.search_settings(configuration)
        call = CALL_SECONDS.get(configuration.model, UNKNOWN_CALL)
        call *= configuration.steps / 20 * settings.batch_size / 4
        if settings.latency_only:
            return TIMED_CALLS * call
        return SCORED_CALLS * call * max(1.0, settings.num_samples / settings.batch_size)

    def left(self, statuses: Mapping[Configuration, Status]) -> tuple[float, bool]:
        """Return the seconds that are left, and whether they come from this machine's results."""
        expected = actual = left = 0.0
        for configuration, status in statuses.items():
            seconds = self.seconds(configuration)
            taken = status.entry.evidence.seconds if status.entry else 0.0
            if taken:
                expected, actual = expected + seconds, actual + taken
            if status.state == "open":
                left += seconds
        return (left * actual / expected, True) if expected else (left, False)
