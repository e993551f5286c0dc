"""Log files that can be followed while they grow, and that no secret gets into."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

from accel_search.core.secrets import without_secrets

LOG_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
KEPT_FILES = 5
"""Old log files that are kept where a log is rotated."""


class _Discreet(logging.Formatter):
    """Formats a line, its traceback included, and strikes out secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class _AboveTheBar(logging.Handler):
    """Writes to `sys.stdout` or `sys.stderr`, above a progress bar instead of through it.

    The stream is looked up at every line: whoever redirects it later is heard.
    """

    def __init__(self, stream: str) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        stream = getattr(sys, self._stream)
        # Whoever read the console may be gone; the search goes on, and the file has every line.
        with suppress(OSError):
            tqdm.write(self.format(record), file=stream)
            stream.flush()


class _ToFile(RotatingFileHandler):
    """Appends to a file; one that cannot be written, on a full disk, is told of once."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Warn instead of printing a traceback a line: no night's search ends for its log."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
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
        max_bytes: Size at which the file is put aside and begun anew, `KEPT_FILES` old ones being
            kept; 0 lets it grow.

    Raises:
        OSError: The file cannot be opened for appending.
    """
    logger = logging.getLogger(name)
    logger.setLevel(level)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    if log_file is not None:
        path = Path(log_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        # FileHandler flushes after every record, which is what `tail -f` needs.
        to_file = _ToFile(path, maxBytes=max_bytes, backupCount=KEPT_FILES, encoding="utf-8")
        to_file.setFormatter(_Discreet(LOG_FORMAT))
        logger.addHandler(to_file)
    if console:
        to_output = _AboveTheBar("stdout")
        to_output.addFilter(lambda record: record.levelno < logging.WARNING)
        to_output.setFormatter(_Discreet(LOG_FORMAT if stamped else "%(message)s"))
        logger.addHandler(to_output)
    to_errors = _AboveTheBar("stderr")
    to_errors.setLevel(logging.WARNING)
    to_errors.setFormatter(_Discreet(LOG_FORMAT if stamped else "%(levelname)s: %(message)s"))
    logger.addHandler(to_errors)
    return logger
