"""Ctrl-C that falls where Python drops it."""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref

import pytest

from accel_search.cli import signals
from accel_search.cli.program import run_program
from accel_search.cli.signals import interruptible

SECONDS = 30.0


class Finalised:
    """Something that is interrupted as it goes."""

    def __init__(self, number):
        self._number = number

    def __del__(self):
        os.kill(os.getpid(), self._number)
        for _ in range(1000):
            pass


def by_a_finalizer(number):
    Finalised(number)


def by_a_weak_reference(number):
    def gone(_):
        os.kill(os.getpid(), number)
        for _ in range(1000):
            pass

    each = type("Each", (), {})()
    kept = weakref.ref(each, gone)
    del each
    assert kept() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("falls", [by_a_finalizer, by_a_weak_reference])
def test_an_interrupt_that_falls_into_a_finalizer_ends_the_program(falls, number, capsys):
    def run(_):
        falls(number)
        time.sleep(SECONDS)
        return 0

    began = time.monotonic()
    code = run_program("accel-search", lambda: None, run, lambda _: "INFO", "run it again")
    assert code == 130
    assert time.monotonic() - began < SECONDS
    assert capsys.readouterr().err == "accel-search: interrupted; run it again\n"


def test_an_interrupt_whose_program_is_over_disturbs_nothing_after_it(monkeypatch):
    monkeypatch.setattr(signals, "_PAUSE_SECONDS", 0.3)
    before = sys.unraisablehook
    with interruptible():
        by_a_finalizer(signal.SIGINT)
    time.sleep(0.6)
    assert sys.unraisablehook is before


def test_what_else_a_finalizer_raises_is_told_as_ever(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda each: told.append(each.exc_type))

    class Broken:
        def __del__(self):
            raise ValueError

    with interruptible():
        Broken()
    assert told == [ValueError]
