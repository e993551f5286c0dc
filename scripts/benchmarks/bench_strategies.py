r"""Replay recorded tables with every strategy: what each finds, at what cost, and is it true.

    python scripts/benchmarks/bench_strategies.py --table tests/data/tables/*.json.gz \
        --out strategies.json

Pictures and scores are those recorded, on prompts shuffled by the seed. Times are those recorded
too, but no single one is believed: the latency model is fitted to all points of a table, a point's
true time is what the model says, and each reading that a search is given is that time with the
error of a reading drawn at random from all. With --seconds FILE the model is fitted to the runs of
another machine or pipeline instead (what bench_latency.py writes), a second column of cost.

Charged are the pipeline's seconds: the baseline, calibration runs and every look; a reading of the
first n of N prompts is charged n / N of the point's time. The held-out confirmation is left out for
all. Every strategy but the grid races its candidates. What the others need is counted until they
have first found a point of the asked share; no rule of theirs could stop them there.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from accel_search.core.assessment import AssessedTrial
from accel_search.core.candidate import Candidate
from accel_search.core.timing_noise import timing_spread
from accel_search.core.trial import Goal, Measurement, Trial
from accel_search.search.loop import Budget, Search
from accel_search.search.replay import ReplayEvaluator, replay_space
from accel_search.search.space import JointSpace
from accel_search.search.step_plans import plans_in
from accel_search.search.strategies import get
from accel_search.search.strategies.base import History, Proposal, Strategy, Task
from accel_search.search.strategies.latency_model import LatencyModel, Run
from accel_search.storage.trials_db import TrialStore
from accel_search.storage.trials_file import TrialsFile, read_trials

READINGS = 3
"""Timed pairs of each point, as a search makes by default."""
SHARE = 0.99
"""Share of the best feasible speedup at which a strategy counts as having found it."""
STRATEGIES = ("guided", "random", "tpe", "gp", "gp_minimize", "grid")
CAPS = {"random": 0.5, "tpe": 0.12, "gp": 0.06, "gp_minimize": 0.06}
"""Share of the grid's cost at which a strategy that has not found it is stopped, in a large space;
the grid itself, and all of them in a small one, go on to the end."""
SMALL_SPACE = 50


class Minimize(Strategy):
    """scikit-optimize's Gaussian process, as `gp_minimize` runs it, a broken bound as a penalty."""

    name = "gp_minimize"

    def __init__(self, task: Task) -> None:
        from skopt import Optimizer
        from skopt.space import Integer

        super().__init__(task)
        dimensions = [
            Integer(0, len(values) - 1) for axis in self.space.axes for values in axis.values
        ]
        self._optimizer = Optimizer(
            dimensions, "GP", n_initial_points=10, random_state=task.seed, acq_func="gp_hedge"
        )
        self._told = 0
        self._asked: tuple[list[int], Candidate] | None = None

    def ask(self, history: History) -> Proposal | None:
        """Return the race in hand, or the next point that is not measured."""
        if race := self.race(history):
            return race
        known = {self.space.position(each.trial.candidate): each for each in history.trials}
        if self._asked is not None and self.space.position(self._asked[1]) in known:
            each = known[self.space.position(self._asked[1])]
            self._optimizer.tell(self._asked[0], self._cost(each))
            self._asked = None
        for _ in range(20):
            if self._asked is not None:
                break
            places = [int(place) for place in self._optimizer.ask()]
            candidate = self._candidate(places)
            position = self.space.position(candidate)
            if position is not None and position not in known:
                self._asked = places, self.space.candidate_at(position)
            elif position is None:  # The table does not hold it: the nearest that it does.
                order = self.space.by_distance(candidate)
                candidate = self.space.candidate_at(next(at for at in order if at not in known))
                self._asked = self._places(candidate), candidate
            else:
                self._optimizer.tell(places, self._cost(known[position]))
        if self._asked is None:
            candidate = self.first_unmeasured(range(len(self.space)), history)
            return None if candidate is None else self.raced(candidate)
        return self.raced(self._asked[1])

    def _cost(self, each: AssessedTrial) -> float:
        found = each.assessment
        if found is None:
            return 0.0
        over = max(found.score_loss.value - self.task.goal.max_score_loss, 0.0)
        return -found.speedup.value + 10 * over

    def _places(self, candidate: Candidate) -> list[int]:
        return [
            values.index(candidate[axis.accelerator.name][parameter.name])
            for axis in self.space.axes
            for parameter, values in zip(axis.parameters, axis.values, strict=True)
        ]

    def _candidate(self, places: Sequence[int]) -> Candidate:
        rest = iter(places)
        return Candidate(
            {
                axis.accelerator.name: {
                    parameter.name: values[next(rest)]
                    for parameter, values in zip(axis.parameters, axis.values, strict=True)
                }
                for axis in self.space.axes
            }
        )


