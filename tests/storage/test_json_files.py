"""Result files: no half file, no lost entry, no lost old result."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from accel_search.errors import ConfigurationError
from accel_search.storage.json_files import (
    read_json,
    update_json,
    write_atomically,
)


def add_entries(path: str, writer: int, count: int) -> None:
    for index in range(count):
        update_json(Path(path), lambda content: content.update({f"{writer}-{index}": index}))


def test_two_writers_never_lose_each_others_entries(tmp_path):
    path = tmp_path / "results.json"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=add_entries, args=(str(path), w, 25)) for w in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            json.loads(path.read_text())  # a reader never sees half a file
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(read_json(path)) == 75


@pytest.mark.parametrize("content", ["", '{"a": 1', "[1, 2]", "\x00\xff", "[" * 100_000])
def test_a_file_that_does_not_parse_is_kept_aside(tmp_path, caplog, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    update_json(path, lambda entries: entries.update(new=1))
    assert read_json(path) == {"new": 1}
    (kept,) = tmp_path.glob("results.json.corrupt-*")
    assert kept.read_text() == content
    assert kept.name in caplog.text


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_change_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    update_json(path, lambda content: content.update(a=1))
    with pytest.raises(ZeroDivisionError):
        update_json(path, lambda content: content.update(b=1 / 0))
    assert read_json(path) == {"a": 1}


def test_nan_never_reaches_a_file(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(ValueError, match="JSON"):
        update_json(path, lambda content: content.update(a=float("nan")))
    assert not path.exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written") as refused:
        update_json(blocked / "results.json", lambda content: None)
    assert "\n" not in str(refused.value)


def test_an_absent_file_is_empty(tmp_path):
    assert read_json(tmp_path / "none.json") == {}
