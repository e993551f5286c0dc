"""How often the intervals of losses and speedups cover the truth.

Losses: the 64 prompts of a recorded table are all prompts there are, so that each candidate's true
loss is known, and a few of them are drawn with replacement. Prints how often the interval holds the
true loss, how often the truth is above and below it, and its mean width; then how often as many
prompts as an inconclusive verdict says are needed settle it.

Speedups, in simulated searches: each search times its baseline four times against itself and 16
candidates a few times beside it; the first candidate's interval is checked. Prints the tables of
docs/measurements/strategies.md, and of docs/use.md: what --verify says of a machine that is as fast
as before, or slower.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate, Verdict, judge, prompts_needed, score_loss
from accel_search.core.timing_noise import TimingNoise, noise_floor, speedup
from accel_search.core.trial import Goal, Measurement
from accel_search.search.verification import Stored, judge_speedup
from accel_search.storage.trials_file import read_trials

TABLES = Path(__file__).parents[2] / "tests" / "data" / "tables"
RECORDED = {
    "tgate": 0.003,
    "deepcache-tgate": 0.003,
    "deepcache-tome": 0.003,
    "tome": -1.0,
    "deepcache": -1.0,
}
"""Tables in `TABLES` -> smallest true loss of a candidate that is drawn; the last two have few.

The interval of a loss was fitted to the first."""
LARGEST_LOSS = 0.03
BOUND = 0.02
"""Bound of the loss for which needed prompts are counted."""

TRUTH = 2.0
SPREAD = 0.02
"""Standard deviation of the log ratio of two baseline calls."""
TRIALS = 16
CASES = {
    "the same everywhere": (1.0, 1.0),
    "the baseline's own pairs half as far apart": (2.0, 1.0),
    "this candidate's pairs twice as far apart": (1.0, 2.0),
    "this candidate's pairs three times as far apart": (1.0, 3.0),
}
"""Name -> spread of all candidates' pairs, and of the first one's beside theirs."""


def recorded_scores(table: str, candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of a table's baseline `[64]` and of some candidates `[candidates, 64]`."""
    recorded = read_trials(TABLES / f"{table}.json.gz")
    before = np.array(recorded.baseline.scores)
    after = np.array([trial.measurement.scores for trial in recorded.trials if trial.measurement])
    losses = 1 - after.mean(axis=1) / before.mean()
    near = np.flatnonzero((losses > RECORDED[table]) & (losses < LARGEST_LOSS))
    order = np.random.default_rng(0).permutation(near)
    return before, after[order[:candidates]]


def loss_coverage(
    table: str, prompts: int, candidates: int, draws: int
) -> tuple[float, float, float]:
    """Return how often a loss's true value is above its interval and below it, and its width."""
    before, after = recorded_scores(table, candidates)
    rng = np.random.default_rng(prompts)
    above, below, widths = 0, 0, []
    for scores in after:
        truth = 1 - scores.mean() / before.mean()
        for _ in range(draws):
            drawn = rng.integers(0, len(before), prompts)
            loss = score_loss(before[drawn], scores[drawn])
            above += truth > loss.high
            below += truth < loss.low
            widths.append(loss.high - loss.low)
    count = len(after) * draws
    return above / count, below / count, float(np.mean(widths))


def settled(table: str, prompts: int, candidates: int, draws: int) -> float:
    """Return how often as many prompts as are said to be needed settle an inconclusive verdict."""
    before, after = recorded_scores(table, candidates)
    rng = np.random.default_rng(prompts)
    verdicts: Counter[Verdict] = Counter()
    for scores in np.repeat(after, draws, axis=0):
        drawn = rng.integers(0, len(before), prompts)
        if judge(score_loss(before[drawn], scores[drawn]), BOUND) is not Verdict.INCONCLUSIVE:
            continue
        needed = prompts_needed(before[drawn], scores[drawn], BOUND)
        assert needed is not None
        drawn = rng.integers(0, len(before), needed)
        verdicts[judge(score_loss(before[drawn], scores[drawn]), BOUND)] += 1
    return 1 - verdicts[Verdict.INCONCLUSIVE] / verdicts.total()