@dataclass(frozen=True)
class Table:
    """A recorded table with what is taken for true."""

    recorded: TrialsFile
    space: JointSpace
    log_speedup: dict[int, float]
    """By position."""
    errors: tuple[float, ...]
    """Errors of single readings of a pair, as differences of logarithms."""
    baseline_seconds: float
    """Per image."""
    loss: dict[int, float]
    """Loss of score over all prompts, by position."""


@cache
def load(path: Path, seconds: Path | None) -> Table:
    """Read a table, and fit the latency model to it or to the runs of another file."""
    recorded = read_trials(path)
    targets = tuple(recorded.trials[0].candidate)
    space = replay_space(recorded, targets)
    positions = [space.position(trial.candidate) for trial in recorded.trials]
    assert recorded.workload is not None and None not in positions
    readings = [_readings(trial.measurement) for trial in recorded.trials]
    measurements = [trial.measurement for trial in recorded.trials if trial.measurement]
    noise = timing_spread(recorded.baseline, measurements)
    model = LatencyModel(plans_in(space))
    if seconds is None:
        model.fit(
            [
                Run(at, float(np.mean(each)), max(noise, 0.02) / math.sqrt(len(each)))
                for at, each in zip(positions, readings, strict=True)
            ]
        )
        times = model.predict().log_time
        errors = [
            log - float(times[at])
            for at, each in zip(positions, readings, strict=True)
            for log in each
        ]
        baseline = float(np.median(recorded.baseline.seconds_per_image))
    else:
        times, errors, baseline = _elsewhere(seconds, space)
    before = np.asarray(recorded.baseline.scores)
    loss = {
        at: 1 - float(np.mean(trial.measurement.scores) / before.mean())  # type: ignore[union-attr]
        for at, trial in zip(positions, recorded.trials, strict=True)
    }
    log_speedup = {at: -float(times[at]) for at in positions}
    return Table(recorded, space, log_speedup, tuple(errors), baseline, loss)


def _readings(measured: Measurement | None) -> list[float]:
    assert measured is not None
    pairs = zip(measured.seconds_per_image, measured.baseline_seconds_per_image, strict=True)
    return [math.log(own / beside) for own, beside in pairs]


