"""A recorded table as a search meets it: every call charged, truth on prompts that it never sees.

What is measured is charged in the time of one image of the baseline pipeline, as the real evaluator
measures it: whole batches, the baseline's calls against itself and beside every candidate at each
stage, one untimed call for each new type of step, held-out prompts, fewer steps, the winner without
each target, and the images that check the pipeline.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from accel_search.accelerators.base import StepType
from accel_search.accelerators.computation import describe_steps, numbered
from accel_search.core.candidate import Candidate
from accel_search.core.step_times import StepTimes, steps_to_probe
from accel_search.core.timing_noise import paired_log_ratios, timing_spread
from accel_search.core.trial import Measurement
from accel_search.runtime.measuring.batches import PROBED_CALLS, plan_batches, plan_steps
from accel_search.search.evaluator import Split
from accel_search.search.replay import replay_space
from accel_search.search.space import JointSpace
from accel_search.search.step_plans import StepPlans, plans_in
from accel_search.search.strategies.latency_model import OVERHEAD, LatencyModel, Run
from accel_search.storage.trials_file import read_trials
from described_plans import plans_of

Array = NDArray[np.float64]

BATCH = 4
"""Images per call: the default of a search."""
PAIRS = 4
"""Baseline calls beside a candidate: the default of a search."""
NOISE_PAIRS = 4
"""Least calls of the baseline against itself, as in `runtime.measuring.evaluator`."""
OWN_SD = 0.03
"""Standard deviation of a candidate's own deviation from the latency model, in log time."""
STEP_BIAS, STEP_MISFIT, STEP_SD = -0.013, 0.007, 0.004
"""Of log speedups from single UNet calls: the error that all share, the standard deviation of each
one's own, and that of a call. Measured on SDXL: `bench_step_timing.py`."""
OVERHEAD_SHARE = 1 / (1 + math.exp(-OVERHEAD[0]))
"""Share of a call's time that fewer steps do not shorten."""
STAGES = 4
"""Most held-out prompts, as a multiple of those that a candidate is first tried on."""

Drawing = Literal["split", "drawn"]


@dataclass(frozen=True)
class Table:
    """A recorded table; arrays are in the order of the space."""

    space: JointSpace
    scores: Array
    """Score of each candidate on each prompt, `[N, prompts]`."""
    baseline_scores: Array
    """`[prompts]`"""
    log_speedup: Array
    """By the latency model, `[N]`."""
    errors: Array
    """Errors of single readings of a pair, as differences of logarithms."""
    step_types: tuple[frozenset[int], ...]
    """Types of step that each candidate runs; the baseline runs type 0."""
    step_log_times: Mapping[StepType, float]
    """Logarithm of the time of each type of step, in units of a plain one's."""


@cache
def load(path: Path, seconds: Path | None) -> Table:
    """Read a table, and fit the latency model to its times or to the runs of another file."""
    recorded = read_trials(path)
    space = replay_space(recorded, tuple(recorded.trials[0].candidate))
    known = {space.position(trial.candidate): trial.measurement for trial in recorded.trials}
    measured = [known[position] for position in range(len(space))]
    plans = plans_in(space)
    if seconds is None:
        noise = max(timing_spread(recorded.baseline, measured), 0.02)
        readings = [-paired_log_ratios(measurement) for measurement in measured]
        model = LatencyModel(plans)
        model.fit(
            [
                Run(position, float(logs.mean()), noise / math.sqrt(len(logs)))
                for position, logs in enumerate(readings)
            ]
        )
        times, step_log_times = model.predict().log_time, model.step_log_times
        errors = np.concatenate([logs - times[at] for at, logs in enumerate(readings)])
    else:
        times, errors, step_log_times = _elsewhere(seconds, space, plans)
    counts = plans.counts.tocsr()
    types = tuple(
        frozenset(counts.indices[counts.indptr[row] : counts.indptr[row + 1]].tolist())
        for row in range(len(space))
    )
    scores = np.array([measurement.scores for measurement in measured])
    before = np.array(recorded.baseline.scores)
    by_type = dict(zip(plans.types, step_log_times.tolist(), strict=False))
    return Table(space, scores, before, -np.asarray(times), errors, types, by_type)