def timing(rng: np.random.Generator, ratio: float, spread: float, pairs: int) -> Measurement:
    """Return so many pairs about a true ratio."""
    seconds = np.exp(-rng.normal(np.log(ratio), spread, pairs))
    return Measurement(tuple(map(float, seconds)), (1.0,) * pairs, (), 1)


def coverage(pairs: int, scale: float, odd: float, searches: int) -> tuple[float, float]:
    """Return how often the interval covers the truth: with all pairs, and without the others'."""
    rng = np.random.default_rng(0)
    pooled = alone = 0
    for _ in range(searches):
        baseline = timing(rng, 1.0, SPREAD, 4)
        spreads = [SPREAD * scale * odd, *[SPREAD * scale] * (TRIALS - 1)]
        trials = [timing(rng, TRUTH, spread, pairs) for spread in spreads]
        found = speedup(trials[0], TimingNoise([baseline], trials))
        pooled += found.low <= TRUTH <= found.high
        found = speedup(trials[0], TimingNoise([baseline]))
        alone += found.low <= TRUTH <= found.high
    return pooled / searches, alone / searches


def verified(pairs: int, slower: float, searches: int) -> dict[Verdict, float]:
    """Return how often a winner's speedup is said to hold, on a machine where it fell by a share.

    The winner is the luckiest of three equals, timed once more on held-out prompts.
    """
    rng = np.random.default_rng(1)
    said: Counter[Verdict] = Counter()
    for _ in range(searches):
        baseline = timing(rng, 1.0, SPREAD, 4)
        trials = [timing(rng, TRUTH, SPREAD, pairs) for _ in range(TRIALS)]
        noise = TimingNoise([baseline], trials)
        won = max((speedup(each, noise) for each in trials[:3]), key=lambda each: each.value)
        again = speedup(timing(rng, TRUTH, SPREAD, pairs), noise)
        span = Estimate(won.value, min(won.low, again.low), max(won.high, again.high))
        stored = Stored("", Candidate(), span, None, {}, Goal(0.02))
        bare = timing(rng, 1.0, SPREAD, 4)
        here = speedup(timing(rng, TRUTH * (1 - slower), SPREAD, pairs), bare)
        said[judge_speedup(here, noise_floor(bare, pairs), stored)] += 1
    return {each: said[each] / searches for each in Verdict}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=1500)
    parser.add_argument("--candidates", type=int, default=200, help="of each recorded table")
    arguments = parser.parse_args()
    searches = arguments.searches
    for table in RECORDED:
        for prompts in (4, 8, 16, 32, 64):
            above, below, width = loss_coverage(table, prompts, arguments.candidates, draws=50)
            shares = (1 - above - below, above, below)
            row = " | ".join(f"{100 * share:.1f} %" for share in shares)
            print(f"| {table} | {prompts} | {row} | {100 * width:.2f} % |", flush=True)
    print()
    for table in ("tgate", "deepcache-tgate", "deepcache-tome"):
        for prompts in (8, 16, 32, 64):
            share = settled(table, prompts, arguments.candidates, draws=5)
            print(f"| {table} | {prompts} | {100 * share:.0f} % |", flush=True)
    print()
    for name, (scale, odd) in CASES.items():
        for pairs in (2, 3):
            pooled, alone = coverage(pairs, scale, odd, searches)
            print(f"| {name} | {pairs} | {100 * pooled:.1f} % | {100 * alone:.1f} % |", flush=True)
    print()
    for slower in (0.0, 0.03, 0.06, 0.1, 0.15):
        for pairs in (3, 8):
            said = verified(pairs, slower, searches)
            shares = " | ".join(f"{100 * said[each]:.1f} %" for each in Verdict)
            print(f"| {100 * slower:.0f} % | {pairs} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
