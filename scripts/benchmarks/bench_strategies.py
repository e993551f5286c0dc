r"""Search recorded tables with every strategy: is there a winner, is it true, and at what cost?

    python scripts/benchmarks/bench_strategies.py --table tests/data/tables/*.json.gz \
        --seconds tests/data/latency_sdxl_h200.json --out strategies.json

Scores are those recorded. By default a table's prompts are split, by each search's seed, into three
parts that share none: the search's, its held-out ones, and those that judge the winner. With
`--prompts drawn` the search's and the held-out prompts are drawn independently from all of the
table, whose mean is then the truth, so that they may be as many as in a real search.

Times are the latency model's, fitted to the table or to the runs of another pipeline (--seconds,
what bench_latency.py writes). Each candidate deviates from them by 3 % of its own, drawn by the
seed, and each reading by an error drawn from all those of the table or the runs. What a search is
charged, and what an oracle that knows the best would be: simulated_search.py.

Guided ends by itself. The others cannot tell when they are done: each gets as much as guided spent
on searching, times --budget, and validates its winner on top; grid measures everything.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accel_search.core.intervals import Estimate
from accel_search.core.trial import Goal
from accel_search.search.events import Observer
from accel_search.search.loop import Budget, Search
from accel_search.search.strategies import get
from accel_search.search.strategies.base import History, Proposal, Strategy, Task
from accel_search.storage.trials_db import TrialStore
from other_strategies import Halving, Minimize
from simulated_search import (
    Drawing,
    SimulatedEvaluator,
    World,
    draw_parts,
    load,
    oracle_cost,
    surely_over,
)

STRATEGIES: dict[str, tuple[Callable[[Task], Strategy], str]] = {
    "guided": (get("guided"), ""),
    "random": (get("random"), ""),
    "halving": (Halving, ""),
    "tpe": (get("bayes"), "tpe"),
    "gp": (get("bayes"), "gp"),
    "gp_minimize": (Minimize, ""),
    "grid": (get("grid"), ""),
}
"""Name -> strategy and its sampler. `tpe` and `gp` are Optuna's, with the bound as a constraint."""
USUAL = ("guided", "random", "halving", "tpe", "gp")


@dataclass(frozen=True)
class Cell:
    """What is searched, and how the prompts are drawn."""

    table: Path
    seconds: Path | None
    bound: float
    drawing: Drawing
    num_samples: int
    held_out_samples: int
    single_calls: bool = False
    """Whether single UNet calls are timed."""


@dataclass(frozen=True)
class Played:
    """One search; costs are in times of one image of the baseline pipeline."""

    cost: float
    searching: float
    """What of it was spent before anything was validated: the baseline and the trials."""
    oracle: float
    trials: int
    best: float
    """Largest true speedup truly within the bound; 1 where nothing faster is."""
    speedup: float | None
    """The winner's true one; None without a winner."""
    loss: float | None
    """The winner's loss on the prompts that judge."""
    is_surely_over: bool
    """Whether all of the interval of that loss is over the bound."""
    is_likely: bool
    """Whether the winner was named as likely to be within the bound, and no more."""
    interval: Estimate | None
    """Of the winner's loss on held-out prompts."""
    wall: float


class Limited:
    """A strategy that asks for nothing more once its budget is spent.

    `--time_budget` would also cut short how the winner is validated.
    """

    def __init__(self, strategy: Strategy, is_spent: Callable[[], bool]) -> None:
        self._strategy, self._is_spent = strategy, is_spent

    def ask(self, history: History) -> Proposal | None:
        """Return what the strategy asks for, None once the budget is spent."""
        return None if self._is_spent() else self._strategy.ask(history)

    def __getattr__(self, name: str) -> Any:
        """Return everything else of the strategy."""
        return getattr(self._strategy, name)


def play(cell: Cell, strategy: str, budget: float | None, seed: int) -> Played:
    """Run one search and judge what came of it."""
    warnings.filterwarnings("ignore")
    table = load(cell.table, cell.seconds)
    count = len(table.baseline_scores)
    parts = draw_parts(cell.drawing, count, cell.num_samples, cell.held_out_samples, seed)
    world = World(table, parts, seed)
    evaluator = SimulatedEvaluator(world, cell.single_calls)
    goal = Goal(cell.bound)
    make, sampler = STRATEGIES[strategy]
    task = Task(table.space, goal, evaluator.prompt_count, evaluator.chunk, seed, sampler)
    store = TrialStore(None, "bench", table.space.values())
    began = time.perf_counter()
    searcher: Any = make(task)
    if budget is not None:
        searcher = Limited(searcher, lambda: evaluator.searching >= budget)
    outcome = Search(evaluator, searcher, store, goal, Budget(), Observer()).run()
    wall = time.perf_counter() - began
    best = world.best_within(cell.bound)
    winner = outcome.winner
    at = None if winner is None else table.space.position(winner.trial.candidate)
    charged = evaluator.charged
    return Played(
        cost=sum(charged.values()),
        searching=evaluator.searching,
        oracle=oracle_cost(world, best),
        trials=len(outcome.trials),
        best=1.0 if best is None else math.exp(world.log_speedup[best]),
        speedup=None if at is None else math.exp(world.log_speedup[at]),
        loss=None if at is None else float(world.judged_loss[at]),
        # The truth of drawn prompts is known exactly.
        is_surely_over=at is not None
        and cell.drawing == "split"
        and surely_over(world, at, cell.bound),
        is_likely=winner is not None and not outcome.is_sure,
        interval=None if outcome.held_out is None else outcome.held_out.score_loss,
        wall=wall,
    )


