"""What every test starts from."""

import logging

import pytest


@pytest.fixture(autouse=True)
def bare_loggers():
    """Take off what a run of the program hung on its loggers."""
    yield
    for name in ("accel_search", "traversal_search"):
        logger = logging.getLogger(name)
        logger.propagate = True
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
