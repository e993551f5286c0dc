"""MLflow: a run for the search, a nested run for each candidate."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accel_search.core.candidate import Candidate
from accel_search.core.trial import Measurement, Trial
from accel_search.report.format import validated
from accel_search.report.trackers.base import Ending, Subject, Tracker
from accel_search.storage.entries import estimate_of

if TYPE_CHECKING:
    from accel_search.core.assessment import AssessedTrial, Assessment
    from accel_search.core.intervals import Estimate
    from accel_search.core.outcome import Ablation, Rival

EXPERIMENT = "accel-search"
"""Experiment that is written to, unless MLFLOW_EXPERIMENT_NAME names another."""
STUDY = "accel_search.study"
CANDIDATE = "accel_search.candidate"
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""An unreachable server must not block a search for the minutes of MLflow's defaults."""
_MAX_PARAM = 500
"""Characters of a parameter's value that every MLflow server takes."""


class MLflow(Tracker):
    """Writes a search to an MLflow tracking store.

    The search is a run, whose parameters are the options and the workload, and whose metrics go on
    with each trial; each candidate is a run nested in it, with the accelerators' parameters and its
    figures with the ends of their intervals, so that MLflow's table and charts compare them. An
    interrupted search goes on in its run: both are found by their tags.

    Args:
        target: Tracking URI, e.g. `sqlite:///mlflow.db` or `http://host:5000`.
    """

    name = "mlflow"
    package = "mlflow"

    def __init__(self, target: str) -> None:
        for variable, value in _PATIENCE.items():
            os.environ.setdefault(variable, value)
        # It logs each table that it creates.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=target)
        self._experiment = self._experiment_id(
            os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        )
        self._run = ""
        self._nested: dict[str, str] = {}
        self._count = 0

    def begin(self, subject: Subject) -> None:
        """Create the search's run, or resume that of the same study."""
        known = None if subject.study is None else self._find(STUDY, subject.study)
        if known:
            self._run = known[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            nested = self._find("mlflow.parentRunId", self._run)
            self._nested = {run.data.tags[CANDIDATE]: run.info.run_id for run in nested}
            return
        asked = subject.asked
        name = f"{asked['pipe']} {asked['sched']} {asked['steps']} {'+'.join(asked['targets'])}"
        tags = {} if subject.study is None else {STUDY: subject.study}
        self._run = self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id
        load = subject.workload
        facts = {
            "pipeline_class": load.pipeline_class,
            "scheduler_class": load.scheduler_class,
            "height": load.height,
            "width": load.width,
            "batch_size": load.batch_size,
            "dtype": load.dtype,
            "guidance_scale": load.guidance_scale,
        }
        if subject.provenance is not None:
            where = subject.provenance
            facts |= {"device": where.device_name, "model": where.model_id}
            facts |= {f"version.{name}": version for name, version in where.versions.items()}
        self._log(self._run, params=dict(asked) | facts)

    def on_baseline(self, baseline: Measurement) -> None:
        """Write the baseline's speed and score."""
        metrics = {"baseline_seconds_per_image": _mean(baseline.seconds_per_image)}
        if baseline.scores:
            metrics["baseline_score"] = _mean(baseline.scores)
        self._log(self._run, metrics)

    def on_resume(self, history: Sequence[AssessedTrial]) -> None:
        """Write the trials that are not in the tracking store yet."""
        for assessed in history:
            trial = assessed.trial
            # A candidate that hung has an open run here, and is a failure now.
            if str(trial.candidate) not in self._nested or trial.failure is not None:
                self.on_trial(assessed)

    def on_trial(self, assessed: AssessedTrial) -> None:
        """Write a candidate's run, and a point of the search's metrics."""
        assessment = assessed.assessment
        if assessment is None:
            self._write(assessed.trial, {}, "failed")
            return
        metrics = _figures(assessment)
        is_final = assessment.is_complete or assessment.verdict == "fail"
        state = str(assessment.verdict) if is_final else "open"
        self._write(assessed.trial, metrics, state, assessment.prompts)
        self._count += 1
        names = ("speedup", "score_loss")
        self._log(self._run, {name: metrics[name] for name in names}, step=self._count)

    def on_timed(self, trial: Trial, speedup: Estimate | None) -> None:
        """Write a candidate's run with its speedup alone."""
        figures = {} if speedup is None else _ends("speedup", speedup)
        self._write(trial, figures, "failed" if speedup is None else "timed")

    def on_confirm(
        self, assessed: AssessedTrial, held_out: Assessment | None, chance: float | None
    ) -> None:
        """Write a candidate's figures on held-out prompts next to those of the search."""
        figures = {} if held_out is None else _figures(held_out)
        run = self._nested_run(assessed.trial.candidate)
        tags = {"held_out": validated(chance)}
        self._log(run, {f"held_out.{name}": value for name, value in figures.items()}, tags=tags)

    def on_rival(self, rival: Rival) -> None:
        """Write the baseline pipeline with fewer steps as a candidate of its own."""
        candidate = Candidate({"steps": {"num_inference_steps": rival.steps}})
        trial = Trial(candidate, rival.measurement)
        self._write(trial, _figures(rival.assessment), "rival", rival.assessment.prompts)

    def on_ablation(self, ablation: Ablation) -> None:
        """Write the winner without one of its targets as a candidate of its own."""
        trial = Trial(ablation.candidate, ablation.measurement)
        self._write(trial, _ends("speedup", ablation.assessment.speedup), "ablation")

    def end(self, ending: Ending) -> None:
        """Write the final figures, the result and the files."""
        for assessed in ending.trials:
            if assessed.assessment is not None:  # Judged by all timed pairs by now.
                run = self._nested_run(assessed.trial.candidate)
                self._log(run, _figures(assessed.assessment), step=assessed.assessment.prompts)
        entry, bound = ending.entry, ending.bound
        result: dict[str, float] = {}
        content: dict[str, Any] = {}
        fastest = None
        if bound is not None:
            content |= bound.as_dict()
            fastest = Candidate(bound.measured_max.settings)
            result["measured_max_speedup"] = bound.measured_max_speedup
        if entry is not None:
            content |= entry.as_dict()
            fastest = entry.candidate
            evidence = entry.evidence
            loss = estimate_of(entry.score_loss, evidence.score_loss_interval)
            result |= _ends("speedup", estimate_of(entry.speedup, evidence.speedup_interval))
            result |= _ends("score_loss", loss)
            parts = {"held_out": evidence.held_out, "in_search": evidence.in_search}
            for name, part in parts.items():
                if part is not None:
                    result[f"{name}_speedup"] = part.speedup
                    result[f"{name}_score_loss"] = part.score_loss
        tags = {
            "result": str(fastest) if fastest else "none",
            "verdict": "" if entry is None else entry.evidence.verdict,
            "stopped": ending.stopped,
        }
        self._log(self._run, {f"result.{name}": v for name, v in result.items()}, tags=tags)
        self._client.log_dict(self._run, content, "result.json")
        for file in ending.files:
            self._client.log_artifact(self._run, str(file))
        self._client.set_terminated(self._run, "FINISHED")

    def abort(self, *, interrupted: bool) -> None:
        """Mark the search's run as killed, to be resumed, or failed."""
        self._client.set_terminated(self._run, "KILLED" if interrupted else "FAILED")

    def _experiment_id(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except Exception:
            # Another configuration of the sweep may have created it meanwhile.
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def _find(self, tag: str, value: str) -> list[Any]:
        """Return every run with a tag of that value, the latest first."""
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`{tag}` = '{value}'", page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def _nested_run(self, candidate: Candidate) -> str:
        name = str(candidate)
        if name not in self._nested:
            tags = {"mlflow.parentRunId": self._run, CANDIDATE: name}
            run = self._client.create_run(self._experiment, tags=tags, run_name=name)
            self._nested[name] = run.info.run_id
            params = {
                f"{one}.{key}": v for one, values in candidate.items() for key, v in values.items()
            }
            self._log(run.info.run_id, params=params)
        return self._nested[name]

    def _write(self, trial: Trial, metrics: Mapping[str, float], state: str, step: int = 0) -> None:
        run = self._nested_run(trial.candidate)
        measured, failure = trial.measurement, trial.failure
        written = dict(metrics)
        if measured is not None:
            written |= {"seconds": measured.seconds, "batch_size": measured.batch_size}
            if measured.seconds_per_image:
                written["seconds_per_image"] = _mean(measured.seconds_per_image)
            if measured.peak_memory_bytes is not None:
                written["peak_memory_bytes"] = measured.peak_memory_bytes
        tags = {"verdict": state}
        if failure is not None:
            tags["failure"] = f"{failure.kind}: {failure.message}"
        self._log(run, written, tags=tags, step=step)
        self._client.set_terminated(run, "FAILED" if failure is not None else "FINISHED")

    def _log(
        self,
        run: str,
        metrics: Mapping[str, float] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        step: int = 0,
    ) -> None:
        """Write to a run in one request, without infinite metrics."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(1000 * time.time())
        self._client.log_batch(
            run,
            metrics=[
                Metric(name, float(value), now, step)
                for name, value in (metrics or {}).items()
                if math.isfinite(value)
            ],
            params=[Param(name, _text(value)) for name, value in (params or {}).items()],
            tags=[RunTag(name, value) for name, value in (tags or {}).items()],
        )


def _figures(assessment: Assessment) -> dict[str, float]:
    figures = _ends("speedup", assessment.speedup) | _ends("score_loss", assessment.score_loss)
    figures["prompts"] = assessment.prompts
    for name in ("psnr", "ssim", "tail_loss"):
        if (value := getattr(assessment, name)) is not None:
            figures[name] = value
    return figures


def _ends(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _text(value: Any) -> str:
    written = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return written[:_MAX_PARAM]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
