"""Log files that can be followed while they grow."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

LOG_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"


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
        tqdm.write(self.format(record), file=stream)
        stream.flush()


def setup_logger(
    name: str,
    log_file: str | Path | None = "exploration.log",
    level: int | str = logging.INFO,
    *,
    console: bool = True,
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
        to_file = logging.FileHandler(path, encoding="utf-8")
        to_file.setFormatter(logging.Formatter(LOG_FORMAT))
        logger.addHandler(to_file)
    if console:
        to_output = _AboveTheBar("stdout")
        to_output.addFilter(lambda record: record.levelno < logging.WARNING)
        logger.addHandler(to_output)
    to_errors = _AboveTheBar("stderr")
    to_errors.setLevel(logging.WARNING)
    to_errors.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(to_errors)
    return logger
