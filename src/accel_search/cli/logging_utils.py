"""Log to the console and to a file, line by line and without secrets."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

from accel_search.core.secrets import without_secrets

LOG_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
KEPT_FILES = 5
"""Old log files that are kept where a log is rotated."""


class _WithoutSecrets(logging.Formatter):
    """Format a line, its traceback included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class _AboveTheBar(logging.Handler):
    """Write to `sys.stdout` or `sys.stderr`, above a progress bar instead of through it.

    The stream is looked up at every line, so that redirecting it later works.
    """

    def __init__(self, stream: str) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        stream = getattr(sys, self._stream)
        # The console may have been closed; the search goes on, and the file has every line.
        with suppress(OSError):
            tqdm.write(self.format(record), file=stream)
            stream.flush()


class _ToFile(RotatingFileHandler):
    """Append to a file, and warn once if it cannot be written, e.g. on a full disk."""

    _has_warned = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Warn instead of printing a traceback a line; the search goes on without its log."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_warned:
            self._has_warned = True
            with suppress(OSError):
                print(
                    f"WARNING: {self.baseFilename}: lines are lost: {error.strerror}; everything "
                    "else goes on",
                    file=sys.stderr,
                    flush=True,
                )


def setup_logger(
    name: str,
    log_file: str | Path | None = "exploration.log",
    level: int | str = logging.INFO,
    *,
    console: bool = True,
    stamped: bool = False,
    max_bytes: int = 0,
) -> logging.Logger:
    """Return a logger that writes each line to a file at once, and to the console.

    Calling it again for the same name replaces the handlers, so a second search in one
    process does not write every line twice.

    Args:
        name: Logger name, printed in each line of the file.
        log_file: File that lines are appended to; its folder is made. None writes no file.
        level: Least level that is written.
        console: Whether ordinary lines go to standard output; warnings and errors go to
            standard error in any case.
        stamped: Whether lines on the console are those of the file, with time and level.
        max_bytes: Size at which a new file is started; `KEPT_FILES` old ones are kept. 0 lets it
            grow.

    Raises:
        OSError: The file cannot be opened for appending.
    """
    logger = logging.getLogger(name)
    logger.setLevel(level)
    logger.propagate = False
    _close(logger)
    if log_file is not None:
        path = Path(log_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        # FileHandler flushes after every record, which is what `tail -f` needs.
        to_file = _ToFile(path, maxBytes=max_bytes, backupCount=KEPT_FILES, encoding="utf-8")
        to_file.setFormatter(_WithoutSecrets(LOG_FORMAT))
        logger.addHandler(to_file)
    if console:
        to_output = _AboveTheBar("stdout")
        to_output.addFilter(lambda record: record.levelno < logging.WARNING)
        to_output.setFormatter(_WithoutSecrets(LOG_FORMAT if stamped else "%(message)s"))
        logger.addHandler(to_output)
    to_errors = _AboveTheBar("stderr")
    to_errors.setLevel(logging.WARNING)
    to_errors.setFormatter(_WithoutSecrets(LOG_FORMAT if stamped else "%(levelname)s: %(message)s"))
    logger.addHandler(to_errors)
    return logger


def _close(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def logging_to(
    log_file: str | Path, level: int | str, *, console: bool, name: str = "traversal_search"
) -> Iterator[logging.Logger]:
    """Log for the length of a `with` block, within a program that logs by rules of its own.

    Args:
        log_file: As in `setup_logger`, as are the others.
        level: See there.
        console: See there.
        name: Of the logger that the block gets.

    Raises:
        OSError: The file cannot be opened for appending.
    """
    loggers = [logging.getLogger(each) for each in ("accel_search", name)]
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers.clear()
    try:
        for logger in loggers:
            setup_logger(logger.name, log_file, level, console=console)
        yield loggers[-1]
    finally:
        for logger, handlers, was, propagates in before:
            _close(logger)
            logger.handlers[:] = handlers
            logger.setLevel(was)
            logger.propagate = propagates
