"""A file of recorded trials in its plainest form."""

from accel_search.storage.trials_file import FORMAT


def recorded(**changes):
    """Return the content of a file in the plainest form that the format allows."""
    trials = []
    for interval in (2, 3, 5):
        loss = {2: 0.0, 3: 0.01, 5: 0.1}[interval]
        trials.append(
            {
                "candidate": {"deepcache": {"cache_interval": interval, "cache_branch_id": 0}},
                "seconds_per_image": [0.5 / interval, 0.501 / interval],
                "scores": [30 * (1 - loss), 31 * (1 - loss), 32 * (1 - loss)],
                "failure": None,
            }
        )
    content = {
        "format": FORMAT,
        "workload": {"pipeline": "SDXL", "steps": 20, "batch_size": 4},
        "baseline": {"seconds_per_image": [0.5, 0.501, 0.499, 0.5], "scores": [30, 31, 32]},
        "trials": trials,
    }
    return content | changes
