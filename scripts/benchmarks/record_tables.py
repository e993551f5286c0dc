r"""Measure many points of a space, once each, and write them as a file that `--replay` searches.

    python scripts/benchmarks/record_tables.py --targets deepcache,tgate --points 1200 \
        --out table.json.gz

It is what a search would measure, with less timing around it: all prompts go in one batch, each
point is called once, and the baseline pipeline is called after every few points, so that a point is
compared with the baseline calls before and after it. The pictures of those calls have to stay
bit-identical, as in a search. A limit of time writes what there is; a later run that is given that
file by --skip measures what is left, and --merge puts files of one space together.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from accel_search.core.candidate import Candidate
from accel_search.core.trial import Measurement, Trial
from accel_search.search.space import JointSpace
from accel_search.settings import Settings, parse_targets
from accel_search.storage.trials_file import read_trials, write_trials

BESIDE = 8
"""Points between two calls of the baseline pipeline."""


def main() -> None:
    """Record one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--targets", type=parse_targets, required=True)
    parser.add_argument("--points", type=int, help="points drawn at random (default: all)")
    parser.add_argument("--pipe", default="demo")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--num_samples", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--shard", default="0/1", help="K/N: the K-th of N parts of the points")
    parser.add_argument("--repeats", type=int, default=1, help="timed calls of each point")
    parser.add_argument("--skip", type=Path, nargs="*", default=[], help="files of points to skip")
    parser.add_argument("--merge", type=Path, nargs="*", help="files to put together into --out")
    parser.add_argument("--time_limit", type=float, default=float("inf"), help="seconds")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.merge:
        merge(options)
    else:
        record(options)


def merge(options: argparse.Namespace) -> None:
    """Write the points of several files of one space as one; of a repeated point the last."""
    files = [read_trials(path) for path in options.merge]
    workload = files[0].workload
    if any(each.workload != workload for each in files) or workload is None:
        raise SystemExit("--merge: the files are not of one workload")
    if any(each.baseline.scores != files[0].baseline.scores for each in files):
        raise SystemExit("--merge: the files' baselines made other pictures")
    space = JointSpace(options.targets, workload)
    trials = {space.key(trial.candidate): trial for each in files for trial in each.trials}
    write_trials(
        options.out, space.coinciding, workload, files[0].baseline, list(trials.values()), {}
    )
    print(f"{options.out}: {len(trials)} of {len(space)} points")


def record(options: argparse.Namespace) -> None:
    """Measure the points that the options ask for and write the table."""
    recorder = Recorder(options)
    space = JointSpace(options.targets, recorder.workload)
    skipped = {
        space.position(trial.candidate)
        for path in options.skip
        for trial in read_trials(path).trials
    }
    order = np.random.default_rng(len(skipped)).permutation(len(space)).tolist()
    left = [position for position in order if position not in skipped]
    part, parts = (int(each) for each in options.shard.split("/"))
    chosen = left[: options.points][part::parts]
    began = time.perf_counter()
    for position in tqdm(chosen, mininterval=10, disable=None):
        if time.perf_counter() - began > options.time_limit:
            break
        recorder.measure(space.candidate_at(position))
    baseline, trials = recorder.finish()
    write_trials(options.out, space.coinciding, recorder.workload, baseline, trials, {})
    print(
        f"{options.out}: {len(trials)} of {len(space)} points in "
        f"{time.perf_counter() - began:.0f} s; baseline {np.mean(baseline.scores):.2f}, "
        f"{np.median(baseline.seconds_per_image) * options.num_samples:.4f} s a call, "
        f"spread {recorder.spread():.2%}"
    )


