"""Trials in an Optuna storage, from which a killed search resumes.

Each finished trial is one transaction, so a kill loses only the current trial. The raw samples are
the record; the objective values are there for Optuna's own tools.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_search.core.candidate import Candidate, Value
from accel_search.core.extras import ExtraName, is_baseline
from accel_search.core.trial import Failure, Measurement, Trial
from accel_search.errors import ConfigurationError, first_line
from accel_search.storage.optuna_storage import open_storage, reason, sqlite_file, sqlite_url

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from accel_search.core.assessment import Assessment

UNREADABLE = (KeyError, TypeError, ValueError, AttributeError)
"""What reading a record of another program may raise."""

DATABASE = "trials.db"
"""Name of a run folder's own storage."""
_RECORD = "accel_search"  # User attribute that holds the raw record of a trial.
_CONSTRAINTS = "constraints"
"""System attribute, a list: a trial with a value above 0 is infeasible to Optuna and its dashboard,
which does not read the newer form of Optuna 5."""
_FAILED = "failed:"
"""Prefix of a study's attributes that hold failures of extra measurements."""
ABOUT = "about"
"""User attribute of a study that describes it."""
FORCED = "forced"
"""User attribute of a study begun with `--force`: whether it is unfinished."""
_GO_ON = "finished trials are stored: fix that and run the same command again"


def study_name(identity: Mapping[str, Any]) -> str:
    """Return the name of a study, by all that its measurements depend on, in plain JSON types."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return f"accel-search-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class TrialStore:
    """The trials of one study, and its extra measurements.

    Args:
        url: Optuna storage URL, e.g. `sqlite:///runs/trials.db`; None keeps trials in memory.
        name: Study name, from `study_name`.
        values: Accelerator -> parameter -> values searched, declared to Optuna.
        fresh: Begin another study beside the stored ones, or resume an unfinished one that was
            begun so: an interrupted search is resumed by its own command.
        about: Describes what is searched and where; the name is only a digest.

    Raises:
        ConfigurationError: The storage cannot be opened.
    """

    def __init__(
        self,
        url: str | None,
        name: str,
        values: Mapping[str, Mapping[str, Sequence[Value]]],
        *,
        fresh: bool = False,
        about: str | None = None,
    ):
        import optuna
        from optuna.distributions import CategoricalDistribution

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions = {
            f"{accelerator}.{parameter}": CategoricalDistribution(searched)
            for accelerator, parameters in values.items()
            for parameter, searched in parameters.items()
        }
        self._url = url
        try:
            storage = open_storage(url)
            runs = {
                int(study.study_name.rpartition("-run")[2]): study.user_attrs
                for study in storage.get_all_studies()
                if study.study_name.rpartition("-run")[0] == name
            }
            number = max(runs, default=0)
            begins = not runs or (fresh and not runs[number].get(FORCED))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study = optuna.create_study(
                    storage=storage,
                    study_name=f"{name}-run{number + begins}",
                    directions=["maximize", "minimize"],
                    load_if_exists=True,
                )
                self._study.set_metric_names(["speedup", "score_loss"])
                if fresh and begins:
                    self._study.set_user_attr(FORCED, True)
                if about is not None and self._study.user_attrs.get(ABOUT) != about:
                    self._study.set_user_attr(ABOUT, about)
        except Exception as error:  # Any database driver may raise its own.
            raise ConfigurationError(
                f"--storage {url}: cannot be opened: {reason(error)}"
            ) from error

    @property
    def name(self) -> str:
        """Return the study's name, to find it in Optuna's own tools."""
        return self._study.study_name

    def finish(self) -> None:
        """Mark the search of this study as ended: a fresh one no longer resumes it."""
        with self._one_line("written", _GO_ON):
            if self._study.user_attrs.get(FORCED):
                self._study.set_user_attr(FORCED, False)

    def trials(self) -> list[Trial]:
        """Return each candidate's latest trial, of any machine, in the order of the first ones."""
        with self._one_line("read", "move it away to start again"):
            return _latest(self._study)

    def add(self, trial: Trial, assessment: Assessment | None, bound: float | None = None) -> None:
        """Store a trial; it is on disk when this returns.

        A trial at an early stage, or one that was only timed, is a pruned one to Optuna; when it
        continues, it is stored again with all its samples so far.

        Args:
            trial: The candidate with its raw samples or its failure.
            assessment: Derived from the samples; None for a failure, and where nothing was scored.
            bound: Largest allowed loss of score, a fraction; Optuna's tools show a trial beyond it
                as infeasible.
        """
        import optuna

        params = {
            f"{name}.{key}": value
            for name, values in trial.candidate.items()
            for key, value in values.items()
            # Named settings are no points of a space: only their record holds them.
            if f"{name}.{key}" in self._distributions
        }
        record = {
            "candidate": trial.candidate.as_dict(),
            "measurement": None if trial.measurement is None else asdict(trial.measurement),
            "failure": None if trial.failure is None else asdict(trial.failure),
        }
        states = optuna.trial.TrialState
        if trial.failure is not None:
            state = states.FAIL
        else:
            is_complete = assessment is not None and assessment.is_complete
            state = states.COMPLETE if is_complete else states.PRUNED
        kept = optuna.trial.create_trial(
            state=state,
            params=params,
            distributions={key: self._distributions[key] for key in params},
            values=[assessment.speedup.value, assessment.score_loss.value] if assessment else None,
            user_attrs=_shown(trial, assessment) | {_RECORD: record},
            system_attrs={_CONSTRAINTS: [assessment.score_loss.value - bound]}
            if assessment is not None and bound is not None
            else None,
        )
        # For a timeline: Optuna would take the time of storing for both ends.
        kept.datetime_complete = datetime.now()
        kept.datetime_start = kept.datetime_complete - timedelta(seconds=trial.seconds)
        with self._one_line("written", _GO_ON):
            self._study.add_trial(kept)

    def save_extra(self, name: ExtraName, measurement: Measurement) -> None:
        """Store a measurement that is no trial: a baseline, held-out prompts, fewer steps."""
        with self._one_line("written", _GO_ON):
            self._study.set_user_attr(name, asdict(measurement))

    def save_failure(self, name: ExtraName, failure: Failure) -> None:
        """Store why an extra measurement failed."""
        with self._one_line("written", _GO_ON):
            self._study.set_user_attr(f"{_FAILED}{name}", asdict(failure))

    def load_failure(self, name: ExtraName) -> Failure | None:
        """Return the failure stored under a name, if there is one."""
        with self._one_line("read", "move it away to start again"):
            failure = self._study.user_attrs.get(f"{_FAILED}{name}")
            return None if failure is None else Failure(**failure)

    def hangs(self) -> int:
        """Return how many candidates did not end in time, on held-out prompts and rivals too."""
        with self._one_line("read", "move it away to start again"):
            noted = [key for key in self._study.user_attrs if key.startswith(_FAILED)]
        failures = [trial.failure for trial in self.trials() if trial.failure is not None]
        return len(noted) + sum(failure.kind == "timeout" for failure in failures)

    def load_extra(self, name: ExtraName) -> Measurement | None:
        """Return the extra measurement of a name, if there is one."""
        return self.extras().get(name)

    def extras(self) -> dict[str, Measurement]:
        """Return all extra measurements, by name."""
        with self._one_line("read", "move it away to start again"):
            return _extras(self._study)

    @contextmanager
    def _one_line(self, done: str, remedy: str) -> Iterator[None]:
        """Turn any exception of the storage into one line."""
        try:
            yield
        except UNREADABLE as error:
            raise ConfigurationError(
                f"--storage {self._url}: cannot be {done}: something in {self.name} is no record "
                f"of accel-search ({first_line(error)}); {remedy}"
            ) from error
        except Exception as error:  # Any driver may raise its own.
            raise ConfigurationError(
                f"--storage {self._url}: cannot be {done}: {reason(error)}; {remedy}"
            ) from error


