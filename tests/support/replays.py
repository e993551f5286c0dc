"""A search of recorded trials, as options."""

from pathlib import Path

TABLE = Path(__file__).parents[1] / "data" / "tables" / "deepcache.json.gz"
REPLAY = ["--replay", str(TABLE), "--strategy", "grid", "--max_trials", "3"]