class Recorder:
    """Calls one pipeline, keeps what came of it and the baseline calls in between."""

    def __init__(self, options: argparse.Namespace) -> None:
        from accel_search.accelerators.compose import apply_candidate
        from accel_search.runtime.devices import resolve_device, set_threads
        from accel_search.runtime.loading.pipelines import describe_workload, load_pipeline
        from accel_search.runtime.loading.prompts import load_prompts
        from accel_search.runtime.measuring.calls import Accounting, Caller
        from accel_search.runtime.measuring.contamination import References
        from accel_search.runtime.quiet import quiet_libraries
        from accel_search.runtime.scoring.clip import load_scorer

        log = logging.getLogger("record_tables")
        settings = Settings(
            pipe=options.pipe,
            steps=options.steps,
            device=options.device,
            num_samples=options.num_samples,
            held_out_samples=0,
            batch_size=options.num_samples,
        )
        device = resolve_device(settings.device)
        set_threads(None, device)
        self.prompts = load_prompts(settings).search
        self._scorer = load_scorer(settings, device)
        pipe, folder = load_pipeline(settings, log)
        self.workload = describe_workload(pipe, settings, folder)
        self._caller = Caller(pipe, apply_candidate, Accounting())
        self._references = References(log)
        self._quiet = quiet_libraries
        self._repeats = options.repeats
        self._reference: Any = None
        self._baselines: list[float] = []
        self._rows: list[tuple[Candidate, int, Measurement]] = []
        for _ in range(3):
            self._caller.call(self.workload, self.prompts)
        self._baseline()

    def measure(self, candidate: Candidate) -> None:
        """Measure one point; the first ones after a warm-up of their own."""
        if len(self._rows) < BESIDE:
            self._caller.call(self.workload, self.prompts, candidate)
        self._rows.append((candidate, len(self._baselines), self._measured(candidate)))
        if len(self._rows) % BESIDE == 0:
            self._baseline()

    def finish(self) -> tuple[Measurement, list[Trial]]:
        """Return the baseline and the trials, each beside the baseline calls around it."""
        from dataclasses import replace

        self._baseline()
        calls = self._baselines
        trials = [
            Trial(
                candidate,
                replace(
                    measured,
                    baseline_seconds_per_image=(round((calls[at - 1] + calls[at]) / 2, 8),)
                    * len(measured.seconds_per_image),
                ),
            )
            for candidate, at, measured in self._rows
        ]
        pairs = len(calls) // 2
        baseline = replace(
            self._measured(Candidate()),
            seconds_per_image=tuple(calls[: 2 * pairs : 2]),
            baseline_seconds_per_image=tuple(calls[1 : 2 * pairs : 2]),
            seconds=float(np.median(calls)) * len(self.prompts),
        )
        return baseline, trials

    def spread(self) -> float:
        """Return the relative spread of the baseline's calls."""
        return float(np.std(self._baselines) / np.mean(self._baselines))

    def _baseline(self) -> None:
        from accel_search.runtime.scoring.similarity import to_bytes

        with self._quiet():
            images, seconds = self._caller.call(self.workload, self.prompts)
        self._references.compare("table", images, self._caller.last_applied)
        if self._reference is None:
            self._reference = to_bytes(images)
        self._baselines.append(round(seconds, 8))

    def _measured(self, candidate: Candidate) -> Measurement:
        from accel_search.runtime.measuring.generation import check_images
        from accel_search.runtime.scoring.similarity import similarity

        samples = []
        with self._quiet():
            for _ in range(self._repeats):
                images, seconds = self._caller.call(self.workload, self.prompts, candidate)
                samples.append(round(seconds, 8))
        check_images(images, self.prompts, range(len(self.prompts)))
        scores = self._scorer.score(images, [prompt.text for prompt in self.prompts])
        likeness = similarity(images, self._reference)
        return Measurement(
            seconds_per_image=tuple(samples),
            baseline_seconds_per_image=(),
            scores=tuple(round(score, 4) for score in scores),
            batch_size=len(self.prompts),
            seconds=round(float(np.median(samples)) * len(self.prompts), 6),
            psnr=tuple(round(each, 2) for each in likeness.psnr),
            ssim=tuple(round(each, 4) for each in likeness.ssim),
        )


if __name__ == "__main__":
    main()
