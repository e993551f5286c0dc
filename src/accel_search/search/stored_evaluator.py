"""Measure everything once: an evaluator, the study that stores its results, and a watchdog."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from accel_search.core import extras
from accel_search.core.candidate import Candidate
from accel_search.core.extras import ExtraName
from accel_search.core.timing_noise import is_timed
from accel_search.core.trial import Failure, Measurement, Trial
from accel_search.errors import ConfigurationError, TrialFailure
from accel_search.search.evaluator import Evaluator, Split
from accel_search.search.watchdog import Record, Watchdog
from accel_search.storage.trials_db import TrialStore


class StoredEvaluator:
    """Measures under a watchdog, or returns what the study has already.

    Args:
        evaluator: Measures candidates.
        store: Stores the measurements; None keeps them in memory and records no hang.
        watchdog: Ends a measurement that hangs; None waits for it.
        on_extra: Called after an extra measurement is added to `extras`.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        store: TrialStore | None,
        watchdog: Watchdog | None = None,
        on_extra: Callable[[], None] = lambda: None,
    ) -> None:
        self.extras: dict[str, Measurement] = {}
        """Measurements that are no trials, by name; `reload` adds those of the study."""
        self._evaluator = evaluator
        self._store = store
        self._watchdog = watchdog or Watchdog()
        self._on_extra = on_extra
        self.spent = self._watchdog.spent
        """Seconds measured by this process and those before its restarts."""

    def reload(self) -> None:
        """Load all extra measurements of the study, those of other processes included."""
        if self._store is not None:
            self.extras = self._store.extras()

    def baseline(
        self, split: Split = "search", beside: Measurement | None = None, prompts: int | None = None
    ) -> Measurement:
        """Return the baseline, measured once per study and batch size.

        Args:
            split: Part of the prompts.
            beside: Measurement to compare with the baseline of its batch size, which the evaluator
                has measured where it halved a batch. None is the current batch size.
            prompts: Least number of the part's prompts to be scored on. None is all of a part that
                is not stored yet, and as many as are stored of one that is.

        Raises:
            ConfigurationError: The baseline pipeline makes no valid image.
        """
        size = (beside or self._evaluator.workload).batch_size
        measured = self._load(extras.baseline(split, size))
        if measured is None:
            latest = None if beside is None else self._evaluator.baselines.get(split)
            if beside is not None and (latest is None or latest.batch_size != size):
                return self.baseline(split, prompts=prompts)
            wanted = None if prompts is None else range(prompts)
            measured = latest or self._measure_baseline(split, wanted)
            self.spent += measured.seconds
            self._save(extras.baseline(split, measured.batch_size), measured)
        scored = len(measured.scores)
        if prompts is not None and scored < prompts:
            further = self._measure_baseline(split, range(scored, prompts))
            if further.batch_size != size:  # The batch was halved since.
                return self.baseline(split, prompts=prompts)
            self.spent += further.seconds
            measured = measured.joined(further)
            self._save(extras.baseline(split, size), measured)
        self._watchdog.learn(measured)
        return measured

    def _measure_baseline(self, split: Split, prompts: range | None) -> Measurement:
        images = self._evaluator.prompt_count if prompts is None else len(prompts)
        try:
            with self._watchdog.over(None, images):
                return self._evaluator.baseline(split, prompts)
        except TrialFailure as error:
            # No candidate's fault: without a baseline there is nothing to compare with.
            raise ConfigurationError(str(error)) from error

    def share_baselines(self) -> None:
        """Store the baselines that the evaluator measured for another study of this workload."""
        for split, measured in self._evaluator.baselines.items():
            name = extras.baseline(split, measured.batch_size)
            is_of_size = measured.batch_size == self._evaluator.workload.batch_size
            if is_of_size and self._load(name) is None:
                self._save(name, measured)

    def once(
        self,
        name: ExtraName,
        candidate: Candidate,
        split: Split = "search",
        prompts: range | None = None,
    ) -> Measurement:
        """Return the extra measurement of a name; measure and store what it lacks of the prompts.

        Raises:
            TrialFailure: It cannot be measured, or it hung in this run or an earlier one.
        """
        before = self._load(name)
        scored = 0 if before is None else len(before.scores)
        if before is not None and (prompts is None or scored >= prompts.stop):
            return before
        failure = None if self._store is None else self._store.load_failure(name)
        if failure is not None:
            raise TrialFailure(failure.message, failure.kind, failure.seconds)
        wanted = prompts if prompts is None or before is None else range(scored, prompts.stop)
        images = self._evaluator.prompt_count if wanted is None else len(wanted)
        record = self._recorder(lambda store, failure: store.save_failure(name, failure))
        with self._watchdog.over(candidate, images, record):
            # The first prompts gave all pairs.
            pairs = None if before is None else 0
            measured = self._evaluator.measure(candidate, split, wanted, pairs)
            self.spent += measured.seconds
            if before is not None and before.batch_size == measured.batch_size:
                measured = before.joined(measured)
            elif before is not None:  # The batch was halved since.
                measured = self._evaluator.measure(candidate, split, prompts)
                self.spent += measured.seconds
        self._save(name, measured)
        return measured

    def trial(
        self,
        candidate: Candidate,
        prompts: range,
        pairs: int | None = None,
        before: Measurement | None = None,
    ) -> Trial:
        """Measure a candidate and return its trial for the caller to store; a hang is stored here.

        Args:
            candidate: Settings to measure.
            prompts: Prompts of the search's part that it lacks.
            pairs: Baseline calls beside it; None is the number of a full trial.
            before: Its earlier measurement, to be continued.
        """
        seconds = 0.0 if before is None else before.seconds

        def failed(failure: Failure) -> Trial:
            return Trial(candidate, None, replace(failure, seconds=failure.seconds + seconds))

        record = self._recorder(lambda store, failure: store.add(failed(failure), None))
        try:
            with self._watchdog.over(candidate, prompts.stop, record):
                turn = 0 if before is None else len(before.baseline_seconds_per_image)
                measured = self._evaluator.measure(
                    candidate, prompts=prompts, pairs=pairs, turn=turn
                )
                if before is None and not is_timed(measured):
                    # Other UNet calls were made than described, so a pair has to tell.
                    wasted = measured.seconds
                    measured = self._evaluator.measure(candidate, prompts=prompts, pairs=1)
                    measured = replace(measured, seconds=measured.seconds + wasted)
                if before is not None and before.batch_size == measured.batch_size:
                    measured = before.joined(measured)
                elif before is not None:  # The batch was halved since.
                    measured = self._evaluator.measure(candidate, prompts=range(prompts.stop))
            trial = Trial(candidate, measured)
        except TrialFailure as error:
            trial = failed(Failure(error.kind, str(error)[:1000], error.seconds))
        self.spent += trial.seconds - seconds
        return trial

    def check(self) -> None:
        """Check that the pipeline is unchanged; raises as `Evaluator.check`."""
        with self._watchdog.over(None, 1):
            self._evaluator.check()

    def check_after_hang(self) -> None:
        """Check after a hang that the device answers: the next candidate must not be blamed."""
        if self._watchdog.hangs:
            self.check()

    def _recorder(self, save: Callable[[TrialStore, Failure], None]) -> Record | None:
        """Return the callback that stores a hang as a failure, None without a store."""
        store = self._store
        if store is None:
            return None

        def record(failure: Failure) -> int:
            save(store, failure)
            return store.hangs()

        return record

    def _load(self, name: ExtraName) -> Measurement | None:
        if self._store is None:
            return self.extras.get(name)
        measured = self._store.load_extra(name)
        if measured is not None:  # Another process may have measured it.
            self.extras[name] = measured
        return measured

    def _save(self, name: ExtraName, measured: Measurement) -> None:
        if self._store is not None:
            self._store.save_extra(name, measured)
        self.extras[name] = measured
        self._on_extra()
