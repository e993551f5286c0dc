"""Train the embedded demo pipeline and its scorer from nothing.

    python scripts/training/train_demo.py --stage all --work build/demo --out src/accel_search/demo

Each stage goes on from what the earlier ones left in the work folder, so they can also be run one
by one, in processes of their own. `--steps-scale 0.02` shortens everything to see that it works.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "scripts"))  # The folder is imported as a package.

from training import denoiser, evaluate, package, scorer, vae  # noqa: E402
from training.training import Run, save_figures  # noqa: E402


def train(run: Run) -> None:
    """Run the stages that train, one after the other, and time them all."""
    start = time.perf_counter()
    for part in (vae, scorer, denoiser):
        part.run_stage(run)
    seconds = time.perf_counter() - start
    save_figures(run, "training", {"seconds": seconds, "stages_overlapped": False})


STAGES: dict[str, tuple[Callable[[Run], None], ...]] = {
    "vae": (vae.run_stage,),
    "scorer": (scorer.run_stage,),
    "denoiser": (denoiser.run_stage,),
    "guidance": (evaluate.run_guidance,),
    "package": (package.run_stage,),
    "evaluate": (evaluate.run_stage,),
    "all": (train, evaluate.run_guidance, package.run_stage, evaluate.run_stage),
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "src/accel_search/demo")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build/demo")
    parser.add_argument("--sheet", type=Path, default=REPOSITORY / "docs/demo_samples.png")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="number of steps of the stage")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="multiplies all steps")
    parser.add_argument("--batch", type=int, help="batch size of the stage")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the networks (default: on a GPU)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the stages asked for."""
    options = parse_arguments(arguments)
    device = torch.device(options.device)
    run = Run(
        out=options.out,
        work=options.work,
        sheet=options.sheet,
        device=device,
        steps=options.steps,
        steps_scale=options.steps_scale,
        batch=options.batch,
        compile=device.type == "cuda" if options.compile is None else options.compile,
    )
    for stage in STAGES[options.stage]:
        stage(run)


if __name__ == "__main__":
    main()
