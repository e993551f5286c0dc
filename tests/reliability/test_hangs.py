"""Searches in which a call never returns, as real processes that must end by themselves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.support.evidence import journal, lasting, nothing_doubled, stored
from tests.support.hanging import HANGING
from tests.support.processes import MARK, ROOT, SOURCE, beside, left
from tests.support.recorded import JOURNAL

pytestmark = pytest.mark.slow

LIMIT = ["--trial_timeout", "3"]
GRID = ["--targets", "deepcache", "--strategy", "grid"]
GUIDED = ["--targets", "deepcache"]
FIRST = "deepcache(cache_interval=4, cache_branch_id=1)"
FASTEST = "deepcache(cache_interval=5, cache_branch_id=0)"
LATER = "deepcache(cache_interval=3, cache_branch_id=0)"
ANEW = "and is recorded as failed: traversal_search.log shows where it hung; restarting"


def piece(what, how="lock", split="search"):
    return {"what": what, "how": how, "split": split}


def run(folder, arguments, hanging):
    """Run the program to its end, in a process of its own."""
    folder.mkdir(exist_ok=True)
    beside(folder).mkdir(exist_ok=True)
    given = {
        "PYTHONPATH": os.pathsep.join((str(SOURCE), str(ROOT))),
        MARK: str(folder),
        JOURNAL: str(beside(folder) / "journal.jsonl"),
        HANGING: json.dumps(hanging),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.hanging", *arguments, *LIMIT],
        check=False,
        cwd=folder,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert not left(folder)
    return done


def failures(folder):
    """Return candidate -> failure of what is on record as failed for its time."""
    from accel_search.core.candidate import Candidate

    found = {}
    for record in stored(folder).farthest().values():
        failure = record["failure"]
        if failure is not None and failure["kind"] == "timeout":
            found[str(Candidate(record["candidate"]))] = failure
    return found


def log(folder):
    return (folder / "traversal_search.log").read_text()


def without_times(value):
    """Return an entry without what a hang changes: the seconds that it took."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key != "seconds"}
    return value


def ends_as_if_it_had_failed(folder, arguments, pieces):
    """Run with what hangs, and where it fails at once, and compare; return the first's output."""
    done = run(folder / "hangs", arguments, pieces)
    assert done.returncode == 0, done.stderr
    other = run(folder / "fails", arguments, [each | {"how": "fail"} for each in pieces])
    assert other.returncode == 0, other.stderr
    now, then = stored(folder / "hangs"), stored(folder / "fails")
    assert set(now.entries) == set(then.entries)
    for key, value in now.entries.items():
        assert without_times(lasting(value)) == without_times(lasting(then.entries[key]))
    nothing_doubled(now)
    return done


def pieces_of(folder):
    return sorted(json.dumps(each) for each in journal(folder))


def shows_where(folder, what):
    """Assert that the log has the stacks of what hung."""
    said = log(folder)
    assert f"{what} did not end within 3 s (--trial_timeout); the stacks of all threads:" in said
    assert 'hanging.py", line' in said and " in hang\n" in said


@pytest.mark.parametrize(
    ("arguments", "what", "how"),
    [(GRID, LATER, "lock"), (GUIDED, FASTEST, "lock"), (GUIDED, FASTEST, "c")],
)
def test_a_candidate_that_hangs_costs_itself_alone(tmp_path, arguments, what, how):
    done = ends_as_if_it_had_failed(tmp_path, arguments, [piece(what, how)])
    assert set(failures(tmp_path / "hangs")) == {what}
    assert "3 s (--trial_timeout)" in failures(tmp_path / "hangs")[what]["message"]
    # All others once, and the same ones.
    measured = pieces_of(tmp_path / "hangs")
    assert len(set(measured)) == len(measured)
    assert measured == pieces_of(tmp_path / "fails")
    shows_where(tmp_path / "hangs", what)
    assert done.stderr.count(ANEW) == log(tmp_path / "hangs").count(ANEW) == 1


def test_each_of_several_costs_itself_alone(tmp_path):
    hanging = [piece(FIRST), piece(FASTEST), piece(LATER)]
    # Beginning a study anew each time would never come to an end.
    done = ends_as_if_it_had_failed(tmp_path, [*GRID, "--force"], hanging)
    assert set(failures(tmp_path / "hangs")) == {FIRST, FASTEST, LATER}
    assert done.stderr.count(ANEW) == 3
    assert len({study for _, study, _ in stored(tmp_path / "hangs").trials}) == 1