def summarise(cell: Cell, strategy: str, played: list[Played]) -> dict[str, Any]:
    """Return the figures of all searches of one strategy in one cell."""
    won = [search for search in played if search.speedup is not None]
    losses = [search.loss for search in won if search.loss is not None]
    shares = [search.speedup / search.best for search in won if search.speedup is not None]
    judged = [
        (search.loss, search.interval)
        for search in won
        if search.loss is not None and search.interval is not None
    ]
    means = {
        name: statistics.fmean(getattr(search, name) for search in played)
        for name in ("cost", "searching", "oracle")
    }
    entry = {
        "table": cell.table.name.partition(".")[0],
        "times": "its own" if cell.seconds is None else cell.seconds.stem,
        "prompts": cell.drawing,
        "bound": cell.bound,
        "strategy": strategy,
        "searches": len(played),
        "best": statistics.median(search.best for search in played),
        "none": 1 - len(won) / len(played),
        "over": _mean(loss > cell.bound for loss in losses),
        "surely_over": _mean(search.is_surely_over for search in won),
        "likely": _mean(search.is_likely for search in won),
        "covered": _mean(end.low <= loss <= end.high for loss, end in judged),
        "above": _mean(loss > end.high for loss, end in judged),
        "worst_loss": max(losses, default=None),
        "share": _mean(shares),
        "share_least": min(shares, default=None),
        **means,
        "times_oracle": means["cost"] / means["oracle"],
        "trials": statistics.median(search.trials for search in played),
        "wall": statistics.median(search.wall for search in played),
    }
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in entry.items()
    }


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.fmean(known) if known else None


HEADER = (
    "| table | bound | strategy | no winner | only likely | winners over the bound | worst loss "
    "| true speed of the best's | cost | oracle's | ratio | trials |\n" + "|---" * 12 + "|"
)


def in_a_line(entry: dict[str, Any]) -> str:
    """Return a summary as a row of a Markdown table."""

    def percent(name: str) -> str:
        return "–" if entry[name] is None else f"{100 * entry[name]:.1f} %"

    cells = [
        entry["table"].replace("-", " + "),
        f"{100 * entry['bound']:g} %",
        entry["strategy"],
        *(percent(name) for name in ("none", "likely", "over", "worst_loss", "share")),
        f"{entry['cost']:,.0f}",
        f"{entry['oracle']:,.0f}",
        f"{entry['times_oracle']:.1f}",
        f"{entry['trials']:g}",
    ]
    return f"| {' | '.join(cells)} |"


def summaries(
    cells: Iterable[Cell], strategies: list[str], searches: int, budget: float, processes: int
) -> Iterator[dict[str, Any]]:
    """Search every cell with every strategy; guided, whose cost is the others' budget, first."""
    with ProcessPoolExecutor(processes) as pool:
        for cell in cells:
            spent: float | None = None
            for strategy in strategies:
                most = None if strategy == "grid" else spent
                search = partial(play, cell, strategy, most)
                entry = summarise(cell, strategy, list(pool.map(search, range(searches))))
                if strategy == "guided":
                    spent = budget * entry["searching"]
                yield entry | {"budget": most}


def main() -> None:
    """Search every table with every strategy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--table", type=Path, nargs="+", required=True)
    parser.add_argument("--seconds", type=Path, help="runs of another pipeline, for its times")
    parser.add_argument("--bounds", type=float, nargs="+", default=[0.01, 0.02])
    parser.add_argument("--searches", type=int, default=20, help="per cell, each its own seed")
    parser.add_argument(
        "--strategies", nargs="*", default=list(USUAL[1:]), choices=list(STRATEGIES)[1:],
        help="those beside guided",
    )  # fmt: skip
    parser.add_argument("--budget", type=float, default=1.0, help="the others', times guided's")
    parser.add_argument("--prompts", choices=["split", "drawn"], default="split")
    parser.add_argument("--num_samples", type=int, help="default: 16 of split ones, else 32")
    parser.add_argument("--held_out_samples", type=int, help="default: as num_samples")
    parser.add_argument("--single_calls", action="store_true", help="time single UNet calls too")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    samples = options.num_samples or (16 if options.prompts == "split" else 32)
    held_out = samples if options.held_out_samples is None else options.held_out_samples
    cells = [
        Cell(path, options.seconds, bound, options.prompts, samples, held_out, options.single_calls)
        for path in options.table
        for bound in options.bounds
    ]
    strategies = ["guided", *options.strategies]
    done: list[dict[str, Any]] = []
    print(HEADER, flush=True)
    for entry in summaries(cells, strategies, options.searches, options.budget, options.processes):
        done.append(entry)
        print(in_a_line(entry), flush=True)
        if options.out is not None:  # It takes long: what is done by then is kept.
            options.out.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
