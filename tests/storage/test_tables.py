"""Results as pandas tables, and the report and the tables of another storage than SQLite's."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import accel_search
from accel_search.errors import ConfigurationError, LoadError
from accel_search.storage.entries import BoundEvidence
from accel_search.storage.run_folder import write_record
from accel_search.storage.run_reader import read_run
from accel_search.storage.tables import load_results, load_trials
from accel_search.storage.trials_db import default_url
from accel_search.write_report import main
from tests.support.entries import bound_entry
from tests.support.fakes import FakeEvaluator
from tests.support.pages import add_failure, make_run_dir, search
from tests.support.results import GRID, searched
from tests.support.searches import point, run

ROOT = Path(__file__).parents[2]
PARAMETERS = ["deepcache.cache_interval", "deepcache.cache_branch_id"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_run_dir(tmp_path_factory.mktemp("run"), pictures=False)
    add_failure(folder, "the pipeline said no")
    return folder


def test_a_run_is_a_table_with_the_figures_of_its_report(folder):
    table = load_trials(folder)
    shown = {row.candidate: row for row in read_run(folder).rows}
    assert len(table) == len(shown) == 16
    assert list(table.columns[:2]) == PARAMETERS
    for row in table.to_dict("records"):
        said = shown[point(*(row[name] for name in PARAMETERS))]
        assert row["verdict"] == said.state
        if said.speedup is None:
            assert "the pipeline said no" in row["failure"] and pd.isna(row["speedup"])
            continue
        assert row["speedup_low"] == said.speedup.low < row["speedup"] < row["speedup_high"]
        assert row["score_loss_high"] == said.score_loss.high
        assert row["prompts"] == 32 and row["seconds"] == pytest.approx(10)
        assert row["tail_loss"] == said.tail_loss > row["score_loss"]
        assert pd.isna(row["failure"])
    assert table[PARAMETERS].dtypes.astype(str).tolist() == ["Int64", "Int64"]
    assert table.attrs["workload"]["steps"] == 20 and table.attrs["is_confirmed"]


def test_the_winner_of_a_run_is_marked(tmp_path):
    make_run_dir(tmp_path, pictures=False)
    table = load_trials(tmp_path)
    winner = table[table.is_winner]
    assert winner[PARAMETERS].values.tolist() == [[4, 3]]
    # What pandas is for.
    best = table[table.verdict == "pass"].nlargest(1, "speedup")
    assert best[PARAMETERS].values.tolist() == [[4, 3]]


def test_the_database_and_its_url_are_the_same_table(folder):
    table = load_trials(folder)
    assert load_trials(folder / "trials.db").equals(table)
    far = load_trials(f"sqlite:///{folder / 'trials.db'}")
    assert far.drop(columns="is_winner").equals(table.drop(columns="is_winner"))


def test_a_file_of_trials_is_a_table_too():
    table = load_trials(ROOT / "tests" / "data" / "tables" / "deepcache-tome.json.gz")
    assert len(table) > 100 and (table.prompts == 64).all()
    assert {"deepcache.cache_interval", "tome.ratio"} <= set(table.columns)
    assert (table.speedup_low <= table.speedup).all() and table.seconds.gt(0).all()


def test_what_is_no_run_is_one_line(tmp_path):
    with pytest.raises(ConfigurationError, match="no such file or folder"):
        load_trials(tmp_path / "none")
    (tmp_path / "trials.db").write_text("no database")
    with pytest.raises(LoadError, match="cannot be read as a trials' database"):
        load_trials(tmp_path / "trials.db")
    with pytest.raises(LoadError, match="no such file"):
        load_trials(f"sqlite:///{tmp_path / 'other.db'}")
    assert not (tmp_path / "other.db").exists()
    (tmp_path / "f.json").write_text("{")
    with pytest.raises(LoadError, match="result file"):
        load_results(tmp_path / "f.json")
    with pytest.raises(ConfigurationError, match="no such file"):
        load_results(tmp_path / "none.json")


def test_a_result_file_is_a_table(tmp_path):
    path = tmp_path / "search_params.json"
    entry = searched(path, GRID())
    table = load_results(path)
    assert table.goal.tolist() == ["upbound_speedup", "1.9"]
    first = table.iloc[0]
    assert (first.steps, first.targets, first.model) == (20, "deepcache", "demo")
    assert first.speedup == entry.speedup and first.speedup_low < first.speedup
    assert [first[name] for name in PARAMETERS] == [4, 3]
    assert first.held_out_speedup == entry.evidence.held_out.speedup == entry.speedup
    assert first.tail_loss == entry.evidence.tail_loss > entry.score_loss
    assert first.in_search_speedup == entry.evidence.in_search.speedup != entry.speedup


def test_the_committed_bounds_are_a_table():
    content = json.loads((ROOT / "speedup_bounds.json").read_bytes())
    table = load_results(ROOT / "speedup_bounds.json")
    entries = sum(len(value["by_model"]) for key, value in content.items() if key.startswith("("))
    assert len(table) == entries + len(content.get("failed_configs", {}))
    found = table[table.max_speedup.notna()]
    assert (found.measured_max_speedup_low <= found.measured_max_speedup).all()
    assert found.max_speedup.tolist() == pytest.approx(
        (found.measured_max_speedup * 1.1).tolist(), abs=0.01
    )


def test_a_failed_configuration_is_a_row(tmp_path):
    failure = {"error": "cuda_oom", "message": "too large", "timestamp": "2026-01-01T00:00:00"}
    path = tmp_path / "bounds.json"
    path.write_text(json.dumps({"failed_configs": {"a_model_DDIM_20_deepcache+tome": failure}}))
    (row,) = load_results(path).to_dict("records")
    assert (row["model"], row["steps"], row["targets"]) == ("a_model", 20, "deepcache+tome")
    assert row["failure"] == "cuda_oom: too large"


def test_the_example_of_the_documentation_runs(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "accel_search_runs").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    searched(tmp_path / "search_params.json", GRID())
    text = (ROOT / "docs" / "use.md").read_text()
    (code,) = [each for each in re.findall(r"```python\n(.*?)```", text, re.S) if "load_t" in each]
    (tmp_path / "example.py").write_text(code)
    runpy.run_path(str(tmp_path / "example.py"))
    assert "cache_interval" in capsys.readouterr().out


def test_the_package_itself_hands_out_the_tables():
    assert accel_search.load_trials is load_trials
    assert accel_search.load_results is load_results


@pytest.fixture
def elsewhere(tmp_path):
    """Return the URL of a storage that is not in the run folder, and the folder of its record."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    run(FakeEvaluator(), url=url)
    write_record(tmp_path / "runs", replace(search()[1], study="study-run1"))
    return url, tmp_path / "runs"


