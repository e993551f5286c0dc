"""Trials in an Optuna storage: what a killed search goes on from.

Each finished trial is one transaction, so a kill loses the trial in hand and nothing else.
The raw samples are the record; the objective values stand there for Optuna's own tools.
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
"""What comes of reading a record that someone else wrote."""

DATABASE = "trials.db"
"""Name of a run folder's own storage."""
_RECORD = "accel_search"  # User attribute that holds the raw record of a trial.
_CONSTRAINTS = "constraints"
"""System attribute, a list: where one is above 0, Optuna and its dashboard (which does not read the
form that Optuna 5 adds) take a trial for infeasible."""
_FAILED = "failed:"
"""Begins the names of a study's attributes that `remember_failure` keeps."""
ABOUT = "about"
"""User attribute of a study that says what it is of."""
FORCED = "forced"
"""User attribute of a study that was begun afresh: whether it is unfinished."""
_GO_ON = "what was finished is stored: mend that and run the same command again"


def study_name(identity: Mapping[str, Any]) -> str:
    """Return the name shared by all searches whose trials can be taken for one another's.

    Args:
        identity: All that a measurement depends on, as plain JSON types.
    """
    text = json.dumps(identity, sort_keys=True, default=str)
    return f"accel-search-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class TrialStore:
    """The trials of one study, and notes beside them.

    Args:
        url: Optuna storage URL, e.g. `sqlite:///runs/trials.db`; None keeps trials in memory.
        name: Study name, from `study_name`.
        values: Accelerator -> parameter -> values searched, declared to Optuna.
        fresh: Leave stored trials alone and begin a study beside them; one that was begun so and is
            not finished is gone on with, for an interrupted search is resumed by its own command.
        about: What is searched and where, in words: the name is a digest of it.

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
        """Note that the search of this study has ended: a fresh one no longer goes on with it."""
        with self._told("written", _GO_ON):
            if self._study.user_attrs.get(FORCED):
                self._study.set_user_attr(FORCED, False)

    def trials(self) -> list[Trial]:
        """Return each candidate's latest trial, other machines' too, in the order of the first."""
        with self._told("read", "move it away to begin anew"):
            return _latest(self._study)

    def add(self, trial: Trial, assessment: Assessment | None, bound: float | None = None) -> None:
        """Store a trial; it is on disk when this returns.

        A trial at an early look of its race, or one that was timed alone, stands in the study as
        pruned; one that goes on is stored again, with all its samples so far.

        Args:
            trial: The candidate with its raw samples or its failure.
            assessment: What follows from the samples; None for a failure, and where nothing was
                scored.
            bound: Largest loss of score allowed, a fraction: beyond it Optuna's tools show a trial
                as infeasible.
        """
        import optuna

        params = {
            f"{name}.{key}": value
            for name, values in trial.candidate.items()
            for key, value in values.items()
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
        # When it was measured, for a timeline: Optuna takes the moment of storing for both ends.
        kept.datetime_complete = datetime.now()
        kept.datetime_start = kept.datetime_complete - timedelta(seconds=trial.seconds)
        with self._told("written", _GO_ON):
            self._study.add_trial(kept)

    def remember(self, name: ExtraName, measurement: Measurement) -> None:
        """Keep a measurement that is no trial: the baseline, a confirmation, a rival."""
        with self._told("written", _GO_ON):
            self._study.set_user_attr(name, asdict(measurement))

    def remember_failure(self, name: ExtraName, failure: Failure) -> None:
        """Keep that what `remember` would have kept under a name could not be measured."""
        with self._told("written", _GO_ON):
            self._study.set_user_attr(f"{_FAILED}{name}", asdict(failure))

    def failure_of(self, name: ExtraName) -> Failure | None:
        """Return what `remember_failure` kept under that name, None if nothing."""
        with self._told("read", "move it away to begin anew"):
            kept = self._study.user_attrs.get(f"{_FAILED}{name}")
            return None if kept is None else Failure(**kept)

    def hangs(self) -> int:
        """Return how many candidates did not end in time, on held-out prompts and rivals too."""
        with self._told("read", "move it away to begin anew"):
            noted = [key for key in self._study.user_attrs if key.startswith(_FAILED)]
        failures = [each.failure for each in self.trials() if each.failure is not None]
        return len(noted) + sum(each.kind == "timeout" for each in failures)

    def recall(self, name: ExtraName) -> Measurement | None:
        """Return what `remember` kept under that name, None if nothing."""
        return self.remembered().get(name)

    def remembered(self) -> dict[str, Measurement]:
        """Return everything that `remember` kept, by name."""
        with self._told("read", "move it away to begin anew"):
            return _remembered(self._study)

    @contextmanager
    def _told(self, done: str, remedy: str) -> Iterator[None]:
        """Turn whatever the storage raises into one line."""
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

    A storage may be shared with others' studies; those that hold no baseline of ours are left out,
    unless there are no others.

    Args:
        url: Optuna storage URL; `optuna_storage.sqlite_url` makes one of a file.

    Raises:
        Exception: Whatever the driver raises of what is no such storage.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Optuna would make an empty one.
    file = sqlite_file(url)
    if file is not None and not file.exists():
        raise FileNotFoundError(f"{file}: no such file")
    found = open_storage(url).get_all_studies()
    ours = [each for each in found if any(map(is_baseline, each.user_attrs))]
    return [each.study_name for each in ours or found]


def read_study(url: str, name: str) -> tuple[list[Trial], dict[str, Measurement]]:
    """Return a study's trials, as `TrialStore.trials`, and what it remembers, to be read alone.

    Raises:
        Exception: Whatever the driver raises of what is no such storage.
    """
    import optuna

    study = optuna.load_study(study_name=name, storage=open_storage(url))
    return _latest(study), _remembered(study)


def _shown(trial: Trial, assessment: Assessment | None) -> dict[str, Any]:
    """Return what a reader in Optuna's own tools wants beside the two objectives."""
    shown: dict[str, Any] = {}
    if assessment is not None:
        shown["verdict"] = str(assessment.verdict)
        shown["prompts"] = assessment.prompts
        for name, found in (
            ("speedup", assessment.speedup),
            ("score_loss", assessment.score_loss),
        ):
            if found.is_bounded:  # JSON has no infinity.
                shown |= {f"{name}_low": found.low, f"{name}_high": found.high}
        shown |= {
            name: value
            for name, value in (("psnr", assessment.psnr), ("ssim", assessment.ssim))
            if value is not None
        }
    if trial.failure is not None:
        shown["failure"] = f"{trial.failure.kind}: {trial.failure.message}"
    return shown


def _remembered(study: optuna.Study) -> dict[str, Measurement]:
    """Return the measurements among a study's attributes; other tools keep theirs there, too."""
    found = {}
    for name, kept in study.user_attrs.items():
        if isinstance(kept, dict) and "seconds_per_image" in kept:
            with suppress(*UNREADABLE):
                found[name] = Measurement.from_dict(kept)
    return found


def _latest(study: optuna.Study) -> list[Trial]:
    found: dict[Candidate, Trial] = {}
    for kept in study.get_trials(deepcopy=False):
        if _RECORD in kept.user_attrs:
            trial = _from_optuna(kept)
            before = found.get(trial.candidate)
            # Two machines may have raced one candidate: the one that got farther counts.
            if before is None or _scored(trial) >= _scored(before):
                found[trial.candidate] = trial
    return list(found.values())


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
