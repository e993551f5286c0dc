"""What a run has left on disk, read with none of the package's own code."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.processes import beside

FINISHED = {"COMPLETE", "PRUNED", "FAIL"}
VOLATILE = {"date", "timestamp", "trials_resumed", "resumed", "pid"}
"""Fields that tell when or how often something ran, not what came of it."""


@dataclass
class Stored:
    """Everything that is safe at one moment."""

    trials: dict[tuple[str, str, int], tuple[str, Any]] = field(default_factory=dict)
    """(database, study, number) -> state, record."""
    notes: dict[tuple[str, str, str], Any] = field(default_factory=dict)
    """(database, study, name) -> measurement: baselines, confirmations, rivals."""
    entries: dict[tuple[str, str], Any] = field(default_factory=dict)
    """(result file, key) -> value."""

    def farthest(self) -> dict[tuple[str, str], Any]:
        """Return what is known of each candidate of each study."""
        found: dict[tuple[str, str], Any] = {}
        for (database, study, _), (_, record) in sorted(self.trials.items(), key=lambda it: it[0]):
            where = f"{database} {study}", _text(record["candidate"])
            if where not in found or _scored(record) >= _scored(found[where]):
                found[where] = record
        return found

    def covers(self, line: dict[str, Any]) -> bool:
        """Tell whether a piece of a journal is stored."""
        databases = {name for name, *_ in (*self.trials, *self.notes)}
        mine = [each for each in databases if _label(each) == line["label"]]
        what, split = line["what"], line["split"]
        for database, _, name in self.notes:
            if database in mine and (
                (what == "baseline" and name.startswith(f"baseline:{split}:"))
                or (split == "held_out" and name == f"held_out:{what}")
                or (what.startswith("steps(") and name == f"steps:{what[:-1].rpartition('=')[2]}")
            ):
                return True
        if what == "baseline" or split != "search":
            return False
        for (database, _, _), (state, record) in self.trials.items():
            if database in mine and _text(record["candidate"]) == what:
                if state == "FAIL" or line["stop"] <= len(record["measurement"]["scores"]):
                    return True
        return False


def _scored(record: dict[str, Any]) -> float:
    measured = record["measurement"]
    return math.inf if measured is None else len(measured["scores"])


def _label(database: str) -> str:
    """Return the configuration that a database of a sweep is of; empty for a search's own."""
    folder = Path(database).parent.name
    return "" if folder == "accel_search_runs" else folder


def _text(candidate: dict[str, dict[str, Any]]) -> str:
    from accel_search.core.candidate import Candidate

    return str(Candidate(candidate))


def stored(folder: Path) -> Stored:
    """Read everything in a folder; whatever is damaged fails the test here."""
    found = Stored()
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        assert isinstance(content, dict), path
        if path.parent == folder:
            found.entries |= {(path.name, key): value for key, value in content.items()}
    for path in folder.rglob("trials.db"):
        _read_database(path, str(path.relative_to(folder)), found)
    assert not list(folder.rglob("*.corrupt-*"))
    return found


def _read_database(path: Path, name: str, found: Stored) -> None:
    # A copy, with what SQLite would roll back: the program must cope with what was left to it.
    with tempfile.TemporaryDirectory() as copy:
        for each in path.parent.glob("trials.db*"):
            shutil.copy(each, copy)
        with sqlite3.connect(Path(copy) / "trials.db") as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
            if not {"trials", "trial_user_attributes", "study_user_attributes"} <= tables:
                return
            for study, number, state, record in database.execute(
                "SELECT study_name, number, state, value_json FROM trials"
                " JOIN studies USING (study_id)"
                " LEFT JOIN trial_user_attributes AS kept"
                " ON kept.trial_id = trials.trial_id AND kept.key = 'accel_search'"
            ):
                assert state in FINISHED and record is not None, (study, number, state)
                found.trials[name, study, number] = state, json.loads(record)
            for study, key, value in database.execute(
                "SELECT study_name, key, value_json FROM study_user_attributes"
                " JOIN studies USING (study_id)"
            ):
                found.notes[name, study, key] = json.loads(value)
        database.close()


def journal(folder: Path) -> list[dict[str, Any]]:
    """Return every piece that was measured, in order."""
    path = beside(folder) / "journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def nothing_lost(before: Stored, after: Stored) -> None:
    """Assert that all that was stored still is."""
    for part in ("trials", "notes"):
        old, new = getattr(before, part), getattr(after, part)
        assert {key: new.get(key) for key in old} == old, part
    # A failure of a sweep is a result until it is tried again.
    for key, value in before.entries.items():
        if key[1] != "failed_configs":
            assert key in after.entries, key
            assert lasting(after.entries[key]) == lasting(value), key


def nothing_doubled(found: Stored) -> None:
    """Assert that no candidate is stored twice at the same look."""
    seen = set()
    for (database, study, _), (_, record) in found.trials.items():
        measured = record["measurement"]
        scored = None if measured is None else len(measured["scores"])
        look = (database, study, _text(record["candidate"]), scored)
        assert look not in seen, look
        seen.add(look)


def lasting(value: Any) -> Any:
    """Return a value of a result file without what changes from run to run."""
    if isinstance(value, dict):
        return {key: lasting(each) for key, each in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [lasting(each) for each in value]
    return value
