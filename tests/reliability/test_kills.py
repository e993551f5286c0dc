"""Searches and sweeps that are killed at any moment, and gone on with."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.support.evidence import Stored, journal, lasting, nothing_doubled, nothing_lost, stored
from tests.support.processes import MARK, SOURCE, Run, Strike, left, wait_for
from tests.support.recorded import PAUSE, search, sweep

SEED = int(os.environ.get("TORTURE_SEED", "20261125"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
INTERRUPTED = {
    search: "accel-search: interrupted; run the same command again to resume",
    sweep: (
        "accel-explore: interrupted; what was measured is stored: run the same command again to "
        "go on"
    ),
}
SEARCHES = {
    "guided": ["--targets", "deepcache"],
    "joint": ["--targets", "deepcache,tome", "--max_trials", "16"],
    "random": ["--targets", "tome", "--strategy", "random", "--max_trials", "8"],
    "grid": ["--targets", "deepcache", "--strategy", "grid"],
    "bayes": ["--targets", "deepcache", "--strategy", "bayes"],
}
SWEEP = ["--models", "demo", "--scheds", "DDIM", "--steps", "20"]
SWEEP += ["--methods", "deepcache,tome", "--max_trials", "4"]
AGAIN = ["--retry_failed", "subprocess_error"]
"""A worker that was killed is a failure of its configuration, until it is tried again."""
PACE = {PAUSE: "0.02"}
FOUND = (0, 3)


def undisturbed(folder, program, arguments):
    """Return what a run leaves that nobody disturbs, and the seconds it took."""
    run = Run(folder, program, arguments, PACE)
    run.wait_until_started()
    began = time.monotonic()
    assert run.wait() in FOUND, run.errors
    return stored(folder), time.monotonic() - began


class Kills:
    """One folder, in which one run after the other is killed."""

    def __init__(self, folder: Path, program, arguments) -> None:
        self.folder, self.program, self.arguments = folder, program, arguments
        self.counts: Counter[str] = Counter()
        self._safe: list[tuple[Stored, int]] = []
        """What was stored after each kill, and the length of the journal by then."""

    def kill(self, who: str, number: signal.Signals, after: float) -> bool:
        """Start a run and kill a part of it; tell whether it was still alive."""
        run = Run(self.folder, self.program, self.arguments, PACE)
        run.wait_until_started()
        time.sleep(after)
        parts = self._parts(run, who)
        alive = [each for each in parts if _signal(each, number)]
        code = run.wait()
        assert code is not None, "it does not end"
        if alive:
            self.counts[f"{who} {number.name}"] += 1
            polite = number != signal.SIGKILL and who != "worker"
            # A run that was at its last lines may have got through.
            allowed = (130, *FOUND) if polite else (-9, *FOUND, 6)
            assert code in allowed, (code, run.errors)
            if code == 130:
                assert run.errors.splitlines()[-1] == INTERRUPTED[self.program]
        else:
            assert code in (*FOUND, 6), (code, run.errors)
        self._is_clean(run)
        return bool(alive)

    def strike(self, kind: str, at: int) -> bool:
        """Run until the process kills itself at its n-th action; False if it has fewer."""
        run = Run(self.folder, self.program, self.arguments, strike=Strike(kind, at))
        code = run.wait()
        assert code in (-9, *FOUND), (code, run.errors)
        self.counts[f"{kind} SIGKILL"] += code == -9
        self._is_clean(run)
        return code == -9

    def is_answered_again(self, reference: Stored) -> None:
        """Search once more without the result file: from the trials, with nothing measured."""
        (self.folder / "search_params.json").unlink()
        length = len(journal(self.folder))
        self._safe.clear()
        self.ends_as(reference)
        assert len(journal(self.folder)) == length

    def _parts(self, run: Run, who: str) -> list[int]:
        workers = [each.pid for each in left(self.folder)]
        driver = [run.process.pid] if run.process.is_alive() else []
        if who == "both":
            return workers + driver
        return workers if who == "worker" else driver

    def _is_clean(self, run: Run) -> None:
        """Assert what holds after every kill: nothing runs, nothing is damaged, nothing lost."""
        wait_for(lambda: not left(self.folder), "every process to end", 60)
        for said in (run.errors, run.output):
            assert "Traceback" not in said and "Exception ignored" not in said, said
        now = stored(self.folder)
        if self._safe:
            nothing_lost(self._safe[-1][0], now)
        nothing_doubled(now)
        self._safe.append((now, len(journal(self.folder))))

    def ends_as(self, reference: Stored) -> None:
        """Go on to the end, and compare it with that of a run that nobody disturbed."""
        arguments = self.arguments + (AGAIN if self.program is sweep else [])
        run = Run(self.folder, self.program, arguments)
        assert run.wait() in FOUND, run.errors
        self._is_clean(run)
        now = stored(self.folder)
        assert set(now.entries) == set(reference.entries)
        for key, value in reference.entries.items():
            assert lasting(now.entries[key]) == lasting(value), key
        assert now.farthest() == reference.farthest()
        # What was stored at a kill is not measured after it.
        lines = journal(self.folder)
        for safe, length in self._safe:
            again = [line for line in lines[length:] if safe.covers(line)]
            assert not again, again


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
        os.kill(pid, number)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return True


def killed_at_moments(folder, program, arguments, moments, parts, seed):
    """Kill so many runs, up to three in a folder, at moments drawn from a seed; count them."""
    rng = random.Random(seed)  # noqa: S311 - moments need no secrecy
    reference, seconds = undisturbed(folder / "undisturbed", program, arguments)
    counts: Counter[str] = Counter()
    numbers = itertools.count()
    while counts.total() < moments:
        kills = Kills(folder / str(next(numbers)), program, arguments)
        for _ in range(min(rng.randint(1, 3), moments - counts.total())):
            who, what = rng.choice(parts), rng.choice(SIGNALS)
            if not kills.kill(who, what, rng.uniform(0, seconds)):
                break
        kills.ends_as(reference)
        counts += kills.counts
    return counts


def struck_at_every(folder, program, arguments, kind, step):
    """Kill a run at each of its own actions in turn, and go on; return how many there were."""
    reference, _ = undisturbed(folder / "undisturbed", program, arguments)
    counts: Counter[str] = Counter()
    struck, at = True, 1
    while struck:
        kills = Kills(folder / str(at), program, arguments)
        struck = kills.strike(kind, at)
        kills.ends_as(reference)
        kills.is_answered_again(reference)
        counts += kills.counts
        # The first hundred or so make the database.
        at += 1 if at < 16 else 3 * step if at < 100 else 15 * step
    return counts


def said(counts: Counter[str]) -> str:
    return ", ".join(f"{name} × {count}" for name, count in sorted(counts.items()))


@pytest.mark.slow
def test_a_search_is_killed_at_a_few_moments_and_ends_as_if_it_had_not_been(tmp_path):
    counts = killed_at_moments(tmp_path, search, SEARCHES["guided"], 4, ["search"], SEED)
    assert counts.total() == 4


@pytest.mark.slow
def test_a_database_whose_making_was_cut_short_is_whole_afterwards(tmp_path):
    """Without the index that makes names unique a study is begun twice, and never opened again."""
    reference, _ = undisturbed(tmp_path / "undisturbed", search, SEARCHES["guided"])
    kills = Kills(tmp_path / "killed", search, SEARCHES["guided"])
    assert kills.strike("index", 1)
    kills.ends_as(reference)
    kills.is_answered_again(reference)


@pytest.mark.torture
@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_survives_kills_at_random_moments(tmp_path, tell, name, part):
    seed = f"{SEED}-{name}-{part}"
    counts = killed_at_moments(tmp_path, search, SEARCHES[name], 15, ["search"], seed)
    tell(f"kills, search, seed {seed}: {counts.total()} moments: {said(counts)}")


@pytest.mark.torture
@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("who", ["driver", "worker", "both"])
def test_a_sweep_survives_kills_at_random_moments(tmp_path, tell, who, part):
    seed = f"{SEED}-{who}-{part}"
    counts = killed_at_moments(tmp_path, sweep, SWEEP, 6, [who], seed)
    tell(f"kills, sweep, seed {seed}: {counts.total()} moments: {said(counts)}")


@pytest.mark.torture
@pytest.mark.parametrize(("kind", "step"), [("file", 1), ("sql", 1)])
def test_a_search_survives_a_kill_at_each_of_its_own_actions(tmp_path, tell, kind, step):
    counts = struck_at_every(tmp_path, search, SEARCHES["guided"], kind, step)
    tell(f"kills, search, at its own actions: {said(counts)}")


DEMO = ["--device", "cpu", "--threads", "1", "--batch_size", "2", "--num_samples", "2"]
DEMO += ["--held_out_samples", "0", "--height", "64", "--width", "64", "--timing_pairs", "1"]
DEMO += ["--strategy", "grid"]
PROGRAMS = {
    "traversal_search": ["--targets", "deepcache", "--steps", "6", *DEMO],
    "explore_upper_bounds": [
        *("--models", "demo", "--scheds", "DDIM", "--steps", "6", "--methods", "deepcache"),
        *("--retry_failed", "subprocess_error", *DEMO),
    ],
}


class Demo:
    """The installed program on the embedded pipeline, in processes of their own."""

    def __init__(self, folder: Path, module: str) -> None:
        self.folder, self.is_sweep = folder, module == "explore_upper_bounds"
        self._command = [sys.executable, "-m", f"accel_search.{module}", *PROGRAMS[module]]
        self._log = folder / ("exploration.log" if self.is_sweep else "traversal_search.log")

    def start(self) -> subprocess.Popen[bytes]:
        given = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE), MARK: str(self.folder)}
        with (self.folder.parent / "printed").open("ab") as printed:
            return subprocess.Popen(
                self._command,
                cwd=self.folder,
                env={**os.environ, **given},
                stdout=printed,
                stderr=printed,
            )

    def trials(self) -> int:
        if not self._log.exists():
            return 0
        return len(re.findall(r"trial \d+/\d+ ", self._log.read_text()))


@pytest.mark.torture
@pytest.mark.parametrize("module", PROGRAMS)
def test_the_real_demo_survives_kills(tmp_path, tell, module):
    folder = tmp_path / "run"
    folder.mkdir()
    demo = Demo(folder, module)
    rng = random.Random(f"{SEED}{module}")  # noqa: S311 - moments need no secrecy
    counts: Counter[str] = Counter()
    safe = stored(folder)
    for kill in range(5):
        process = demo.start()
        if kill:  # The first is anywhere, while it loads for the most part.
            reached = 3 * kill
            wait_for(lambda: demo.trials() >= reached or process.poll() is not None, "trials")
        time.sleep(rng.uniform(0, 1 if kill else 20))
        number = rng.choice(SIGNALS)
        who = rng.choice(["driver", "worker", "both"]) if demo.is_sweep else "search"
        workers = [each.pid for each in left(folder) if each.pid != process.pid]
        parts = {"worker": workers, "both": [*workers, process.pid]}.get(who, [process.pid])
        struck = [_signal(each, number) for each in parts]
        assert any(struck) or not parts
        process.wait(240)
        wait_for(lambda: not left(folder), "every process to end", 60)
        counts[f"{who} {number.name}"] += 1
        now = stored(folder)
        nothing_lost(safe, now)
        nothing_doubled(now)
        safe = now
    last = demo.start()
    assert last.wait(580) in FOUND
    now = stored(folder)
    nothing_lost(safe, now)
    nothing_doubled(now)
    # Sixteen candidates, each measured to its end once.
    complete = [record for state, record in now.trials.values() if state == "COMPLETE"]
    assert len({str(record["candidate"]) for record in complete}) == len(complete) == 16
    tell(
        f"kills, the real demo, {module}: {counts.total()}: {said(counts)}; {len(complete)} trials"
    )
