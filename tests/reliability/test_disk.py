"""Full, read-only and forbidden folders; files deleted, cut, damaged, of other types, or huge."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from accel_search.core.assessment import assess
from accel_search.core.trial import Failure, Trial
from accel_search.errors import AccelSearchError, ConfigurationError, LoadError
from accel_search.report.console.summary import stored_summary
from accel_search.search.space import JointSpace
from accel_search.settings import Settings
from accel_search.storage import speedup_bounds
from accel_search.storage.answers import stored_answer
from accel_search.storage.choice import find_result
from accel_search.storage.entries import BoundEntry, FailedEntry, SearchEntry
from accel_search.storage.json_files import as_type, read_json, update_json
from accel_search.storage.lookup import Wanted
from accel_search.storage.run_reader import read_run
from accel_search.storage.search_results import save_winner
from accel_search.storage.trials_db import TrialStore, default_url
from accel_search.storage.trials_file import read_trials
from accel_search.sweep.progress import in_a_line, table
from accel_search.sweep.settings import SweepSettings
from accel_search.sweep.status import status_of
from accel_search.write_report import ReportSettings, write_report
from tests.support.evidence import journal, lasting, nothing_lost, stored
from tests.support.fakes import PROVENANCE, WORKLOAD, FakeEvaluator
from tests.support.processes import ROOT, SECONDS, Run, beside, wait_for
from tests.support.recorded import PAUSE, TABLES, search, sweep
from tests.support.trials import recorded
from tests.support.wrong_types import wrong_types

SEARCH = ["--targets", "deepcache"]
NOBODY = 65534
MEGABYTE = 2**20
FILLING = 2**14


def mounted(folder: Path, size: int):
    """Mount a disk of its own on a folder, or skip the test where that is not allowed."""
    folder.mkdir()
    options = f"size={size}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("mounting is not allowed here: " + done.stderr.decode().strip())


@pytest.fixture
def disk(tmp_path):
    """Yield a folder that is a disk of one megabyte."""
    folder = tmp_path / "disk"
    try:
        mounted(folder, MEGABYTE)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def fill(folder: Path, but: int) -> Path:
    """Fill a disk up to so many bytes, and return the file that does it."""
    path = folder / "filler"
    free = shutil.disk_usage(folder).free
    path.write_bytes(b"\0" * max(0, free - but))
    return path


def keep_full(folder: Path, run: Run) -> Path:
    """Take whatever a run leaves or gives back of a disk until it ends; return the file.

    The run writes, and removes its database's journal, meanwhile: how much is free is known to
    nobody, so bytes are added until the disk takes no more.
    """
    path = folder / "filler"
    end = time.monotonic() + SECONDS
    with path.open("wb", buffering=0) as filler:
        while run.wait(0.005) is None:
            assert time.monotonic() < end, "the run does not end"
            try:
                while filler.write(bytes(FILLING)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return path


def is_told(run: Run, code: int = 2, program: str = "accel-search") -> str:
    """Assert that a run ended with one line of an error, warnings before it; return the line."""
    *before, last = run.errors.splitlines() or [""]
    assert run.wait() == code, run.errors
    assert last.startswith(f"{program}: error: "), run.errors
    assert all(line.startswith("WARNING: ") for line in before), run.errors
    return last


def undisturbed(folder: Path, *arguments: str):
    run = Run(folder, search, [*SEARCH, *arguments])
    assert run.wait() == 0, run.errors
    return stored(folder)


def same(one, other) -> None:
    assert set(one.entries) == set(other.entries)
    for key, value in one.entries.items():
        assert lasting(other.entries[key]) == lasting(value), key


# --- A disk that is full ---


def on_a_full_disk(disk: Path, free: int, reference) -> str:
    """Search with so many bytes left, then with enough; return how the first search ended."""
    filler = fill(disk, free)
    run = Run(disk, search, SEARCH)
    code = run.wait()
    said = "" if code == 0 else is_told(run)
    assert "Traceback" not in run.errors + run.output
    before = stored(disk)
    length = len(journal(disk))
    filler.unlink()
    again = Run(disk, search, SEARCH)
    assert again.wait() == 0, again.errors
    now = stored(disk)
    nothing_lost(before, now)
    same(reference, now)
    assert not [line for line in journal(disk)[length:] if before.covers(line)]
    return said


@pytest.mark.slow
def test_a_search_on_a_full_disk_says_so_and_goes_on_when_there_is_room(disk, tmp_path):
    reference = undisturbed(tmp_path / "undisturbed")
    said = on_a_full_disk(disk, 120_000, reference)
    assert "disk is full" in said or "No space left" in said


@pytest.mark.torture
def test_a_search_on_disks_that_are_full_at_any_point_of_it(tmp_path, tell):
    reference = undisturbed(tmp_path / "undisturbed")
    said = {}
    for free in range(0, 240_000, 16_000):
        folder = tmp_path / str(free)
        mounted(folder, MEGABYTE)
        try:
            said[free] = on_a_full_disk(folder, free, reference)
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    full = sum(bool(each) for each in said.values())
    assert full >= 5 and not said[max(said)]
    tell(f"full disk: {len(said)} searches, {full} of them stopped by it; all went on, none lost")


def limited(arguments):
    """Search with a limit on the size of files, where a disk cannot be filled."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))
    return search(arguments)


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_told_in_one_line(tmp_path):
    run = Run(tmp_path / "run", limited, SEARCH)
    run.wait()
    assert "trials.db" in is_told(run)


