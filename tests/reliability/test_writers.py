"""Many processes that write one result file and one database, and some that die of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock

from accel_search.api import load_best
from accel_search.storage.json_files import read_json, update_json
from tests.support.processes import Run, wait_for
from tests.support.recorded import PAUSE, search

CONTEXT = multiprocessing.get_context("fork")
TABLE = [
    ["--sched", sched, "--targets", targets]
    for sched in ("DDIM", "UniPC", "DPM-Solver++")
    for targets in ("deepcache", "deepcache,tome")
]
# And two that share a study with one of those.
TABLE += [["--targets", "deepcache", "--strategy", "random"]]
TABLE += [["--targets", "deepcache,tome", "--strategy", "bayes"]]


def add(path, writer, count):
    for index in range(count):
        update_json(Path(path), lambda content: content.update({f"{writer}-{index}": index}))


class Reader(threading.Thread):
    """Reads a file over and over, as a program and as the package does, until it is told to end."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.reads, self.most = path, 0, 0
        self.wrong: list[BaseException] = []
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.is_set():
            if not self.path.exists():
                continue
            try:
                content = json.loads(self.path.read_text())
                assert len(content) >= self.most, "an entry was lost"
                self.most = max(self.most, len(read_json(self.path)))
                self.reads += 1
            except BaseException as error:
                self.wrong.append(error)
                return

    def end(self) -> None:
        self._ended.set()
        self.join()
        assert not self.wrong, self.wrong[0]
        assert self.reads


def many_writers(path, writers, count):
    reader = Reader(path)
    processes = [CONTEXT.Process(target=add, args=(str(path), w, count)) for w in range(writers)]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
        assert each.exitcode == 0
    reader.end()
    assert len(read_json(path)) == writers * count
    assert not list(path.parent.glob("*.corrupt-*"))
    assert {each.name for each in path.parent.iterdir()} == {path.name, f"{path.name}.lock"}
    return reader.reads


def test_eight_writers_lose_no_entry_and_no_reader_sees_half_a_file(tmp_path):
    many_writers(tmp_path / "results.json", writers=8, count=6)


@pytest.mark.torture
def test_eight_writers_of_hundreds_of_entries(tmp_path, tell):
    reads = many_writers(tmp_path / "results.json", writers=8, count=250)
    tell(f"writers: 8 processes × 250 entries into one file, read {reads} times meanwhile")


def die(path):
    update_json(Path(path), lambda content: os.kill(os.getpid(), signal.SIGKILL))


def test_a_lock_whose_holder_was_killed_is_no_obstacle(tmp_path):
    path = tmp_path / "results.json"
    update_json(path, lambda content: content.update(old=1))
    holder = CONTEXT.Process(target=die, args=(str(path),))
    holder.start()
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    update_json(path, lambda content: content.update(new=2))
    assert read_json(path) == {"old": 1, "new": 2}


def read_into(path, connection):
    connection.send("reading")
    connection.send(read_json(Path(path)))


def test_a_reader_never_moves_aside_what_a_writer_has_mended_in_between(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"old": ')
    ours, theirs = CONTEXT.Pipe()
    with FileLock(f"{path}.lock"):
        reader = CONTEXT.Process(target=read_into, args=(str(path), theirs))
        reader.start()
        assert ours.recv() == "reading"
        # It must wait here: that the file is damaged is known only under the lock.
        assert not ours.poll(0.3)
        path.write_text('{"new": 1}')
    assert ours.recv() == {"new": 1}
    reader.join()
    assert read_json(path) == {"new": 1} and not list(tmp_path.glob("*.corrupt-*"))


def eight_searches(tmp_path):
    output, runs = tmp_path / "search_params.json", tmp_path / "runs"
    shared = ["--output", str(output), "--run_dir", str(runs), "--max_trials", "20"]
    reader = Reader(output)
    started = [
        Run(tmp_path / f"search-{number}", search, [*arguments, *shared], {PAUSE: "0.005"})
        for number, arguments in enumerate(TABLE)
    ]
    for number, each in enumerate(started):
        # Two that share a study may leave each other nothing to find within the budget.
        assert each.wait() in ((0,) if 0 < number < 6 and number != 1 else (0, 3)), each.errors
        assert each.errors == ""
    reader.end()
    content = read_json(output)
    keys = [key for key in content if "upbound_speedup" in key]
    assert len(keys) == 6 and len(content) >= 12
    assert not list(tmp_path.glob("*.corrupt-*"))
    with closing(sqlite3.connect(runs / "trials.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = database.execute("SELECT count(DISTINCT study_id), count(*) FROM trials").fetchone()
    assert found[0] == 6
    for key in keys:
        assert content[key]["evidence"]["study"] in {each.stem for each in runs.rglob("*.json")}
    assert load_best(output, targets=["deepcache", "tome"], scheduler="UniPC")["tome"]
    return found[1]


@pytest.mark.slow
def test_eight_searches_finish_into_one_file_and_one_database(tmp_path):
    eight_searches(tmp_path)


@pytest.mark.torture
def test_eight_searches_again_and_again(tmp_path, tell):
    trials = [eight_searches(tmp_path / str(number)) for number in range(4)]
    tell(f"writers: 8 searches at once, 4 times: {sum(trials)} trials in 4 databases, none lost")


def test_the_lock_of_a_search_that_is_at_work_is_waited_for(tmp_path):
    """A second writer takes its turn; it neither fails nor writes over the first."""
    path = tmp_path / "results.json"
    lock = FileLock(f"{path}.lock")
    lock.acquire()
    writer = CONTEXT.Process(target=add, args=(str(path), "second", 1))
    writer.start()
    writer.join(0.3)
    assert writer.is_alive() and not path.exists()
    lock.release()
    wait_for(lambda: not writer.is_alive(), "the second writer", 60)
    assert read_json(path) == {"second-0": 0}
