"""How often the interval of a speedup covers the truth, in simulated searches.

Each search times its baseline four times against itself and 16 candidates a few times beside it;
the first candidate's interval is checked. Prints the tables of docs/measurements/strategies.md, and
of docs/use.md: what --verify says of a machine that is as fast as before, or slower.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

from accel_search.core.candidate import Candidate
from accel_search.core.intervals import Estimate, Verdict
from accel_search.core.timing_noise import TimingNoise, noise_floor, speedup
from accel_search.core.trial import Goal, Measurement
from accel_search.search.verification import Stored, judge_speedup

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
    searches = parser.parse_args().searches
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