@pytest.mark.slow
def test_a_console_that_takes_no_more_stops_no_search(tmp_path):
    run = Run(tmp_path / "full", search, SEARCH, stdout="/dev/full")
    run.wait()
    said = is_told(run)
    assert "standard output: cannot be written: No space left on device" in said
    reference = undisturbed(tmp_path / "undisturbed")
    same(reference, stored(tmp_path / "full"))

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def first_line() -> None:
        with pipe.open() as stream:
            stream.readline()

    reader = threading.Thread(target=first_line)
    reader.start()
    run = Run(tmp_path / "piped", search, SEARCH, {PAUSE: "0.02"}, stdout=str(pipe))
    run.wait()
    reader.join()
    assert "Broken pipe" in is_told(run)
    same(reference, stored(tmp_path / "piped"))


@pytest.mark.slow
def test_a_log_that_cannot_be_written_any_more_stops_no_search(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "full.log").symlink_to("/dev/full")
    run = Run(tmp_path / "run", search, [*SEARCH, "--log_file", "full.log"])
    assert run.wait() == 0
    (told,) = run.errors.splitlines()
    assert "full.log: lines are lost: No space left on device" in told


# --- A folder that cannot be written to ---

PLACES = ["--output", "--trials_out", "--report", "--export", "--run_dir", "--log_file"]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["read-only", "nobody"])
def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_measured(
    disk, tmp_path, tmp_path_factory, who
):
    user = None
    if who == "read-only":
        remount(disk, "ro")
    else:
        user = NOBODY
        disk.chmod(0o755)
        _open_to_all(tmp_path, tmp_path_factory.getbasetemp())
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    for place in PLACES:
        run = Run(folder, search, [*SEARCH, place, str(disk / "there")], user=user)
        run.wait()
        said = is_told(run)
        assert str(disk / "there") in said, said
        assert not journal(folder), (place, said)
    assert not (folder / "search_params.json").exists()


def _open_to_all(folder: Path, base: Path) -> None:
    """Let another user pass through to a test's folder, as pytest does not."""
    for each in (folder, *folder.parents):
        each.chmod(0o755)
        if each == base:
            break
    # With several processes the base lies a level deeper.
    for each in base.parents:
        if not each.name.startswith("pytest-"):
            break
        each.chmod(0o755)


@pytest.mark.slow
def test_a_sweep_is_refused_a_read_only_folder_before_it_begins(disk, tmp_path):
    remount(disk, "ro")
    table = ["--models", "demo", "--scheds", "DDIM", "--steps", "20", "--methods", "deepcache"]
    for place in ("--bounds", "--output", "--run_dir", "--log_file"):
        run = Run(tmp_path / "run", sweep, [*table, place, str(disk / "there")])
        run.wait()
        assert str(disk / "there") in is_told(run, program="accel-explore")
    assert not journal(tmp_path / "run")


@pytest.mark.slow
def test_a_disk_that_fills_in_the_middle(disk, tmp_path):
    run = Run(disk, search, SEARCH, {PAUSE: "0.1"})
    wait_for(lambda: len(journal(disk)) >= 5, "a few trials")
    filler = keep_full(disk, run)
    assert "disk is full" in is_told(run)
    before = stored(disk)
    filler.unlink()
    again = Run(disk, search, SEARCH)
    assert again.wait() == 0, again.errors
    nothing_lost(before, stored(disk))
    same(undisturbed(tmp_path / "undisturbed"), stored(disk))


# --- Files that are deleted, cut or damaged in between ---