def _elsewhere(path: Path, space: JointSpace) -> tuple[Any, list[float], float]:
    """Return the log times of a space by the runs of another file, errors of readings, baseline."""
    from accel_search.search.step_plans import StepPlans
    from described_plans import plans_of

    content = json.loads(path.read_text(encoding="utf-8"))
    rows = content["calibration"] + content["measured"]
    candidates = [Candidate(row["candidate"]) for row in rows]
    own, others = plans_in(space), plans_of(candidates, space.workload)  # type: ignore[arg-type]
    types = {step: index for index, step in enumerate(own.types)}
    for step in others.types:
        types.setdefault(step, len(types))
    from scipy import sparse

    def spread_out(plans: StepPlans) -> sparse.csr_array:
        part = plans.counts.tocoo()
        columns = np.array([types[step] for step in plans.types])[part.coords[1]]
        shape = (len(plans), len(types))
        return sparse.coo_array((part.data, (part.coords[0], columns)), shape=shape).tocsr()

    joint = StepPlans(
        tuple(types),
        sparse.vstack([spread_out(own), spread_out(others)]).tocsr(),
        own.baseline_calls,
    )
    model = LatencyModel(joint)
    runs = [
        Run(len(own) + index, -math.log(row["speedup"]), 0.01) for index, row in enumerate(rows)
    ]
    model.fit(runs)
    times = model.predict().log_time
    errors = [run.log_time - float(times[run.position]) for run in runs]
    baseline = float(np.median(content["baseline_seconds"])) / content["workload"]["batch_size"]
    return times[: len(own)], errors, baseline


def shuffled(table: Table, seed: int) -> TrialsFile:
    """Return the table as a search with this seed would meet it."""
    rng = np.random.default_rng(seed)
    recorded = table.recorded
    count = len(recorded.baseline.scores)
    order = rng.permutation(count)
    errors = np.asarray(table.errors)

    def mixed(measured: Measurement, log_speedup: float) -> Measurement:
        own = table.baseline_seconds * math.exp(-log_speedup)
        noise = rng.choice(errors, READINGS)
        return replace(
            measured,
            seconds_per_image=tuple((own * np.exp(noise)).tolist()),
            baseline_seconds_per_image=(table.baseline_seconds,) * READINGS,
            scores=tuple(measured.scores[i] for i in order),
            psnr=tuple(measured.psnr[i] for i in order) if measured.psnr else (),
            ssim=tuple(measured.ssim[i] for i in order) if measured.ssim else (),
            seconds=own * count,
        )

    trials = []
    for trial in recorded.trials:
        at = table.space.position(trial.candidate)
        assert at is not None and trial.measurement is not None
        trials.append(Trial(trial.candidate, mixed(trial.measurement, table.log_speedup[at])))
    baseline = mixed(recorded.baseline, 0.0)
    return replace(recorded, baseline=baseline, trials=tuple(trials), held_out={}, rivals={})


class Watch:
    """Notes when a strategy first held a point that is as good as asked."""

    def __init__(self, table: Table, goal: Goal, evaluator: Charged, best: float) -> None:
        self._table, self._goal, self._evaluator, self._best = table, goal, evaluator, best
        self.found: float | None = None

    def on_trial(self, each: AssessedTrial) -> None:
        """Look at a trial that was stored."""
        at = self._table.space.position(each.trial.candidate)
        good = at is not None and self._table.log_speedup[at] >= self._best + math.log(SHARE)
        if self.found is None and good and each.is_feasible(self._goal):
            self.found = self._evaluator.charged
            if self._evaluator.stop_when_found:
                raise Found

    def __getattr__(self, name: str) -> Any:
        """Hear everything else with indifference."""
        return lambda *_: None


class Found(Exception):
    """The point that was looked for is found."""


class Charged(ReplayEvaluator):
    """A replay that adds up what it is charged."""

    def __init__(self, recorded: TrialsFile, space: JointSpace, *, stop_when_found: bool) -> None:
        super().__init__(recorded, space)
        self.charged = recorded.baseline.seconds
        self.stop_when_found = stop_when_found

    def measure(self, *args: Any, **kwargs: Any) -> Measurement:
        """Return what was recorded and charge it."""
        found = super().measure(*args, **kwargs)
        self.charged += found.seconds
        return found


