"""Options of a search that a test can wait for."""

from __future__ import annotations

# Small pictures, two prompts; one thread, since two wait for each other on a busy machine.
SMALL = ["--device", "cpu", "--threads", "1", "--batch_size", "2", "--timing_pairs", "2"]
SMALL += ["--num_samples", "2", "--held_out_samples", "2", "--steps", "6"]
SMALL += ["--height", "64", "--width", "64"]
# Far from the baseline in speed, so that no noise of a busy machine can hide it.
FAST = "[space.deepcache]\ncache_interval = [5, 4]\ncache_branch_id = [0]\n"
# And where a test needs a gain to be shown: of two pairs one outlier hides any.
SURE = ["--timing_pairs", "8"]
