"""A tracker is told all of a search, and costs it nothing."""

import logging
import subprocess
import sys

import pytest

from accel_search.errors import ConfigurationError
from accel_search.report import trackers
from accel_search.report.trackers.base import Tracker
from accel_search.report.trackers.tracking import Tracking, tracked
from accel_search.settings import Settings
from accel_search.sweep.settings import from_command_line, sweep_parser
from accel_search.traversal_search import main
from tests.support.fakes import PROVENANCE, WORKLOAD
from tests.support.replays import REPLAY


class Notebook(Tracker):
    """Notes what it is told; raises at what `target` names."""

    name, package = "mlflow", "json"
    told: list = []

    def __init__(self, target):
        self._raises_at = target
        self._note("connect")

    def _note(self, event, *arguments):
        self.told.append((event, *arguments))
        if event == self._raises_at:
            raise ConnectionError("the line is dead")

    def begin(self, subject):
        self._note("begin", subject)

    def on_baseline(self, baseline):
        self._note("baseline")

    def on_start(self, candidate):
        self._note("start", candidate)

    def on_trial(self, assessed):
        self._note("trial", assessed.trial.candidate)

    def on_confirm(self, assessed, held_out, chance):
        self._note("confirm", chance)

    def on_rival(self, rival):
        self._note("rival", rival.steps)

    def end(self, ending):
        self._note("end", ending)

    def abort(self, *, interrupted):
        self._note("abort", interrupted)


@pytest.fixture
def notebook(monkeypatch, tmp_path):
    """Put the notebook in MLflow's place; return what it is told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers, "all_trackers", lambda: {"mlflow": Notebook})
    monkeypatch.setattr(Notebook, "told", [])
    return Notebook.told


def test_it_is_told_what_is_searched_each_trial_and_how_it_ended(notebook):
    assert main([*REPLAY, "--mlflow", "here", "--trials_out", "t.json", "--quiet"]) == 0
    events = [event for event, *_ in notebook]
    assert events[:3] == ["connect", "begin", "baseline"]
    assert events.count("start") == events.count("trial") == 3
    assert events[-1] == "end"
    subject, ending = notebook[1][1], notebook[-1][1]
    assert subject.study is None and subject.asked["strategy"] == "grid"
    assert ending.entry.speedup > 1 and "--max_trials 3 was reached" in ending.stopped
    assert [path.name for path in ending.files] == ["t.json"] and len(ending.trials) == 3


@pytest.mark.parametrize("event", ["connect", "begin", "baseline", "trial", "end"])
def test_one_that_fails_is_one_warning_and_the_search_goes_on(notebook, capsys, event):
    assert main([*REPLAY, "--mlflow", event]) == 0
    printed = capsys.readouterr()
    warning = f"--mlflow {event}: ConnectionError: the line is dead; the search goes on without it"
    assert (printed.out + printed.err).count(warning) == 1
    assert "speedup: " in printed.out
    # After its first error it is told nothing more.
    assert [name for name, *_ in notebook][-1] == event


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_it_is_told_when_a_search_is_interrupted_or_fails(notebook, error):
    settings, log = Settings(mlflow="here"), logging.getLogger("test")
    with pytest.raises(error), tracked(settings, WORKLOAD, PROVENANCE, "study", log):
        raise error
    assert notebook[1][1].study == "study"
    assert notebook[-1] == ("abort", error is KeyboardInterrupt)


def test_without_the_option_nobody_is_told(notebook):
    assert main([*REPLAY, "--quiet"]) == 0
    assert notebook == []
    Tracking({}, logging.getLogger("test")).end(None, None, ())


def test_without_its_package_it_is_one_line_before_anything_loads(monkeypatch, capsys):
    monkeypatch.setattr("accel_search.report.trackers.base.find_spec", lambda name: None)
    assert main(["--mlflow", "sqlite:///mlflow.db"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'accel-search[mlflow]'" in error and error.count("\n") == 1


def test_a_sweep_hands_it_to_each_search(monkeypatch):
    parser = sweep_parser("accel-explore", "", "0")
    settings = from_command_line(parser, ["--mlflow", "sqlite:///m.db", "--models", "demo"])
    assert settings.search_settings(settings.table[0]).mlflow == "sqlite:///m.db"
    monkeypatch.setattr("accel_search.report.trackers.base.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="--mlflow: needs the package mlflow"):
        from_command_line(parser, ["--mlflow", "sqlite:///m.db"])


def test_a_search_without_it_imports_no_mlflow():
    code = (
        "import sys\nfrom accel_search.traversal_search import main\n"
        f"assert main({[*REPLAY, '--quiet']!r}) == 0\n"
        "assert not {'mlflow', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