def play(
    path: Path, seconds: Path | None, bound: float, strategy: str, seed: int, cap: float | None
) -> dict[str, Any]:
    """Run one search over one table and return what came of it."""
    warnings.filterwarnings("ignore")
    table = load(path, seconds)
    recorded = shuffled(table, seed)
    evaluator = Charged(recorded, table.space, stop_when_found=strategy != "guided")
    goal = Goal(bound)
    feasible = [at for at, loss in table.loss.items() if loss <= bound]
    best = max((table.log_speedup[at] for at in feasible), default=0.0)
    grid = recorded.baseline.seconds + sum(t.measurement.seconds for t in recorded.trials)  # type: ignore[union-attr]
    cls = (
        Minimize
        if strategy == "gp_minimize"
        else get("bayes" if strategy in ("tpe", "gp") else strategy)
    )
    sampler = strategy if strategy in ("tpe", "gp") else ""
    task = Task(table.space, goal, evaluator.prompt_count, evaluator.chunk, seed, sampler)
    watch = Watch(table, goal, evaluator, max(best, 0.0))
    budget = None
    if strategy in CAPS:
        small = len(table.space) <= SMALL_SPACE
        budget = grid * (1.0 if small else cap or CAPS[strategy])
    began = time.perf_counter()
    outcome = None
    with suppress(Found):
        outcome = Search(
            evaluator,
            cls(task),
            TrialStore(None, "bench", table.space.values()),
            goal,
            Budget(seconds=budget),
            watch,
        ).run()
    row: dict[str, Any] = {
        "table": path.name.partition(".")[0],
        "bound": bound,
        "strategy": strategy,
        "seed": seed,
        "best_speedup": math.exp(max(best, 0.0)),
        "grid_seconds": grid,
        "found_cost": None if watch.found is None else watch.found / grid,
        "cap": None if budget is None else round(budget / grid, 4),
        "wall": time.perf_counter() - began,
    }
    if strategy == "guided" and outcome is not None:
        winner = outcome.winner
        at = None if winner is None else table.space.position(winner.trial.candidate)
        speedup = 0.0 if at is None else table.log_speedup[at]
        row |= {
            "cost": evaluator.charged / grid,
            "trials": len(outcome.trials),
            "share": math.exp(speedup - max(best, 0.0)),
            "meets_bound": at is None or table.loss[at] <= bound,
        }
    return row


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians over the seeds of one table, bound and strategy."""
    first = rows[0]
    costs = [math.inf if row["found_cost"] is None else row["found_cost"] for row in rows]
    entry = {name: first[name] for name in ("table", "bound", "strategy", "cap")} | {
        "seeds": len(rows),
        "best_speedup": round(first["best_speedup"], 3),
        "found_cost": _finite(statistics.median(costs)),
        "wall": round(statistics.median(row["wall"] for row in rows), 1),
    }
    if first["strategy"] == "guided":
        entry |= {
            "cost": round(statistics.median(row["cost"] for row in rows), 4),
            "trials": statistics.median(row["trials"] for row in rows),
            "share": round(statistics.median(row["share"] for row in rows), 4),
            "share_least": round(min(row["share"] for row in rows), 4),
            "meets_bound": sum(row["meets_bound"] for row in rows) / len(rows),
        }
    return entry


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else round(value, 4)


def main() -> None:
    """Replay every table with every strategy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--table", type=Path, nargs="+", required=True)
    parser.add_argument("--seconds", type=Path, help="runs of another pipeline, for its times")
    parser.add_argument("--bounds", type=float, nargs="+", default=[0.005, 0.01, 0.02, 0.05])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--cap", type=float, help="share of the grid's cost at which to stop")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jobs = [
        (path, options.seconds, bound, strategy, seed, options.cap)
        for strategy in options.strategies
        for path in options.table
        for bound in options.bounds
        for seed in range(options.seeds)
    ]
    rows: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.processes) as pool:
        for row in pool.map(play, *zip(*jobs, strict=True), chunksize=1):
            rows.append(row)
            if len(rows) < options.seeds:
                continue
            summary.append(summarise(rows))
            rows = []
            print(json.dumps(summary[-1]), flush=True)
            if options.out is not None:  # It takes hours: what is done by then is kept.
                options.out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