def study_names(url: str) -> list[str]:
    """Return the names of the studies in a storage, the one begun last at the end.

    A shared storage may hold other programs' studies: those without a baseline of ours are left
    out, unless there are no others.

    Raises:
        Exception: Whatever the driver raises for an invalid storage.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Optuna would create an empty one.
    file = sqlite_file(url)
    if file is not None and not file.exists():
        raise FileNotFoundError(f"{file}: no such file")
    studies = open_storage(url).get_all_studies()
    ours = [study for study in studies if any(map(is_baseline, study.user_attrs))]
    return [study.study_name for study in ours or studies]


def read_study(url: str, name: str) -> tuple[list[Trial], dict[str, Measurement]]:
    """Return a study's trials, as `TrialStore.trials`, and its extra measurements.

    Raises:
        Exception: Whatever the driver raises for an invalid storage.
    """
    import optuna

    study = optuna.load_study(study_name=name, storage=open_storage(url))
    return _latest(study), _extras(study)


def _shown(trial: Trial, assessment: Assessment | None) -> dict[str, Any]:
    """Return the attributes that Optuna's own tools show next to the two objectives."""
    shown: dict[str, Any] = {}
    if assessment is not None:
        shown["verdict"] = str(assessment.verdict)
        shown["prompts"] = assessment.prompts
        for name, estimate in (
            ("speedup", assessment.speedup),
            ("score_loss", assessment.score_loss),
        ):
            if estimate.is_bounded:  # JSON has no infinity.
                shown |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        shown |= {
            name: value
            for name in ("psnr", "ssim", "tail_loss")
            if (value := getattr(assessment, name)) is not None
        }
    if trial.failure is not None:
        shown["failure"] = f"{trial.failure.kind}: {trial.failure.message}"
    return shown


def _extras(study: optuna.Study) -> dict[str, Measurement]:
    """Return the measurements among a study's attributes, where other tools have theirs, too."""
    measurements = {}
    for name, value in study.user_attrs.items():
        if isinstance(value, dict) and "seconds_per_image" in value:
            with suppress(*UNREADABLE):
                measurements[name] = Measurement.from_dict(value)
    return measurements


def _latest(study: optuna.Study) -> list[Trial]:
    latest: dict[Candidate, Trial] = {}
    for kept in study.get_trials(deepcopy=False):
        if _RECORD in kept.user_attrs:
            trial = _from_optuna(kept)
            before = latest.get(trial.candidate)
            # Two machines may have measured one candidate: the trial with more prompts counts.
            if before is None or _scored(trial) >= _scored(before):
                latest[trial.candidate] = trial
    return list(latest.values())


def default_url(run_dir: str | Path) -> str:
    """Return the URL of the SQLite database in a run folder, which is made.

    Raises:
        ConfigurationError: The folder cannot be made.
    """
    try:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--run_dir {run_dir}: {error.strerror}") from error
    return sqlite_url(Path(run_dir) / DATABASE)


def _scored(trial: Trial) -> float:
    # A failure is final, however far it got before.
    return math.inf if trial.measurement is None else len(trial.measurement.scores)


def _from_optuna(trial: FrozenTrial) -> Trial:
    record = trial.user_attrs[_RECORD]
    measurement, failure = record["measurement"], record["failure"]
    return Trial(
        Candidate(record["candidate"]),
        None if measurement is None else Measurement.from_dict(measurement),
        None if failure is None else Failure(**failure),
    )