def test_a_winner_and_a_rival_that_hang_afterwards_do_not_cost_the_result(tmp_path):
    hanging = [piece(FASTEST, split="held_out"), piece("steps(num_inference_steps=9)")]
    done = ends_as_if_it_had_failed(tmp_path, GUIDED, hanging)
    assert done.stderr.count(ANEW) == 2
    for entry in stored(tmp_path / "hangs").entries.values():
        assert (entry["cache_interval"], entry["cache_branch_id"]) != (5, 0)
        assert entry["evidence"]["held_out"]


def test_a_bare_pipeline_that_hangs_ends_the_search_in_one_line(tmp_path):
    folder = tmp_path / "run"
    done = run(folder, GRID, [piece("baseline")])
    assert done.returncode == 1
    assert done.stderr == (
        "accel-search: error: the baseline pipeline did not end within 3 s (--trial_timeout): "
        "traversal_search.log shows where it hung; what was measured is stored: run the same "
        "command again to go on\n"
    )
    shows_where(folder, "the baseline pipeline")
    assert stored(folder).trials == {}
    assert run(folder, GRID, []).returncode == 0


def test_a_device_that_no_longer_answers_is_blamed_on_one_candidate(tmp_path):
    folder = tmp_path / "run"
    done = run(folder, GRID, [piece(FIRST), piece("check", split="")])
    assert done.returncode == 1 and done.stderr.count(ANEW) == 1
    assert done.stderr.endswith("run the same command again to go on\n")
    assert set(failures(folder)) == {FIRST} and len(stored(folder).trials) == 1
    assert run(folder, GRID, []).returncode == 0
    assert set(failures(folder)) == {FIRST}


def test_a_hang_that_cannot_be_recorded_ends_the_search_instead_of_repeating_it(tmp_path):
    # A database in memory is none to go on from.
    arguments = [*GRID, "--storage", "sqlite:///:memory:"]
    done = run(tmp_path / "run", arguments, [piece(FIRST)])
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) <= 2 and "did not end within 3 s" in done.stderr


SWEEP = ["sweep", "--models", "demo", "--scheds", "DDIM", "--steps", "20"]
SWEEP += ["--methods", "deepcache,tome", "--strategy", "grid", "--max_trials", "4"]


def test_a_candidate_that_hangs_in_a_sweep_costs_no_configuration(tmp_path):
    ends_as_if_it_had_failed(tmp_path, [*SWEEP, "--force"], [piece(FIRST)])
    folder = tmp_path / "hangs"
    assert set(failures(folder)) == {FIRST}
    assert not stored(folder).entries["speedup_bounds.json", "failed_configs"]
    measured = pieces_of(folder)
    assert len(set(measured)) == len(measured) and measured == pieces_of(tmp_path / "fails")
    said = (folder / "exploration.log").read_text()
    assert said.count("is recorded as failed; a new process goes on without it") == 1
    assert 'hanging.py", line' in said and " in hang\n" in said
    # The hang ended one process, and the next one took over what was left.
    assert len(set(re.findall(r"exploring demo_DDIM_20_deepcache in (\d+)", said))) == 2


def test_a_bare_pipeline_that_hangs_in_a_sweep_fails_its_configuration(tmp_path):
    folder = tmp_path / "run"
    done = run(folder, SWEEP, [piece("baseline")])
    assert done.returncode == 6
    failed = stored(folder).entries["speedup_bounds.json", "failed_configs"]
    assert {each["error"] for each in failed.values()} == {"timeout"} and len(failed) == 2
    assert "the baseline pipeline did not end within 3 s" in str(failed)
    done = run(folder, [*SWEEP, "--retry_failed", "timeout"], [])
    assert done.returncode == 0


def test_a_verification_that_hangs_is_one_line_and_leaves_the_result(tmp_path):
    folder = tmp_path / "run"
    assert run(folder, GUIDED, []).returncode == 0
    before = stored(folder)
    done = run(folder, [*GUIDED, "--verify"], [piece(FASTEST)])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"accel-search: error: {FASTEST} did not end within 3 s")
    assert stored(folder) == before
    shows_where(folder, FASTEST)
