"""The latency model: recovers a known truth, believes no outlier, knows what it does not know."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from accel_search.core.candidate import Candidate
from accel_search.core.workload import Workload
from accel_search.search.space import JointSpace
from accel_search.search.step_plans import plans_in
from accel_search.search.strategies.guided import OPTIMISTIC
from accel_search.search.strategies.latency_model import LatencyModel, Run
from accel_search.search.strategies.speed_model import likeness
from tests.support.fakes import WORKLOAD

ROOT = Path(__file__).parents[3]


NOISE = {"latency_sdxl_h200.json": 0.006, "latency_sd15_h200.json": 0.12}
"""Typical relative error of a reading, by points that were read twice."""


def script(name):
    """Import a script by its path."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts/benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def true_log_times(plans, rng, overhead=0.08):
    """Times that are made as the model supposes, with costs drawn at random."""
    costs = {
        each.name: rng.uniform(-0.6, -0.1) for step in plans.types for each in sorted(step, key=str)
    }
    times = [np.exp(sum(costs[e.name] * e.amount for e in step)) for step in plans.types]
    unet = (plans.counts @ np.array(times)) / plans.baseline_calls
    return np.log(overhead + (1 - overhead) * unet)


def calibrated(model, log_times, count, noise, rng, spoil=None):
    """Let the model choose its runs, as a search does."""
    runs = []
    left = np.arange(len(log_times))
    for number in range(count):
        chosen = model.most_informative(left, noise, np.arange(len(log_times)))
        disturbed = 0.4 if number == spoil else 0.0
        observed = log_times[chosen] + rng.normal(0, noise) + disturbed
        runs.append(Run(chosen, observed, noise))
        left = left[left != chosen]
        model.fit(runs)
    return runs


SPACES = {
    "deepcache": (("deepcache",), 5),
    "tome": (("tome",), 8),
    "tgate": (("tgate",), 10),
    "deepcache,tgate": (("deepcache", "tgate"), 12),
    "deepcache,tome": (("deepcache", "tome"), 12),
}


@pytest.fixture(scope="module", params=SPACES)
def known(request):
    targets, count = SPACES[request.param]
    narrow = {"tgate": {"warmup": (1,), "gate_step": (6, 10, 14), "fi_interval": (1, 3, 5)}}
    space = JointSpace(targets, WORKLOAD, narrow if "tgate" in targets else {})
    return plans_in(space), count


def test_an_effect_that_bends_with_its_amount_is_followed():
    plans = plans_in(JointSpace(("tome",), WORKLOAD))
    # Merging costs at first and pays later.
    times = [np.exp(sum(0.5 * e.amount - 1.1 * e.amount**2 for e in step)) for step in plans.types]
    truth = np.log(0.1 + 0.9 * (plans.counts @ np.array(times)) / plans.baseline_calls)
    model = LatencyModel(plans)
    calibrated(model, truth, 9, 0.003, np.random.default_rng(0))
    assert np.quantile(np.abs(model.predict().log_time - truth), 0.95) < 0.03


@pytest.mark.parametrize("seed", range(2))
def test_it_finds_a_known_truth_from_a_dozen_runs_and_knows_how_well(known, seed):
    plans, count = known
    rng = np.random.default_rng(seed)
    truth = true_log_times(plans, rng)
    model = LatencyModel(plans)
    runs = calibrated(model, truth, count, 0.005, rng)
    predicted = model.predict()
    others = np.setdiff1d(np.arange(len(plans)), [run.position for run in runs])
    error = np.abs(predicted.log_time - truth)[others]
    assert np.median(error) < 0.02
    assert np.quantile(error, 0.95) < 0.05
    assert np.mean(error <= 2 * predicted.sd[others]) > 0.9


def test_one_disturbed_run_is_not_believed(known):
    plans, count = known
    truth = true_log_times(plans, np.random.default_rng(0))
    medians = []
    for spoil in (None, 2):
        model = LatencyModel(plans)
        # One more run than is needed: without it nothing tells which one was disturbed.
        calibrated(model, truth, count + 3, 0.005, np.random.default_rng(1), spoil)
        medians.append(np.median(np.abs(model.predict().log_time - truth)))
    assert medians[1] < 0.03, medians


def test_with_nothing_measured_it_knows_next_to_nothing_and_says_so():
    plans = plans_in(JointSpace(("deepcache",), WORKLOAD))
    predicted = LatencyModel(plans).predict()
    assert (predicted.sd > 0.1).all()
    assert np.isfinite(predicted.log_time).all()


def test_what_was_learnt_is_forgotten_at_the_next_fit():
    plans = plans_in(JointSpace(("deepcache",), WORKLOAD))
    model, fresh = LatencyModel(plans), LatencyModel(plans)
    model.fit([Run(0, -1.0, 0.01), Run(3, -0.2, 0.01)])
    for each in (model, fresh):
        each.fit([Run(5, -0.5, 0.01)])
    assert np.array_equal(model.predict().log_time, fresh.predict().log_time)
    model.fit([])
    assert np.array_equal(model.predict().sd, LatencyModel(plans).predict().sd)


