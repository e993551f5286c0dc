"""Make images as the evaluator does, without its timing and checks."""

from accel_search.runtime.measuring.generation import prepare


def generate(pipe, workload, prompts, steps=None):
    """Return one image per prompt of one pipeline call, `[B, 3, H, W]`, float32, 0..1."""
    return prepare(pipe, workload, prompts, steps)().float()
