"""How often the interval of a speedup covers the truth, in simulated searches.

Each search times its baseline four times against itself and 16 candidates a few times beside it;
the first candidate's interval is looked at. Printed as the table of docs/searching.md.
"""

from __future__ import annotations

import argparse

import numpy as np

from accel_search.records import Measurement
from accel_search.statistics import TimingNoise, speedup

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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=1500)
    searches = parser.parse_args().searches
    for name, (scale, odd) in CASES.items():
        for pairs in (2, 3):
            pooled, alone = coverage(pairs, scale, odd, searches)
            print(f"| {name} | {pairs} | {100 * pooled:.1f} % | {100 * alone:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