def test_what_one_value_of_a_parameter_does_beside_the_model_is_learnt():
    space = JointSpace(("deepcache", "tome"), WORKLOAD)
    plans, alike = plans_in(space), likeness(space.coordinates())
    points = [space.candidate_at(at).as_dict() for at in range(len(space))]
    slower = np.array([each.get("deepcache", {}).get("cache_interval") == 5 for each in points])
    truth = true_log_times(plans, np.random.default_rng(0)) + 0.1 * slower
    drawn = np.random.default_rng(2).permutation(len(plans))[:40]
    runs = [Run(int(at), float(truth[at]), 0.003) for at in drawn]
    others = np.setdiff1d(np.arange(len(plans)), drawn)
    errors = {}
    for name, model in {"alike": LatencyModel(plans, alike), "alone": LatencyModel(plans)}.items():
        model.fit(runs)
        predicted = model.predict()
        off = np.abs(predicted.log_time - truth)[others]
        errors[name] = np.mean(off)
        if name == "alike":
            assert np.mean(off <= 2 * predicted.sd[others]) > 0.9
    assert errors["alike"] < 0.6 * errors["alone"], errors


def test_each_run_makes_predictions_surer():
    plans = plans_in(JointSpace(("deepcache", "tome"), WORKLOAD))
    truth = true_log_times(plans, np.random.default_rng(0))
    model = LatencyModel(plans)
    spreads = [np.mean(model.predict().sd)]
    for count in (4, 8, 12):
        model = LatencyModel(plans)
        calibrated(model, truth, count, 0.005, np.random.default_rng(0))
        spreads.append(np.mean(model.predict().sd))
    assert spreads == sorted(spreads, reverse=True)


def test_a_chosen_run_teaches_more_than_a_random_one():
    plans = plans_in(JointSpace(("deepcache", "tome"), WORKLOAD))
    truth = true_log_times(plans, np.random.default_rng(0))
    model = LatencyModel(plans)
    calibrated(model, truth, 8, 0.005, np.random.default_rng(0))
    chosen = model.predict().sd.mean()
    spreads = []
    for seed in range(10):
        model = LatencyModel(plans)
        drawn = np.random.default_rng(seed).permutation(len(plans))[:8]
        model.fit([Run(int(at), float(truth[at]), 0.005) for at in drawn])
        spreads.append(model.predict().sd.mean())
    assert chosen < min(spreads)


@pytest.mark.parametrize(
    ("name", "median", "high"),
    # What is asked of SDXL; SD1.5 is bound by the host, its noise floor is 11 % and 33 %.
    [("latency_sdxl_h200.json", 0.02, 0.05), ("latency_sd15_h200.json", 0.13, 0.4)],
)
def test_a_dozen_recorded_runs_of_a_full_size_pipeline_predict_the_others(name, median, high):
    path = ROOT / "tests" / "data" / name
    bench = script("bench_latency")
    errors = [error for _, error in bench.Recorded(path).errors()]
    content = json.loads(path.read_text(encoding="utf-8"))
    points = {json.dumps(row["candidate"]) for row in content["calibration"] + content["measured"]}
    assert len(errors) == len(points) - bench.CALIBRATION_RUNS
    assert np.median(errors) < median
    assert np.quantile(errors, 0.95) < high


@pytest.mark.parametrize("name", ["latency_sdxl_h200.json", "latency_sd15_h200.json"])
def test_few_recorded_candidates_are_faster_than_the_optimistic_end(name):
    content = json.loads((ROOT / "tests" / "data" / name).read_text(encoding="utf-8"))
    rows = content["calibration"] + content["measured"]
    candidates = [Candidate(row["candidate"]) for row in rows]
    known = content["workload"] | {
        "attention_downsamples": tuple(content["workload"]["attention_downsamples"])
    }
    plans = script("described_plans").plans_of(candidates, Workload(**known))
    observed = -np.log([row["speedup"] for row in rows])
    noise = NOISE[name]
    beyond = {"deepcache": [], "all": []}
    for seed in range(10):
        drawn = np.random.default_rng(seed).permutation(len(rows))[:12]
        model = LatencyModel(plans)
        model.fit([Run(int(at), float(observed[at]), noise) for at in drawn])
        predicted = model.predict()
        others = np.setdiff1d(np.arange(len(rows)), drawn)
        # What was read differs from the truth by the noise of a reading.
        sd = np.hypot(predicted.sd, noise)[others]
        faster = observed[others] < predicted.log_time[others] - OPTIMISTIC * sd
        beyond["all"] += faster.tolist()
        beyond["deepcache"] += faster[
            [list(candidates[at]) == ["deepcache"] for at in others]
        ].tolist()
    # What leaves most of a UNet call out was expected too slow once.
    assert np.mean(beyond["all"]) < 0.07 and np.mean(beyond["deepcache"]) < 0.1
