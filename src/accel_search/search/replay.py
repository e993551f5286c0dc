"""Search recorded trials in place of a pipeline: in a second, without torch."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

from accel_search.core.candidate import Candidate
from accel_search.core.trial import Goal, Measurement, Trial
from accel_search.core.workload import Provenance, Workload
from accel_search.errors import ConfigurationError, TrialFailure
from accel_search.search.evaluator import Split
from accel_search.search.named import NamedSpace
from accel_search.search.space import JointSpace
from accel_search.settings import Settings
from accel_search.storage.trials_file import TrialsFile, read_trials

_NOTHING = Measurement((), (), (), 1)

CHUNK = 4
"""Prompts per call of a replay, whatever the recorded batch size: the default of a search."""


class ReplayEvaluator:
    """Returns recorded measurements, with the seconds that they took.

    Args:
        recorded: The file of trials.
        space: The space that its candidates are points of.
    """

    def __init__(self, recorded: TrialsFile, space: JointSpace | NamedSpace) -> None:
        self.workload = recorded.workload or _partial_workload(recorded.given)
        self._recorded = recorded
        self._space = space
        self._trials: dict[Hashable, Trial] = {
            space.key(trial.candidate): trial for trial in recorded.trials
        }
        self._held_out = {
            space.key(candidate): value for candidate, value in recorded.held_out.items()
        }

    @property
    def provenance(self) -> Provenance | None:
        """Return None: the samples were taken elsewhere."""
        return None

    def baseline(self, split: Split = "search", prompts: range | None = None) -> Measurement:
        """Return the recorded baseline; empty where no held-out prompts were recorded."""
        recorded = self._recorded
        whole = recorded.baseline if split == "search" else recorded.held_out_baseline or _NOTHING
        return whole if prompts is None else _part(whole, prompts)

    @property
    def baselines(self) -> dict[Split, Measurement]:
        """Return what `baseline` returns, for both parts."""
        return {"search": self.baseline("search"), "held_out": self.baseline("held_out")}

    def check(self) -> None:
        """Do nothing: there is no pipeline to check."""

    @property
    def chunk(self) -> int:
        """Return how many prompts one call covers."""
        return min(CHUNK, self.prompt_count)

    @property
    def prompt_count(self) -> int:
        """Return how many prompts were recorded."""
        return len(self._recorded.baseline.scores)

    @property
    def held_out_stages(self) -> tuple[int, ...]:
        """Return the numbers of held-out prompts that candidates were recorded on, ascending."""
        baseline = self.baseline("held_out")
        counts = {len(measured.scores) for measured in self._held_out.values()}
        return tuple(sorted(counts or {len(baseline.scores)} - {0}))

    @property
    def pairs(self) -> int:
        """Return 0: the pairs are those recorded."""
        return 0

    @property
    def times_steps(self) -> bool:
        """Return False: the timings are those recorded."""
        return False

    def measure(
        self,
        candidate: Candidate,
        split: Split = "search",
        prompts: range | None = None,
        pairs: int | None = None,
        turn: int = 0,
    ) -> Measurement:
        """Return what was recorded, for some of the prompts at their share of the time.

        Raises:
            TrialFailure: The trial failed when it was recorded, or was not recorded.
        """
        recorded = self._find(candidate, split)
        if prompts is None:
            return recorded
        if prompts.stop > len(recorded.scores):
            raise TrialFailure(f"recorded on {len(recorded.scores)} prompts only")
        return _part(recorded, prompts)

    def _find(self, candidate: Candidate, split: Split) -> Measurement:
        if list(candidate) == ["steps"] and "steps" not in self._space.targets:
            steps = int(candidate["steps"]["num_inference_steps"])
            if steps not in self._recorded.rivals:
                raise TrialFailure(f"{steps} steps were not recorded")
            return self._recorded.rivals[steps]
        key = self._space.key(candidate)
        if split == "held_out":
            if key not in self._held_out:
                raise TrialFailure("not recorded on held-out prompts")
            return self._held_out[key]
        if key not in self._trials:
            raise TrialFailure("this candidate was not recorded")
        trial = self._trials[key]
        if trial.failure is not None:
            failure = trial.failure
            raise TrialFailure(failure.message, failure.kind, failure.seconds)
        assert trial.measurement is not None  # a trial holds one or the other
        return trial.measurement


def _part(recorded: Measurement, prompts: range) -> Measurement:
    """Return what was recorded of some of the prompts, at their share of the time."""
    taken = slice(prompts.start, prompts.stop)
    return replace(
        recorded,
        # All timings come with the first prompts: their prompts were not recorded.
        seconds_per_image=() if prompts.start else recorded.seconds_per_image,
        baseline_seconds_per_image=() if prompts.start else recorded.baseline_seconds_per_image,
        step_times=() if prompts.start else recorded.step_times,
        scores=recorded.scores[taken],
        psnr=recorded.psnr[taken],
        ssim=recorded.ssim[taken],
        health=() if prompts.start else recorded.health,
        seconds=recorded.seconds * len(prompts) / max(len(recorded.scores), 1),
    )


def open_replay(
    path: Path, targets: tuple[str, ...], goal: Goal | None = None
) -> tuple[ReplayEvaluator, JointSpace]:
    """Return an evaluator for a file of trials, and the space of its candidates.

    Args:
        path: The file.
        targets: Those whose trials are searched.
        goal: Bounds to judge by; None where nothing is judged.

    Raises:
        ConfigurationError: The file is invalid, has no trial of exactly `targets`, or lacks samples
            that a bound of the goal needs.
    """
    recorded = read_trials(path)
    if not any(set(trial.candidate) == set(targets) for trial in recorded.trials):
        held = sorted({",".join(trial.candidate) for trial in recorded.trials})
        raise ConfigurationError(
            f"--replay {path}: holds no trial of --targets {','.join(targets)}, only of {held}"
        )
    try:
        space = replay_space(recorded, targets)
    except ConfigurationError as error:
        raise ConfigurationError(f"--replay {path}: {error}") from error
    if goal is not None:
        _refuse_unrecorded(path, recorded, targets, goal)
    return ReplayEvaluator(recorded, space), space


def open_named_replay(
    path: Path, candidates: Sequence[Candidate], goal: Goal
) -> tuple[ReplayEvaluator, NamedSpace]:
    """Return an evaluator for a file of trials, and the space of the named candidates.

    Raises:
        ConfigurationError: The file is invalid, has no trial of one on all prompts, or lacks
            samples that a bound of the goal needs.
    """
    recorded = read_trials(path)
    space = NamedSpace(candidates, recorded.workload)
    known = {space.key(trial.candidate): trial for trial in recorded.trials}
    for candidate in candidates:
        trial = known.get(space.key(candidate))
        if trial is None:
            raise ConfigurationError(
                f"--candidate {candidate}: --replay {path} holds no trial of it"
            )
        if trial.measurement is None:
            continue
        scored, prompts = len(trial.measurement.scores), len(recorded.baseline.scores)
        if scored < prompts:
            raise ConfigurationError(
                f"--candidate {candidate}: --replay {path} holds it on {scored} of {prompts} "
                "prompts: the search gave it up early"
            )
        _refuse_unrecorded(path, recorded, tuple(candidate), goal)
    return ReplayEvaluator(recorded, space), space


def warn_of_ignored(settings: Settings, replay: ReplayEvaluator, logger: logging.Logger) -> None:
    """Warn of numbers of prompts that were asked for and that a replay does not have."""
    asked = {
        "num_samples": (settings.num_samples, (Settings.num_samples, replay.prompt_count)),
        "held_out_samples": (settings.held_out_samples, (None, *(replay.held_out_stages or (0,)))),
    }
    others = [f"--{name} {value}" for name, (value, known) in asked.items() if value not in known]
    if others:
        logger.warning(
            "--replay %s: the prompts are those recorded; ignored: %s",
            settings.replay,
            ", ".join(others),
        )


def _refuse_unrecorded(
    path: Path, recorded: TrialsFile, targets: tuple[str, ...], goal: Goal
) -> None:
    """Raise if a bound is on similarity that was not recorded."""
    measured = [(trial.candidate, trial.measurement) for trial in recorded.trials]
    measured += list(recorded.held_out.items())
    for name, bound in (("psnr", goal.min_psnr), ("ssim", goal.min_ssim)):
        lacking = [
            str(candidate)
            for candidate, measurement in measured
            if set(candidate) == set(targets)
            and measurement is not None
            and len(getattr(measurement, name)) < len(measurement.scores)
        ]
        if bound is not None and lacking:
            raise ConfigurationError(
                f"--min_{name} {bound:g}: {path} lacks the {name.upper()} of some images of "
                f"{lacking[0]}: leave the bound out, or record the trials again (--trials_out)"
            )


def replay_space(recorded: TrialsFile, targets: tuple[str, ...]) -> JointSpace:
    """Return the space of the recorded candidates that use exactly `targets`.

    It contains only recorded points, and their values need not be the accelerators' own.
    """
    wanted = [trial.candidate for trial in recorded.trials if set(trial.candidate) == set(targets)]
    values: dict[str, dict[str, list[int | float]]] = {}
    for candidate in wanted:
        for name, params in candidate.items():
            for key, value in params.items():
                seen = values.setdefault(name, {}).setdefault(key, [])
                if value not in seen:
                    seen.append(value)
    ordered = {
        name: {key: sorted(seen) for key, seen in params.items()} for name, params in values.items()
    }
    everything = JointSpace(targets, recorded.workload, ordered)
    return JointSpace(
        targets,
        recorded.workload,
        ordered,
        only={everything.key(candidate) for candidate in wanted},
    )


def _partial_workload(given: Workload) -> Workload:
    """Return a file's workload, with what a search divides by filled in.

    It only names the result: no points coincide under it.
    """
    calls, size = given.unet_calls or given.steps, given.batch_size or 1
    return replace(given, unet_calls=calls, batch_size=size, attention_downsamples=())
