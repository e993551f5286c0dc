"""The errors that a user can cause, and the exit code of each.

::

    AccelSearchError                1  a defect, unless a subclass says otherwise
    ├── ConfigurationError          2  invalid arguments, configuration or result file
    ├── OutOfMemoryError            4  out of memory even at batch size 1
    ├── LoadError                   5  a model, dataset or scorer could not be loaded
    ├── ContaminationError          1  an accelerator left the pipeline changed
    ├── BaselineError               1  the baseline pipeline or the scorer no longer works
    ├── AcceleratorError            2  an accelerator cannot be applied to this pipeline
    └── TrialFailure                -  one candidate failed; recorded, and the search goes on
        ├── InvalidImage
        └── NothingMeasured         3  not one candidate could be measured, or there is none
"""

from __future__ import annotations

from typing import ClassVar


class ExitCode:
    """Exit codes of all programs, as the documentation lists them."""

    DONE = 0
    UNEXPECTED = 1
    """Also for a baseline pipeline that fails or hangs, which no option can fix."""
    INVALID = 2
    NOTHING_FOUND = 3
    OUT_OF_MEMORY = 4
    NOT_LOADED = 5
    SWEEP_FAILURES = 6
    INCONCLUSIVE = 7
    INTERRUPTED = 130


class AccelSearchError(Exception):
    """Base of the package's errors; the message is one line a user can act on."""

    exit_code: ClassVar[int] = ExitCode.UNEXPECTED


class ConfigurationError(AccelSearchError):
    """An argument, configuration file or result file is not valid."""

    exit_code = ExitCode.INVALID


class OutOfMemoryError(AccelSearchError):
    """The workload does not fit the device even at batch size 1.

    Args:
        message: One line.
        bytes_asked: Bytes of the allocation that failed; None where that is not known.
        bytes_free: Bytes free on the device at that moment; None where that is not known.
        batch_sizes: Batch sizes that were tried, in order; empty where not even weights fit.
    """

    exit_code = ExitCode.OUT_OF_MEMORY

    def __init__(
        self,
        message: str,
        *,
        bytes_asked: int | None = None,
        bytes_free: int | None = None,
        batch_sizes: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message)
        self.bytes_asked = bytes_asked
        self.bytes_free = bytes_free
        self.batch_sizes = batch_sizes


class LoadError(AccelSearchError):
    """A model, dataset or scorer could not be loaded."""

    exit_code = ExitCode.NOT_LOADED


class ContaminationError(AccelSearchError):
    """An accelerator left the pipeline changed, so no later measurement can be trusted."""


class BaselineError(AccelSearchError):
    """The baseline pipeline or the scorer itself fails, whatever the candidate.

    For example after a GPU error that only a new process can clear. What was measured is stored;
    the search ends so that the remaining candidates are not recorded as failures.
    """


class AcceleratorError(AccelSearchError):
    """An accelerator cannot be applied: unsupported pipeline, or already applied."""

    exit_code = ExitCode.INVALID


class TrialFailure(AccelSearchError):
    """One candidate could not be measured; stored as a `Failure` record.

    Args:
        message: One line.
        kind: As `Failure.kind`; None takes the class's own.
        seconds: Wall seconds until it failed; may be set later.
    """

    kind: str = "unknown_error"

    def __init__(self, message: str, kind: str | None = None, seconds: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind or type(self).kind
        self.seconds = seconds


class InvalidImage(TrialFailure):
    """An image holds NaN or a single value, so it is not scored."""

    kind = "invalid_image"


class NothingMeasured(TrialFailure):
    """Not one candidate could be measured, or every point is the baseline pipeline."""

    exit_code = ExitCode.NOTHING_FOUND


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return an error's class and the first line of its message, for use in a message of ours."""
    text = str(error).strip()
    line = text.splitlines()[0].strip() if text else ""
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