def test_a_search_in_another_storage_is_reported_with_the_record_of_its_folder(elsewhere, capsys):
    url, folder = elsewhere
    assert main([str(folder)]) == 2
    assert "the same --storage" in capsys.readouterr().err
    assert main([str(folder), "--storage", url]) == 0
    page = (folder / "report.html").read_text()
    assert "every distinct candidate was measured" in page and "cache_interval" in page
    # Without the folder it is the fastest within the bound, as far as the trials tell.
    told = read_run(folder, storage=url)
    assert told.is_confirmed and told.winner.candidate == point(4, 3)
    alone = read_run(folder / "nowhere", storage=url)
    assert not alone.is_confirmed and alone.winner.candidate == point(4, 3)


def test_a_storage_alone_is_reported_where_the_run_folder_would_be(elsewhere, monkeypatch, capsys):
    url, folder = elsewhere
    monkeypatch.chdir(folder.parent)
    assert main(["--storage", url]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "accel_search_runs/report.html"


def test_other_peoples_studies_in_a_storage_are_none_of_ours(elsewhere):
    import optuna

    url, folder = elsewhere
    optuna.create_study(study_name="of-others", storage=url)
    assert read_run(folder, storage=url).record.study == "study-run1"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--storage", "nonsense"], 5, "cannot be read"),
        (["--storage", "postgresql://me:secret@127.0.0.1:9/db"], 5, "cannot be read"),
        (["--storage", "sqlite:///no/such.db"], 5, "no such file"),
        ([], 2, "RUN: no such file or folder"),
    ],
)
def test_a_storage_that_cannot_be_read_is_one_line_without_its_password(
    tmp_path, monkeypatch, capsys, arguments, code, says
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and "secret" not in error


def test_a_sweep_in_a_shared_storage_finds_each_configurations_study(tmp_path):
    from accel_search.storage.keys import Configuration
    from accel_search.sweep.page import _page_of

    url = default_url(tmp_path)
    run(FakeEvaluator(), url=url)
    where = Configuration("demo", "DDIM", 20, "deepcache")
    entry = bound_entry(evidence=BoundEvidence(study="study-run1"))
    found = _page_of(tmp_path / "none", where, entry, url)
    assert found is not None and "study-run1" in found
    other = bound_entry(evidence=BoundEvidence(study="other"))
    assert _page_of(tmp_path / "none", where, other, url) is None
    assert _page_of(tmp_path / "none", where, entry, None) is None