def _elsewhere(path: Path, space: JointSpace, own: StepPlans) -> tuple[Array, Array, Array]:
    """Return the log times of a space by the runs of another file, and the errors of readings.

    The third are the log times of the step types, the space's first.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = content["calibration"] + content["measured"]
    others = plans_of([Candidate(row["candidate"]) for row in rows], space.workload)  # type: ignore[arg-type]
    types = {step: index for index, step in enumerate(own.types)}
    for step in others.types:
        types.setdefault(step, len(types))

    def spread_out(plans: StepPlans) -> sparse.csr_array:
        part = plans.counts.tocoo()
        columns = np.array([types[step] for step in plans.types])[part.coords[1]]
        shape = (len(plans), len(types))
        return sparse.coo_array((part.data, (part.coords[0], columns)), shape=shape).tocsr()

    counts = sparse.vstack([spread_out(own), spread_out(others)]).tocsr()
    model = LatencyModel(StepPlans(tuple(types), counts, own.baseline_calls))
    runs = [
        Run(len(own) + index, -math.log(row["speedup"]), 0.01) for index, row in enumerate(rows)
    ]
    model.fit(runs)
    times = model.predict().log_time
    errors = np.array([run.log_time - float(times[run.position]) for run in runs])
    return times[: len(own)], errors, model.step_log_times


@dataclass(frozen=True)
class Parts:
    """The prompts of one search, as indices into a table's."""

    search: NDArray[np.int64]
    held_out: NDArray[np.int64]
    judged: NDArray[np.int64]
    """Those by which the winner is judged; the search sees none of them."""
    stages: tuple[int, ...]
    """Numbers of held-out prompts at which a candidate is judged."""


