"""Everything on disk: results, bounds, trials, run folders."""
