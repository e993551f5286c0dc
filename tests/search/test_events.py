"""One declaration of the events: each reaches every observer, and one that raises is dropped."""

import inspect
import logging

import pytest

from accel_search.report.console.progress import Progress
from accel_search.report.trackers.mlflow import MLflow
from accel_search.search.events import EVENTS, Observer, Observers

LOG = logging.getLogger("test")


class Recorder(Observer):
    """Records what it receives; raises at events named in `raises_at`."""

    def __init__(self, raises_at=()):
        self.received = []
        for event in EVENTS:
            setattr(self, event, lambda *values, event=event: self._receive(event, *values))
        self._raises_at = raises_at

    def _receive(self, event, *values):
        self.received.append((event, *values))
        if event in self._raises_at:
            raise ValueError("broken\nat length")


def arguments_of(event):
    return list(inspect.signature(getattr(Observer, event)).parameters)[1:]


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_reaches_every_observer_and_may_be_ignored(event):
    first, second, values = Recorder(), Recorder(), arguments_of(event)
    observers = {"first": first, "deaf": Observer(), "second": second}
    getattr(Observers(observers, LOG), event)(*values)
    assert first.received == second.received == [(event, *values)]


def test_one_that_raises_is_dropped_with_one_warning_and_the_others_go_on(caplog):
    failing, other = Recorder(raises_at=("on_start",)), Recorder()
    observers = Observers({"failing": failing, "other": other}, LOG)
    for event in ("on_baseline", "on_start", "on_trial"):
        getattr(observers, event)("it")
    assert [event for event, _ in failing.received] == ["on_baseline", "on_start"]
    assert [event for event, _ in other.received] == ["on_baseline", "on_start", "on_trial"]
    (record,) = caplog.records
    assert record.getMessage() == "failing: ValueError: broken; the search goes on without it"


def test_an_interrupt_is_no_failure_of_an_observer():
    class Interrupted(Observer):
        def on_start(self, candidate):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Observers({"it": Interrupted()}, LOG).on_start("candidate")


@pytest.mark.parametrize("cls", [Progress, MLflow])
def test_an_override_takes_what_the_declaration_says(cls):
    """A typo in a name would make a method that nobody calls."""
    for name in {name for name in vars(cls) if name.startswith("on_")}:
        assert list(inspect.signature(getattr(cls, name)).parameters)[1:] == arguments_of(name)