@pytest.mark.slow
def test_a_result_file_that_was_deleted_is_written_again_from_the_trials(tmp_path):
    reference = undisturbed(tmp_path / "run")
    (tmp_path / "run" / "search_params.json").unlink()
    length = len(journal(tmp_path / "run"))
    again = undisturbed(tmp_path / "run")
    same(reference, again)
    assert len(journal(tmp_path / "run")) == length


@pytest.mark.slow
def test_a_database_that_is_deleted_under_a_search_is_told(tmp_path):
    folder = tmp_path / "run"
    run = Run(folder, search, SEARCH, {PAUSE: "0.1"})
    wait_for(lambda: len(journal(folder)) >= 5, "a few trials")
    (folder / "accel_search_runs" / "trials.db").unlink()
    run.wait()
    assert "trials.db" in is_told(run)
    same(undisturbed(tmp_path / "undisturbed"), undisturbed(folder))


def filled(folder: Path) -> None:
    """Leave a study of a baseline and a few trials, one of them failed, in a run folder."""
    space = JointSpace(("deepcache",), WORKLOAD)
    evaluator = FakeEvaluator()
    baseline = evaluator.baseline()
    store = TrialStore(default_url(folder), "study", space.values())
    store.save_extra("baseline:search:4", baseline)
    for position in range(5):
        candidate = space.candidate_at(position)
        measured = evaluator.measure(candidate)
        store.add(Trial(candidate, measured), assess(measured, baseline, 0.02))
    store.add(Trial(space.candidate_at(5), None, Failure("timeout", "late", 1.0)), None)


def opened(folder: Path) -> str:
    """Do with a run folder's database all that the programs do; return what was wrong."""
    space = JointSpace(("deepcache",), WORKLOAD)
    try:
        store = TrialStore(default_url(folder), "study", space.values())
        found = store.trials()
        store.extras()
        failed = Trial(space.candidate_at(6), None, Failure("timeout", "late", 1.0))
        store.add(failed, None)
    except AccelSearchError as error:
        assert "\n" not in str(error) and "trials.db" in str(error)
        return str(error)
    return "" if len(found) == 6 else f"{len(found)} trials"


def reported(folder: Path) -> None:
    try:
        read_run(folder)
    except (LoadError, ConfigurationError) as error:
        assert "\n" not in str(error)


def damaged(tmp_path: Path, step: int):
    """Cut and damage a database at every so many bytes; return how often that was noticed."""
    whole = tmp_path / "whole"
    filled(whole)
    content = (whole / "trials.db").read_bytes()
    assert opened(whole) == ""
    counts = {"cut": [0, 0], "zeroed": [0, 0], "garbled": [0, 0]}
    for at in range(1, len(content), step):
        broken = {
            "cut": content[:at],
            "zeroed": content[:at] + b"\0" * 512 + content[at + 512 :],
            "garbled": content[:at] + os.urandom(64) + content[at + 64 :],
        }
        for how, now in broken.items():
            folder = tmp_path / "broken"
            folder.mkdir()
            (folder / "trials.db").write_bytes(now)
            reported(folder)
            said = opened(folder)
            counts[how][0] += 1
            counts[how][1] += bool(said)
            if how == "cut":
                assert said, f"cut at {at}: trials are missing, and nothing says so"
            assert (folder / "trials.db").exists()
            shutil.rmtree(folder)
    return counts


@pytest.mark.slow
def test_a_cut_or_damaged_database_is_one_line(tmp_path):
    counts = damaged(tmp_path, 20_011)
    assert counts["cut"][0] >= 5


@pytest.mark.torture
def test_a_database_cut_or_damaged_anywhere_is_one_line(tmp_path, tell):
    counts = damaged(tmp_path, 5003)
    tell(
        "damaged database: "
        + ", ".join(f"{how} at {n} places ({told} noticed)" for how, (n, told) in counts.items())
    )