def draw_parts(drawing: Drawing, count: int, search: int, held_out: int, seed: int) -> Parts:
    """Draw the prompts of one search.

    Args:
        drawing: `split` cuts the table's prompts into three parts that share none: the search's,
            its held-out ones, and those that judge. `drawn` draws the first two independently,
            with replacement, from all prompts of the table, whose mean is then the truth.
        count: Prompts of the table.
        search: Prompts of the search.
        held_out: Held-out prompts that a candidate is first tried on.
        seed: Decides.
    """
    rng = np.random.default_rng([seed, 2])
    most = STAGES * held_out
    if drawing == "split":
        # What judges takes as many as both others, at least.
        most = min(most, max(held_out, count // 2 - search))
        order = rng.permutation(count)
        parts = np.split(order, [search, search + most])
        if not len(parts[2]):
            raise SystemExit(f"{search} and {held_out} of {count} prompts leave none to judge by")
    else:
        drawn = rng.integers(0, count, search + most)
        parts = [drawn[:search], drawn[search:], np.arange(count)]
    stages = [held_out] if held_out else []
    while stages and stages[-1] < most:
        stages.append(min(2 * stages[-1], most))
    return Parts(parts[0], parts[1], parts[2], tuple(stages))


class World:
    """A table as one search meets it, and the truth about it.

    Args:
        table: What was recorded.
        parts: The search's prompts and those that judge.
        seed: Draws each candidate's own deviation from the latency model.
    """

    def __init__(self, table: Table, parts: Parts, seed: int) -> None:
        self.table, self.parts, self.seed = table, parts, seed
        own = np.random.default_rng([seed, 0]).normal(0, OWN_SD, len(table.log_speedup))
        self.log_speedup = table.log_speedup + own

    @cached_property
    def judged_loss(self) -> Array:
        """Return each candidate's loss of score on the prompts that judge, `[N]`."""
        judged = self.parts.judged
        before = self.table.baseline_scores[judged].mean()
        return np.asarray(1 - self.table.scores[:, judged].mean(axis=1) / before)

    def best_within(self, bound: float) -> int | None:
        """Return the truly fastest candidate truly within the bound; None where none is faster."""
        speeds = np.where(self.judged_loss <= bound, self.log_speedup, -np.inf)
        best = int(np.argmax(speeds))
        return best if speeds[best] > 0 else None


class SimulatedEvaluator:
    """Measures the candidates of a world, and charges as the real evaluator would take.

    Times are in units of the baseline pipeline's for one image, so a measurement's `seconds` are
    what it is charged.

    Args:
        world: The table as one search meets it.
        times_steps: Whether single UNet calls tell speedups, too.
    """

    provenance = None
    pairs = PAIRS
    baselines: Mapping[Split, Measurement] = {}

    def __init__(self, world: World, times_steps: bool = False) -> None:
        self.times_steps = times_steps
        self._world = world
        self._rng = np.random.default_rng([world.seed, 1])
        self._met: set[int] = set()
        self.workload = replace(world.table.space.workload, batch_size=BATCH)  # type: ignore[type-var]
        self.prompt_count = len(world.parts.search)
        self.chunk = min(BATCH, self.prompt_count)
        self.held_out_stages = world.parts.stages
        self.charged: Counter[str] = Counter()
        """What was charged, by what it was for."""
        self.searching = 0.0
        """What of it was for the search: the baseline on its prompts, and the trials."""

    def baseline(self, split: Split = "search", prompts: range | None = None) -> Measurement:
        """Measure the baseline, the first batches twice."""
        part = self._part(split)
        if not len(part):
            return Measurement((), (), (), BATCH)
        began = 1 + self._warm_up(frozenset({0}), 1.0)  # An image checks the pipeline first.
        scores = self._scores(None, split)
        wanted = prompts or range(len(part))
        pairs = 0 if wanted.start else max(PAIRS, NOISE_PAIRS)
        return self._measured(f"baseline {split}", 1.0, scores, wanted, pairs, began)

    def measure(
        self,
        candidate: Candidate,
        split: Split = "search",
        prompts: range | None = None,
        pairs: int | None = None,
        turn: int = 0,
    ) -> Measurement:
        """Measure a candidate beside the baseline."""
        world, purpose = self._world, str(split)
        position = world.table.space.position(candidate)
        began = 0.0
        if position is not None:
            time = math.exp(-float(world.log_speedup[position]))
            began = self._warm_up(world.table.step_types[position], time)
        else:  # Fewer steps, or a winner without one of its targets: its scores choose nothing.
            purpose, time = "extras", self._time_of_extra(candidate)
        wanted = range(len(self._part(split))) if prompts is None else prompts
        scores = self._scores(position, split)
        measured = self._measured(
            purpose, time, scores, wanted, PAIRS if pairs is None else pairs, began
        )
        if not self.times_steps or position is None:
            return measured
        return self._with_step_times(measured, position, purpose, is_first=not wanted.start)

    def _with_step_times(
        self, measured: Measurement, position: int, purpose: str, is_first: bool
    ) -> Measurement:
        """Add what a candidate's UNet calls tell, and charge the plain ones between them."""
        world = self._world
        candidate = world.table.space.candidate_at(position)
        probed = steps_to_probe(numbered(describe_steps(candidate, self.workload)))
        own_error = np.random.default_rng([position, 7]).normal(STEP_BIAS, STEP_MISFIT)
        is_alone = is_first and not measured.baseline_seconds_per_image
        # Two steps of an image before and after show whether the pipeline is unchanged.
        times, charge = [], 4 / self.workload.steps * is_alone
        unpaired = len(measured.seconds_per_image) - len(measured.baseline_seconds_per_image)
        count = min(max(unpaired, int(is_first)), PROBED_CALLS) if probed else unpaired
        for call in range(count):
            error = own_error + self._rng.normal(0, STEP_SD)
            told = float(world.log_speedup[position]) + error
            times.append(_step_times(world.table, candidate, probed, told))
            if probed:
                plain = (1 - OVERHEAD_SHARE) * len(probed) / self.workload.unet_calls
                again = math.exp(-float(world.log_speedup[position])) if call >= unpaired else 0.0
                charge += BATCH * (plain + again)
        self.charged[purpose] += charge
        self.searching += charge * (purpose == "search")
        seconds = measured.seconds + charge
        return replace(measured, step_times=tuple(times), seconds=seconds)

    def check(self) -> None:
        """Charge the image that shows whether the pipeline is unchanged."""
        self.charged["baseline"] += 1

    def _scores(self, position: int | None, split: Split) -> Array:
        """Return the scores of a candidate, None for the baseline, on a part of the prompts."""
        table = self._world.table
        scores = table.baseline_scores if position is None else table.scores[position]
        return np.asarray(scores[self._part(split)])

    def _part(self, split: Split) -> NDArray[np.int64]:
        return self._world.parts.search if split == "search" else self._world.parts.held_out

    def _warm_up(self, types: frozenset[int], time: float) -> float:
        """Return the charge of the untimed call that meets new types of step first."""
        is_new = not types <= self._met
        self._met |= types
        return BATCH * time if is_new else 0.0

    def _time_of_extra(self, candidate: Candidate) -> float:
        if list(candidate) != ["steps"]:
            return 1.0  # At most: without a target, it is slower than the winner.
        share = candidate["steps"]["num_inference_steps"] / self.workload.steps
        return OVERHEAD_SHARE + (1 - OVERHEAD_SHARE) * float(share)

    def _measured(
        self, purpose: str, time: float, scores: Array, prompts: range, pairs: int, began: float
    ) -> Measurement:
        """Charge a measurement and return it; `began` was charged before its first call."""
        own: list[float] = []
        charge, paired = began, 0
        for step in plan_steps(plan_batches(prompts, BATCH), pairs):
            images = len(step.batch.prompts)
            charge += images * (time + step.paired)
            paired += step.paired
            if step.batch.timed:
                own.append(time * math.exp(self._rng.choice(self._world.table.errors)))
        self.charged[purpose] += charge
        if purpose in ("baseline search", "search"):
            self.searching += charge
        return Measurement(
            tuple(own),
            (1.0,) * paired,
            tuple(scores[prompts.start : prompts.stop].tolist()),
            BATCH,
            seconds=charge,
        )


def _step_times(
    table: Table, candidate: Candidate, probed: Sequence[int], log_speedup: float
) -> StepTimes:
    """Return the times of a call whose UNet calls tell a speedup, each type's by the model."""
    steps = describe_steps(candidate, table.space.workload)  # type: ignore[arg-type]
    kinds = numbered(steps)
    seconds = np.array([math.exp(table.step_log_times.get(step, 0.0)) for step in steps])
    calls = table.space.workload.unet_calls  # type: ignore[union-attr]
    overhead = calls * OVERHEAD_SHARE / (1 - OVERHEAD_SHARE)
    plain = np.array(kinds) == 0
    # What the candidate deviates by falls on all steps that are not plain.
    rest = (overhead + calls) * math.exp(-log_speedup) - overhead - plain.sum()
    seconds[~plain] *= rest / seconds[~plain].sum()
    probes = tuple((at, 1.0) for at in probed)
    call = overhead + float(seconds.sum())
    return StepTimes(call, tuple(seconds.tolist()), tuple(kinds), calls, probes)


def oracle_cost(world: World, best: int | None) -> float:
    """Return what it costs to measure the baseline and the best candidate once, and nothing else.

    Args:
        world: The table as a search meets it.
        best: Its best candidate; None where only the baseline is left.
    """
    evaluator = SimulatedEvaluator(world)
    splits: list[tuple[Split, range]] = [("search", range(evaluator.prompt_count))]
    splits += [("held_out", range(first)) for first in evaluator.held_out_stages[:1]]
    for split, prompts in splits:
        evaluator.baseline(split, prompts)
        if best is not None:
            evaluator.measure(world.table.space.candidate_at(best), split, prompts)
    return sum(evaluator.charged.values())


def surely_over(world: World, position: int, bound: float) -> bool:
    """Return whether a candidate's loss on the prompts that judge is over the bound for sure."""
    from accel_search.core.intervals import score_loss

    judged = world.parts.judged
    table = world.table
    loss: Any = score_loss(table.baseline_scores[judged], table.scores[position][judged])
    return bool(loss.low > bound)
