"""What a report is read from, and what is written of it without a browser."""

from __future__ import annotations

import ast
import json
import logging
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from accel_search.core import extras
from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate, Verdict
from accel_search.core.trial import Goal
from accel_search.errors import ConfigurationError, LoadError
from accel_search.report.console.summary import summary
from accel_search.report.format import factor, short
from accel_search.report.html import script as export
from accel_search.report.html.page import headline, search_page
from accel_search.search.space import JointSpace
from accel_search.settings import Settings
from accel_search.storage.entries import Figures, StoredProvenance
from accel_search.storage.run_folder import (
    ended_record,
    read_record,
    record_path,
    to_picture,
    write_record,
)
from accel_search.storage.run_reader import of_outcome, read_run
from accel_search.storage.trials_db import default_url
from accel_search.sweep.page import read_bounds, sweep_page
from accel_search.write_report import main
from tests.support.fakes import PROVENANCE, WORKLOAD, FakeEvaluator
from tests.support.joint import ALWAYS, jointly
from tests.support.pages import EVIL, add_failure, make_run_dir, search

ROOT = Path(__file__).parents[2]
WINNER = Candidate({"deepcache": {"cache_interval": 4, "cache_branch_id": 3}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run_dir(tmp_path_factory.mktemp("run"))


def test_a_run_folder_holds_the_winner_its_rivals_and_why_it_stopped(folder):
    run = read_run(folder)
    assert run.winner.candidate == WINNER and run.is_confirmed and run.winner.state == "pass"
    assert len(run.rows) == 16 and [rival.steps for rival in run.rivals]
    assert run.record.end.stopped == "every distinct candidate was measured"
    front = [row for row in run.rows if row.is_front]
    ordered = sorted(front, key=lambda row: row.score_loss.value)
    assert ordered == sorted(front, key=lambda row: row.speedup.value)
    assert [column.part for column in run.pictures.columns][:3] == ["baseline", "winner", "refused"]


def test_what_is_pictured_are_baseline_winner_fastest_refused_and_rival():
    outcome, _ = search()
    found = to_picture(outcome, Goal(0.02))
    assert found["baseline"] == Candidate() and found["winner"] == WINNER
    failed = [each for each in outcome.trials if each.assessment.verdict == "fail"]
    fastest = max(failed, key=lambda each: each.assessment.speedup.value)
    assert found["refused"] == fastest.trial.candidate
    # None does as well: the fastest is shown.
    fastest = max(outcome.rivals, key=lambda rival: rival.assessment.speedup.value)
    assert found["rival"]["steps"]["num_inference_steps"] == fastest.steps


def test_message_card_and_pictures_show_the_same_fewer_steps():
    outcome, record = search(FakeEvaluator(lambda candidate: (1.2, 0.019)))
    first = outcome.rivals[0]
    faster = replace(first.assessment.speedup, value=9.0)
    fewer = replace(first, steps=3, assessment=replace(first.assessment, speedup=faster))
    outcome = replace(outcome, rivals=(fewer, *outcome.rivals))
    named = outcome.as_well(Goal(0.02)).steps
    assert named > fewer.steps
    assert f"{named} steps are at least as fast" in summary(
        outcome, Settings(), JointSpace(("deepcache",), WORKLOAD)
    )
    shown = to_picture(outcome, Goal(0.02))["rival"]
    assert shown["steps"]["num_inference_steps"] == named
    beside = {extras.fewer_steps(rival.steps): rival.measurement for rival in outcome.rivals}
    assert f"{named} steps do as well" in search_page(of_outcome(outcome, record, beside, None))


def test_the_card_quotes_the_held_out_figures_and_keeps_the_searchs():
    outcome, record = search()
    held_out = replace(
        outcome.held_out, speedup=Estimate(1.7, 1.6, 1.8), score_loss=Estimate(0.017, 0.01, 0.03)
    )
    end = replace(record.end, held_out=Figures.of(held_out))
    run = of_outcome(outcome, replace(record, end=end), {}, None)
    shown = headline(run)
    assert (shown["speedup"], shown["loss"]) == ("1.70×", "1.7 %")
    assert shown["prompts"] == "32 held-out prompts" and shown["title"] == "Speedup"
    assert shown["tail_loss"] == f"{100 * held_out.tail_loss:.1f} %"
    assert "<br>worst tenth of prompts " in search_page(run)
    assert "usable range" not in search_page(run)
    ranged = replace(end, held_out=replace(end.held_out, range_loss=0.041))
    page = search_page(of_outcome(outcome, replace(record, end=ranged), {}, None))
    assert "<br>4.1 % of the usable range</p>" in page
    assert shown["in_search"]["speedup"] == f"{run.winner.speedup.value:.2f}×" != "1.70×"
    assert "speedup 1.70 [1.60, 1.80], score loss 1.7 %" in export.script(run)
    # Without held-out prompts they are the search's.
    bare = of_outcome(outcome, replace(record, end=replace(end, held_out=None)), {}, None)
    assert headline(bare)["speedup"] == shown["in_search"]["speedup"]
    assert "On held-out prompts" in search_page(bare) and headline(bare)["prompts"] == "32 prompts"


def test_the_card_says_how_likely_a_winner_is():
    outcome, _ = search()
    unsure = replace(outcome.held_out, verdict=Verdict.INCONCLUSIVE, prompts_needed=100)
    unsure = replace(outcome, held_out=unsure, chance=0.82)
    space = JointSpace(("deepcache",), WORKLOAD).summary()
    record = ended_record(unsure, Settings(), space, WORKLOAD, PROVENANCE, "study", None)
    assert record.end.chance_within_bound == 0.82
    page = search_page(of_outcome(unsure, record, {}, None))
    assert "likely (82 %) within the bound" in page and "--held_out_samples 100, where" in page
    cut = replace(record, end=replace(record.end, is_cut_short=True))
    page = search_page(of_outcome(unsure, cut, {}, None))
    assert "Not validated: --time_budget was spent" in page


def test_the_page_says_how_likely_those_are_that_were_not_validated():
    outcome, _ = search()
    space = JointSpace(("deepcache",), WORKLOAD).summary()
    first, second, third, *_ = (trial.trial.candidate for trial in outcome.trials)
    tried = replace(outcome, refuted={first: 0.84, second: 0.12, third: None})
    record = ended_record(tried, Settings(), space, WORKLOAD, PROVENANCE, "study", None)
    page = search_page(of_outcome(tried, record, {}, None))
    assert f"{short(first)} not validated (84 %); {short(second)} rejected (12 %); " in page
    assert f"{short(third)} failed there." in page
    # Of earlier versions.
    before = replace(record, end=replace(record.end, refuted_chances=()))
    assert f"{short(first)} rejected; " in search_page(of_outcome(tried, before, {}, None))


def test_a_folder_without_a_record_is_reported_without_one(tmp_path):
    make_run_dir(tmp_path, record=False, pictures=False)
    run = read_run(tmp_path, bound=0.02)
    assert run.winner.candidate == WINNER and not run.is_confirmed
    page = search_page(run)
    assert "Why this search ended is not stored" in page and "not confirmed" in page


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = search()[1]
    write_record(tmp_path, record)
    assert read_record(record_path(tmp_path, record.study)) == record
    begun = replace(record, end=None)
    write_record(tmp_path, begun)
    assert read_record(record_path(tmp_path, record.study)) == begun and begun.is_open


def test_an_outcome_makes_the_same_page_as_what_it_stored():
    outcome, record = search()
    run = of_outcome(outcome, record, {}, None)
    assert run.winner.candidate == WINNER and "3 % of" not in search_page(run)


def test_one_held_out_prompt_is_told_without_an_interval(tmp_path):
    class Single(FakeEvaluator):
        """Confirms its winner on one prompt alone."""

        def measure(self, candidate, split="search", prompts=None, pairs=None, turn=0):
            wanted = range(1) if split == "held_out" else prompts
            return super().measure(candidate, split, wanted, pairs)

        def baseline(self, split="search", prompts=None):
            measured = super().baseline(split, prompts)
            few = 1 if split == "held_out" else self.prompt_count
            return replace(measured, scores=measured.scores[:few])

    outcome, record = search(Single())
    assert not outcome.held_out.score_loss.is_bounded
    write_record(tmp_path, record)  # JSON has no infinity.
    assert record.end.held_out.score_loss_interval is None
    assert '1.6 %</p>\n      <p class="sub">unknown, allowed' in search_page(
        of_outcome(outcome, record, {}, None)
    )


def test_what_gains_nothing_is_said_on_the_page_as_text():
    outcome, record = search(FakeEvaluator(lambda candidate: (0.9, 0.0)))
    assert record.end.no_gain.startswith("deepcache does not pay here: ")
    assert record.end.no_gain in search_page(of_outcome(outcome, record, {}, None))
    changed = replace(record, end=replace(record.end, no_gain="<script>x</script>"))
    evil = search_page(of_outcome(outcome, changed, {}, None))
    assert "&lt;script&gt;x&lt;/script&gt;" in evil and "<script>x" not in evil
    outcome, record = search()
    assert record.end.no_gain is None
    assert 'role="note"' not in search_page(of_outcome(outcome, record, {}, None))


def test_the_page_says_what_the_winner_of_a_joint_search_is_without_each_target(
    tmp_path, monkeypatch, caplog
):
    with caplog.at_level(logging.INFO, "test"):
        outcome, _, said = jointly(0.8, monkeypatch, ALWAYS, default_url(tmp_path))
    settings = Settings(targets=ALWAYS.targets)
    summary, study = ALWAYS.summary(), "study-run1"
    record = ended_record(outcome, settings, summary, WORKLOAD, PROVENANCE, study, said)
    write_record(tmp_path, record)
    without = read_run(tmp_path).without
    assert without == {each.target: each.assessment.speedup for each in outcome.ablations}
    page = search_page(read_run(tmp_path))
    for name, speedup in without.items():
        assert f"speedup without it {factor(speedup)}</span>" in page
        assert f"winner without {name}: speedup: " in caplog.text
    assert page.count("speedup without it ") == len(without) == 2


def test_a_sweeps_page_says_where_nothing_is_gained_and_why(tmp_path):
    content = json.loads((ROOT / "speedup_bounds.json").read_text())
    entries = [
        entry
        for value in content.values()
        for entry in value.get("by_model", {}).values()
        if not entry["measured_max"]["is_gain"]
    ]
    assert entries  # Of before: they do not say why.
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert "Where nothing is gained" not in sweep_page(read_bounds(tmp_path / "b.json"), {})
    for entry in entries:
        entry["no_gain"] = "tome does not pay here: <b>"
    (tmp_path / "b.json").write_text(json.dumps(content))
    page = sweep_page(read_bounds(tmp_path / "b.json"), {})
    assert page.count("tome does not pay here: &lt;b&gt;") == 1
    assert '<a href="#no-gain">why</a>' in page and "Where nothing is gained" in page


def test_a_sweeps_page_says_which_winners_are_only_likely(tmp_path):
    content = json.loads((ROOT / "speedup_bounds.json").read_text())
    assert "likely (" not in sweep_page(read_bounds(ROOT / "speedup_bounds.json"), {})
    entries = [e for value in content.values() for e in value.get("by_model", {}).values()]
    for entry, chance in zip(entries, (0.82, 0.99), strict=False):
        entry["latency_only"] = False
        entry["best_feasible"] = {
            "speedup": 1.5,
            "speedup_interval": [1.4, 1.6],
            "score_loss": 0.01,
            "score_loss_interval": [0.0, 0.03],
            "chance_within_bound": chance,
        }
    (tmp_path / "b.json").write_text(json.dumps(content))
    page = sweep_page(read_bounds(tmp_path / "b.json"), {})
    assert page.count("likely (82 %) within the loss") == page.count("likely (") == 1


def test_what_cannot_be_read_is_one_line_and_its_own_exit_code(tmp_path, capsys):
    bad = tmp_path / "trials.json"
    cases = {"{": 5, "[]": 5, '{"format": "other"}': 5, '{"failed_configs": {}}': 2}
    cases |= {'{"failed_configs": {"x": 1}}': 2, '{"failed_configs": {"x_DDIM_9_y": 1}}': 5}
    for text, code in cases.items():
        bad.write_text(text)
        assert main([str(bad)]) == code, text
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert main([str(tmp_path / "nothing")]) == 2
    assert main([str(tmp_path)]) == 2
    assert "holds no trials.db" in capsys.readouterr().err
    (tmp_path / "trials.db").write_text("no database at all, however long it is" * 40)
    assert main([str(tmp_path)]) == 5
    assert main([str(bad), "--req_score_loss", "7"]) == 2
    assert main([]) == 2


def test_a_broken_record_or_index_of_pictures_is_named(tmp_path):
    make_run_dir(tmp_path)
    index = tmp_path / "pictures" / "study-run1" / "pictures.json"
    index.write_text("{}")
    with pytest.raises(LoadError, match=r"pictures\.json: cannot be read"):
        read_run(tmp_path)
    record = json.loads(record_path(tmp_path, "study-run1").read_text())
    for broken in ([], record | {"format": "accel-search-story/2"}, record | {"end": 3}):
        record_path(tmp_path, "study-run1").write_text(json.dumps(broken))
        with pytest.raises(LoadError, match="cannot be read as a run record"):
            read_run(tmp_path)
    with pytest.raises(ConfigurationError, match="--study other"):
        read_run(tmp_path, "other")


def test_the_command_writes_page_chart_and_sheet(tmp_path, capsys):
    make_run_dir(tmp_path, prompt="a price of $5 and $6")
    add_failure(tmp_path, "no")
    assert main([str(tmp_path)]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in written] == [
        "report.html", "search_results.png", "search_pictures.png"
    ]  # fmt: skip
    for path in written[1:]:
        width, height = Image.open(path).size
        assert width > 600 and height > 300
    page = written[0].read_text()
    assert "Content-Security-Policy" in page and "http" not in page.split("<body>")[1].replace(
        "http://www.w3.org/2000/svg", ""
    )


def test_a_sweeps_page_links_the_reports_of_its_runs(tmp_path, capsys):
    make_run_dir(tmp_path / "runs" / "SDXL_DDIM_20_deepcache")
    bounds = ROOT / "speedup_bounds.json"
    page = tmp_path / "sweep.html"
    assert main([str(bounds), "--output", str(page), "--run_dir", str(tmp_path / "runs")]) == 0
    link = "sweep_files/SDXL_DDIM_20_deepcache.html"
    assert f'href="{link}"' in page.read_text() and (tmp_path / link).exists()
    assert main([str(bounds), "--export", "x.py"]) == 2
    assert len(read_bounds(bounds)) == 12


def test_a_script_cannot_be_made_to_say_what_a_name_says(folder):
    run = read_run(folder)
    names = {"pipeline": EVIL, "scheduler_class": "UniPCMultistepScheduler", "dtype": "float16"}
    named = {"model_id": EVIL + "\n", "device_name": '"""\nimport os', "revision": "'main\n"}
    workload = replace(run.record.workload, **names)
    record = replace(run.record, workload=workload, provenance=StoredProvenance(**named))
    text = export.script(replace(run, record=record))
    values = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    assert EVIL + "\n" in values and "'main\n" in values
    assert text.count("import os") == 1 and "import os" in ast.get_docstring(ast.parse(text))
    for name in ("X;import os", "None"):
        other = replace(record, workload=replace(workload, scheduler_class=name))
        with pytest.raises(ConfigurationError, match="no class's name"):
            export.script(replace(run, record=other))
    with pytest.raises(ConfigurationError, match="no candidate meets the goal"):
        export.script(replace(run, winner=None))


def test_a_script_loads_what_was_measured(folder):
    run = read_run(folder)
    named = {"compiled": True, "offload": "model", "vae": "owner/vae@0123\nimport os"}
    workload = replace(run.record.workload, dtype="float16")
    record = replace(run.record, workload=workload, provenance=StoredProvenance(**named))
    text = export.script(replace(run, record=record))
    ast.parse(text)
    assert "from accel_search import accelerate, compile_unet\n" in text
    assert text.index("compile_unet(pipe)") < text.index("accelerate(pipe, SETTINGS, ")
    assert "pipe.enable_model_cpu_offload(device=device)" in text and "pipe.to(" not in text
    assert "another VAE, owner/vae@0123 import os:" in text
    assert 'dtype = torch.float32 if device == "cpu" else torch.float16\n' in text
    lines = export.direct_lines(replace(run, record=record))
    assert lines[1] == "compile_unet(pipe)" and lines[2].startswith("accelerate(pipe, ")
    assert lines[2].endswith('}, scheduler="DDIM")')
    assert export.file_lines(run)[1:] == [
        "accelerate(",
        "    pipe,",
        '    "search_params.json",',
        "    steps=20,",
        '    scheduler="DDIM",',
        "    req_score_loss=0.02,",
        '    targets=["deepcache"],',
        ")",
    ]
    plain = export.script(run)
    assert "compile_unet" not in plain and "pipe.to(device)\n" in plain
    assert "dtype = torch.float32\n" in plain


@pytest.fixture
def exported(folder, tmp_path):
    """Return a script for small pictures."""
    run = read_run(folder)
    small = replace(run.record.workload, steps=6, height=64, width=64)
    path = tmp_path / "run_fast.py"
    export.write_script(replace(run, record=replace(run.record, workload=small)), path)
    return path


def test_the_exported_script_makes_a_picture(exported, monkeypatch, capsys):
    monkeypatch.chdir(exported.parent)
    runpy.run_path(str(exported))
    assert Image.open("fast.png").size == (64, 64)
    assert "fast.png in" in capsys.readouterr().out


@pytest.mark.slow
def test_the_exported_script_runs_as_it_is(exported):
    done = subprocess.run(
        [sys.executable, exported],
        check=False,
        cwd=exported.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(exported.parent / "fast.png").size == (64, 64)
    # The libraries' bars of progress, and nothing else: nothing fails as the process ends.
    lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line]
    assert [line for line in lines if "%|" not in line] == []


@pytest.fixture
def fake_search(tmp_path, monkeypatch):
    """Return a function that runs `accel-search` on a fake evaluator, and the folder it fills."""
    from accel_search import session, traversal_search
    from accel_search.search.space import JointSpace
    from accel_search.settings import Settings
    from tests.support.fakes import FakeEvaluator

    fake = FakeEvaluator()
    space = JointSpace(("deepcache",), fake.workload)
    monkeypatch.setattr(session, "open_evaluator", lambda settings, logger, given: (fake, space))
    files = {name: str(tmp_path / name) for name in ("output", "run_dir", "log_file")}

    def search(**options):
        return traversal_search.run(Settings(strategy="grid", quiet=True, **files | options))

    return search, tmp_path


def test_a_result_is_stored_before_anything_is_made_for_a_report(fake_search, monkeypatch):
    import json

    from accel_search import session
    from accel_search.errors import ConfigurationError

    def fails(*_):
        raise ConfigurationError("--run_dir: no space left")

    search, folder = fake_search
    monkeypatch.setattr(session, "write_record", fails)
    with pytest.raises(ConfigurationError, match="no space left"):
        search(report="auto")
    assert len(json.loads((folder / "output").read_text())) == 2  # One a kind of key.


def test_a_search_that_is_answered_from_its_file_is_reported_on_too(fake_search, capsys):
    search, folder = fake_search
    assert search() == 0
    page, script = folder / "page.html", folder / "fast.py"
    assert search(report=str(page), export=str(script)) == 0
    assert "holds this search's result" in capsys.readouterr().out
    assert (
        "1.90" in page.read_text()
        and 'accelerate(pipe, SETTINGS, scheduler="DDIM")' in script.read_text()
    )
    page.unlink()
    shutil.rmtree(folder / "run_dir")
    assert search(report=str(page)) == 0  # The result is still the answer.
    assert not page.exists()
    assert "nothing to report on" in (folder / "log_file").read_text()