@pytest.mark.slow
def test_an_empty_database_is_a_new_one_and_one_of_a_later_version_is_refused(tmp_path):
    filled(tmp_path)
    with closing(sqlite3.connect(tmp_path / "trials.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v9.9.9'")
        database.commit()
    before = (tmp_path / "trials.db").read_bytes()
    assert "no longer compatible" in opened(tmp_path)
    assert (tmp_path / "trials.db").read_bytes() == before
    (tmp_path / "trials.db").write_bytes(b"")
    assert opened(tmp_path) == "0 trials"


@pytest.mark.slow
def test_a_record_of_another_version_is_one_line(tmp_path):
    filled(tmp_path)
    for record in ("{}", "[]", "null", "17", '{"candidate": 1}'):
        with closing(sqlite3.connect(tmp_path / "trials.db")) as database:
            database.execute("UPDATE trial_user_attributes SET value_json = ?", (record,))
            database.commit()
        assert "cannot be read" in opened(tmp_path)
        reported(tmp_path)


RESULTS = {
    "search_params.json": ROOT / "search_params.json",
    "speedup_bounds.json": ROOT / "speedup_bounds.json",
}


def cut(tmp_path: Path, name: str, step: int) -> int:
    """Cut a result file after every so many bytes, and update it; return how often."""
    content = RESULTS[name].read_bytes()
    count = 0
    for length in range(0, len(content.rstrip()), step):
        folder = tmp_path / "cut"
        folder.mkdir()
        path = folder / name
        path.write_bytes(content[:length])
        update_json(path, lambda found: found.update(new={"speedup": 2}))
        assert read_json(path) == {"new": {"speedup": 2}}
        (kept,) = folder.glob(f"{name}.corrupt-*")
        assert kept.read_bytes() == content[:length]
        shutil.rmtree(folder)
        count += 1
    return count


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_file_that_was_cut_is_kept_beside_the_new_one(tmp_path, name):
    assert cut(tmp_path, name, 1500) >= 3


def trials_files(tmp_path: Path) -> list[Path]:
    import gzip

    plain, packed = tmp_path / "trials.json", tmp_path / "trials.json.gz"
    plain.write_text(json.dumps(recorded()))
    packed.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
    read_trials(plain), read_trials(packed)
    return [plain, packed]


def cut_trials(tmp_path: Path, step: int) -> int:
    count = 0
    for path in trials_files(tmp_path):
        content = path.read_bytes()
        for length in range(0, len(content), step):
            path.write_bytes(content[:length])
            with pytest.raises(ConfigurationError, match="cannot be read") as refused:
                read_trials(path)
            assert "\n" not in str(refused.value)
            with pytest.raises(AccelSearchError):
                write_report(ReportSettings(str(path)))
            assert path.read_bytes() == content[:length]
            count += 1
    return count


def test_a_file_of_trials_that_was_cut_is_one_line(tmp_path):
    assert cut_trials(tmp_path, 17) > 20


@pytest.mark.torture
def test_files_cut_at_every_byte(tmp_path, tell):
    steps = {"search_params.json": 1, "speedup_bounds.json": 7}
    counts = {name: cut(tmp_path, name, step) for name, step in steps.items()}
    counts["trials files"] = cut_trials(tmp_path, 1)
    tell("cut files: " + ", ".join(f"{name} at {n} lengths" for name, n in counts.items()))


@pytest.mark.slow
def test_programs_go_on_after_a_cut_result_file_and_keep_it(tmp_path):
    folder = tmp_path / "run"
    reference = undisturbed(folder)
    path = folder / "search_params.json"
    old = path.read_bytes()
    path.write_bytes(old[: len(old) // 2])
    run = Run(folder, search, SEARCH)
    assert run.wait() == 0
    (kept,) = folder.glob("search_params.json.corrupt-*")
    assert kept.read_bytes() == old[: len(old) // 2]
    (warning,) = run.errors.splitlines()
    assert warning.startswith("WARNING: ") and kept.name in warning
    kept.unlink()
    same(reference, stored(folder))


# --- Files of other types and versions ---


def of_the_file():
    """Return the workload of the committed results, and they as this machine's own."""
    document = json.loads((ROOT / "search_params.json").read_text())
    for entry in document.values():
        entry["provenance"] = PROVENANCE.as_dict()
    return WORKLOAD, document


def use_results(path: Path) -> None:
    space = JointSpace(("deepcache",), WORKLOAD)
    workload, _ = of_the_file()
    for required in (None, 1.5):
        wanted = Settings(pipe="demo", req_speedup=required)
        entry, _ = stored_answer(path, workload, wanted, space.values(), PROVENANCE)
        if entry is not None:
            stored_summary(entry, wanted)
    try:
        find_result(path, Wanted(steps=20, targets=["deepcache"])).entry.settings
    except ConfigurationError as error:
        assert "\n" not in str(error)
    key = next(iter(json.loads((ROOT / "search_params.json").read_text())))
    settings = {"tome": {"ratio": 0.5}}
    save_winner(path, key, SearchEntry(speedup=1.5, settings=settings, score_loss=0.0))
    assert json.loads(path.read_text())[key]["speedup"] == 1.5


def use_bounds(path: Path) -> None:
    sweep = SweepSettings(models=("SD1.5",), scheds=("DDIM",), steps=(20,), methods=("deepcache",))
    (configuration,) = sweep.table
    content = read_json(path)
    for latency_only in (False, True):
        settings = Settings(pipe="SD1.5", latency_only=latency_only)
        status = status_of(content, configuration, settings, {"device_name": "a processor"})
        table({configuration: status})
        if status.entry is not None:
            in_a_line(status.entry)
    try:
        write_report(ReportSettings(str(path), output=str(path.with_name("page.html"))))
    except AccelSearchError as error:
        assert "\n" not in str(error)
    key = next(iter(json.loads((ROOT / "speedup_bounds.json").read_text())))
    entry = json.loads((ROOT / "speedup_bounds.json").read_text())[key]["by_model"].popitem()[1]
    late = FailedEntry(error="timeout", message="late")
    speedup_bounds.save_failure(path, "SD1.5_DDIM_20_tome", late)
    speedup_bounds.save(path, key, "SD1.5", as_type(entry, BoundEntry), "SD1.5_DDIM_20_tome")
    saved = json.loads(path.read_text())[key]["by_model"]["SD1.5"]
    assert as_type(saved, BoundEntry) == as_type(entry, BoundEntry)


def mistyped(tmp_path: Path, name: str, *how) -> int:
    """Use a result file with wrong types at every place of it; return how many there were."""
    document = of_the_file()[1]
    if name == "speedup_bounds.json":
        document = json.loads(RESULTS[name].read_text())
        key = next(key for key in document if "'20'" in key and "['deepcache']" in key)
        failed = {"error": "timeout", "message": "late", "latency_only": True}
        document = {
            key: {"by_model": document[key]["by_model"]},
            speedup_bounds.FAILED: {"SD1.5_DDIM_20_tome": failed},
        }
    count = 0
    path = tmp_path / name
    for where, other, broken in wrong_types(document, *how):
        path.write_text(json.dumps(broken))
        try:
            (use_results if name == "search_params.json" else use_bounds)(path)
        except Exception as error:
            raise AssertionError(f"{where} = {other!r}: {error!r}") from error
        count += 1
    return count


@pytest.mark.parametrize(("name", "depth"), [("search_params.json", 2), ("speedup_bounds.json", 4)])
def test_wrong_types_in_a_result_file_end_no_program(tmp_path, name, depth):
    assert mistyped(tmp_path, name, ["text"], depth) > 15


@pytest.mark.torture
def test_wrong_types_everywhere(tmp_path, tell):
    others = (None, "text", [1])
    counts = {name: mistyped(tmp_path, name, others) for name in RESULTS}
    tell("wrong types: " + ", ".join(f"{name} with {n}" for name, n in counts.items()))


def test_wrong_types_in_a_file_of_trials_are_one_line(tmp_path):
    path = tmp_path / "trials.json"
    for where, other, broken in wrong_types(recorded(), ["text", []]):
        path.write_text(json.dumps(broken))
        try:
            read_trials(path)
        except ConfigurationError as error:
            assert "\n" not in str(error)
        except Exception as error:
            raise AssertionError(f"{where} = {other!r}: {error!r}") from error


# --- A file that is huge ---


@pytest.mark.torture
def test_a_result_file_of_a_million_entries_stays_usable(tmp_path, tell):
    path = tmp_path / "search_params.json"
    document = json.loads((ROOT / "search_params.json").read_text())
    key = next(key for key in document if "upbound" in key)
    entry = {"speedup": 1.2, "score_loss": 0.0, "settings": {"deepcache": {"cache_interval": 2}}}
    with path.open("w") as file:
        file.write("{\n")
        for number in range(1_000_000):
            other = key.replace("'20'", f"'{number + 1000}'")
            assert other != key
            file.write(f"{json.dumps(other)}: {json.dumps(entry)},\n")
        file.write(f"{json.dumps(key)}: {json.dumps(document[key])}}}\n")
    size = path.stat().st_size
    began = time.monotonic()
    assert find_result(path, Wanted(steps=20)).entry.settings == document[key]["settings"]
    read = time.monotonic() - began
    began = time.monotonic()
    save_winner(path, key, as_type(document[key], SearchEntry))
    written = time.monotonic() - began
    # Read by a program of its own, which must have room beside the file's entries.
    assert len(json.loads(path.read_text())) == 1_000_002
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tell(
        f"a million entries, {size / 1e6:.0f} MB: looked up in {read:.0f} s, updated in "
        f"{written:.0f} s, {peak / 1e9:.1f} GB of memory at most"
    )
    assert beside(tmp_path) and TABLES.exists()
