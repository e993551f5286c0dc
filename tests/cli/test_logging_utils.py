"""Logs that are followed while they grow, and hold no secret."""

from __future__ import annotations

import re

import pytest

from accel_search.cli.logging_utils import KEPT_FILES, setup_logger
from accel_search.core.secrets import without_secrets


@pytest.fixture
def logger(tmp_path):
    made = []

    def make(**options):
        made.append(setup_logger("explore_upper_bounds", tmp_path / "a" / "x.log", **options))
        return made[-1], tmp_path / "a" / "x.log"

    yield make
    for each in made:
        for handler in list(each.handlers):
            each.removeHandler(handler)
            handler.close()
        each.propagate = True


def test_each_line_is_in_the_file_when_the_call_returns(logger, capsys):
    log, path = logger(stamped=True)
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - explore_upper_bounds - "
    for level in ("info", "warning"):
        getattr(log, level)("%s: SDXL", level)
        assert re.fullmatch(
            rf"{stamp}{level.upper()} - {level}: SDXL", path.read_text().splitlines()[-1]
        )
    printed = capsys.readouterr()
    assert printed.out + printed.err == path.read_text()


def test_tokens_and_passwords_are_struck_out_of_lines_and_tracebacks(logger, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-mine")
    monkeypatch.setenv("TOKEN_LIMIT", "77")
    log, path = logger()
    try:
        raise ValueError("refused: a-token-of-mine")
    except ValueError:
        log.exception("with hf_abcdefghijklmnopqrst at redis://u:pass-word@h, 77 tokens")
    text = path.read_text()
    assert "a-token-of-mine" not in text and "hf_" not in text and "pass-word" not in text
    assert "77 tokens" in text and "refused: ***" in text
    assert without_secrets("sqlite:////a/b.db and user@host") == "sqlite:////a/b.db and user@host"


def test_a_log_grows_unless_it_is_rotated(logger):
    log, path = logger(max_bytes=200)
    for _ in range(100):
        log.info("a line of some length")
    assert len(list(path.parent.iterdir())) == 1 + KEPT_FILES
    assert all(each.stat().st_size <= 200 for each in path.parent.iterdir())
    log, path = logger()
    for _ in range(100):
        log.info("a line of some length")
    assert path.stat().st_size > 5000
