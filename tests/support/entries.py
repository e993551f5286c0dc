"""Entries of result files, made without a search: light, since a fake worker loads it."""

from accel_search.storage.entries import BoundEntry, BoundEvidence, Fastest


def bound_entry(model="demo", speedup=2.0, latency_only=False, **fields):
    """Return an entry of `speedup_bounds.json`."""
    values = {
        "max_speedup": round(speedup * 1.1, 2),
        "measured_max": Fastest(speedup_interval=(speedup - 0.1, speedup + 0.1)),
        "evidence": BoundEvidence(seconds=1.0),
    }
    return BoundEntry(
        model=model,
        measured_max_speedup=speedup,
        latency_only=latency_only,
        **values | fields,
    )
