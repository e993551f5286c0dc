"""Search, measure and verify a pipeline in memory, from Python."""
