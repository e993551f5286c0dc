"""An observer of a sweep."""

from __future__ import annotations

import threading


class Observer:
    def __init__(self):
        self.events = []
        self._lock = threading.Lock()

    def __getattr__(self, name):
        def note(configuration, *details):
            with self._lock:
                self.events.append((name, configuration.failed_key, details))

        return note

    def of(self, kind):
        return [key for name, key, _ in self.events if name == kind]
