"""Digests of weight files: what changes them, and that gigabytes are read once."""

import json
import os
import shutil

import pytest

from accel_search.storage import digests
from accel_search.storage.digests import digest_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A component with weights of three chunks, and an empty cache."""
    monkeypatch.setattr(digests, "CHUNK", 2**10)
    monkeypatch.setattr(digests, "SETTLED_NS", -1)
    monkeypatch.setenv("ACCEL_SEARCH_CACHE", str(tmp_path / "cache"))
    unet = tmp_path / "pipeline" / "unet"
    unet.mkdir(parents=True)
    (unet / "model.safetensors").write_bytes(bytes(range(250)) * 10)
    (unet / "config.json").write_text('{"layers": 2, "_diffusers_version": "0.31"}')
    return unet


def files(folder):
    return [folder / "config.json", folder / "model.safetensors"]


def read(monkeypatch):
    """Return the list of the files that are read from now on."""
    seen, real = [], digests._of_content

    def content(file):
        seen.append(file.name)
        return real(file)

    monkeypatch.setattr(digests, "_of_content", content)
    return seen


def test_any_byte_and_any_option_counts_and_the_place_does_not(folder, tmp_path):
    first = digest_of(files(folder))
    assert len(first) == digests.DIGITS and set(first) <= set("0123456789abcdef")
    copy = tmp_path / "elsewhere" / "unet"
    shutil.copytree(folder, copy)
    assert digest_of(files(copy)[::-1]) == first
    for place in (0, 1500, 2499):  # In the first chunk, in the second, at the end.
        weights = bytearray((folder / "model.safetensors").read_bytes())
        weights[place] ^= 1
        (copy / "model.safetensors").write_bytes(weights)
        assert digest_of(files(copy)) != first
    (folder / "config.json").write_text('{"_diffusers_version": "0.42", "layers": 2}')
    assert digest_of(files(folder)) == first
    (folder / "config.json").write_text('{"layers": 3}')
    assert digest_of(files(folder)) != first


def test_a_file_is_read_once_until_it_changes(folder, monkeypatch):
    seen = read(monkeypatch)
    assert digest_of(files(folder), only_known=True) is None and not seen
    first = digest_of(files(folder))
    assert digest_of(files(folder)) == digest_of(files(folder), only_known=True) == first
    assert seen == ["model.safetensors"]
    weights = folder / "model.safetensors"
    # Another content of the same length, with the old file's time of change.
    before = weights.stat()
    weights.write_bytes(bytes(range(1, 251)) * 10)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = digest_of(files(folder), only_known=True)
    assert changed not in (None, first) and seen == ["model.safetensors"] * 2
    # What is gone is forgotten when the next is remembered.
    weights.rename(folder / "model-2.safetensors")
    digest_of([folder / "model-2.safetensors"])
    kept = json.loads((digests._kept()).read_text())
    assert [path.rpartition("/")[2] for path in kept] == ["model-2.safetensors"]


def test_a_file_that_was_just_written_is_read_again(folder, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_NS", 10**18)
    seen = read(monkeypatch)
    assert digest_of(files(folder)) == digest_of(files(folder))
    assert len(seen) == 2 and not digests._kept().exists()


def test_without_a_place_to_keep_them_they_are_computed(folder, monkeypatch, tmp_path):
    first = digest_of(files(folder))
    digests._kept().write_text("[1")  # Corrupt.
    assert digest_of(files(folder)) == first
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACCEL_SEARCH_CACHE", str(tmp_path / "file"))
    assert digest_of(files(folder)) == first
