"""Entry of `accel-explore`: parse, wire, exit code."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_search.cli.program import run_program
from accel_search.errors import ConfigurationError, ExitCode
from accel_search.sweep.settings import SweepSettings, from_command_line, sweep_parser

if TYPE_CHECKING:
    from accel_search.sweep.estimate import Estimate
    from accel_search.sweep.local_workers import Worker

DESCRIPTION = (
    "Explore a whole table of pipelines, schedulers, step counts and accelerators, each in a "
    "subprocess: how fast each can be, and how fast within the bound on its loss of score."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `accel-explore` and return its exit code; every user error is one line."""
    from accel_search import __version__

    return run_program(
        "accel-explore",
        lambda: from_command_line(
            sweep_parser("accel-explore", DESCRIPTION, __version__), arguments
        ),
        run,
        lambda settings: settings.log_level,
        "what was measured is stored: run the same command again to go on",
    )


def run(settings: SweepSettings) -> int:
    """Carry out one sweep and return the exit code."""
    from accel_search.storage.json_files import ensure_writable
    from accel_search.sweep.driver import Sweep
    from accel_search.sweep.estimate import Estimate
    from accel_search.sweep.lock import only_one
    from accel_search.sweep.progress import SweepProgress, legend, table

    estimate = Estimate(settings)
    if settings.dry_run:
        return _print_plan(settings, estimate)
    logger = _set_up_logging(settings)
    first = settings.search_settings(settings.table[0])
    for path in (first.bounds, first.output)[: 1 if settings.latency_only else 2]:
        ensure_writable(Path(path))
    total, show_bar = len(settings.table), sys.stderr.isatty()
    with (
        only_one(settings.run_dir),
        _workers(settings) as workers,
        SweepProgress(logger, total, estimate.seconds, show_bar=show_bar) as progress,
    ):
        sweep = Sweep(settings, workers, estimate.seconds, _machine(settings, workers))
        progress.expect(settings.table, len(workers))
        try:
            failed = sweep.run(progress)
        except KeyboardInterrupt:
            if settings.common.get("force"):
                # Results of this run and of earlier ones look alike.
                logger.warning(
                    "--force: the same command explores finished configurations again; those that "
                    "were interrupted continue from their last trial"
                )
            raise
        statuses = sweep.statuses()
    print(f"\n{table(statuses)}\n\n{legend(settings.latency_only)}")
    if settings.report is not None:
        from accel_search.sweep.page import write_sweep_of

        print("".join(f"\nWritten: {path}" for path in write_sweep_of(settings)))
    return ExitCode.SWEEP_FAILURES if failed else ExitCode.DONE


def _print_plan(settings: SweepSettings, estimate: Estimate) -> int:
    """Print what would run."""
    from accel_search.sweep.driver import Sweep
    from accel_search.sweep.progress import plan

    with _workers(settings) as workers:
        statuses = Sweep(settings, workers, machine=_machine(settings, workers)).statuses()
    seconds, measured = estimate.left(statuses)
    print(plan(statuses, seconds, len(workers), measured=measured))
    return ExitCode.DONE


def _set_up_logging(settings: SweepSettings) -> logging.Logger:
    from accel_search.cli.logging_utils import setup_logger

    try:
        return setup_logger(
            "explore_upper_bounds",
            settings.log_file,
            settings.log_level,
            stamped=True,
            max_bytes=settings.log_rotate or 0,
        )
    except OSError as error:
        raise ConfigurationError(
            f"--log_file {settings.log_file}: cannot be written: {error.strerror}"
        ) from error


@contextmanager
def _workers(settings: SweepSettings) -> Iterator[Sequence[Worker]]:
    """Open the workers, and close them at the end of the block."""
    if settings.executor == "ray":
        from accel_search.sweep.ray_workers import ray_workers

        with ray_workers(settings) as workers:
            yield workers
        return
    from accel_search.sweep.local_workers import local_workers

    local = local_workers(settings)
    try:
        yield local
    finally:
        for worker in local:
            worker.close()


def _machine(
    settings: SweepSettings, workers: Sequence[Worker]
) -> Callable[[], Mapping[str, Any] | None]:
    """Return a function that describes the machine, asked of a worker, which may load torch."""
    first = settings.search_settings(settings.table[0])
    return lambda: workers[0].probe(first, threading.Event())


if __name__ == "__main__":
    sys.exit(main())
