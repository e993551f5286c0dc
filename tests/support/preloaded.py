"""What every run on recorded tables imports, once for all of them."""

import alembic.command
import alembic.migration
import optuna
import psutil
import scipy.stats
import sqlalchemy
import sqlalchemy.dialects.sqlite
import tqdm

import accel_search.cli.logging_utils
import accel_search.explore_upper_bounds
import accel_search.report.ci
import accel_search.report.console.summary
import accel_search.runtime.loading.expected
import accel_search.runtime.loading.lora.files
import accel_search.runtime.loading.prompts
import accel_search.runtime.loading.single_file.load
import accel_search.search.few_steps
import accel_search.session
import accel_search.storage.search_results
import accel_search.sweep.driver
import accel_search.sweep.estimate
import accel_search.sweep.progress
import accel_search.traversal_search
import tests.support.recorded
from accel_search.runtime.loading.expected import expected_workload
from accel_search.settings import Settings

expected_workload(Settings())  # Loads the schedulers of diffusers.

__all__ = ["accel_search", "alembic", "optuna", "psutil", "scipy", "sqlalchemy", "tests", "tqdm"]
