"""Candidates and records."""

import json
from dataclasses import asdict, replace

import pytest

from accel_search.core.candidate import Candidate
from accel_search.core.machine_health import Health
from accel_search.core.step_times import StepTimes
from accel_search.core.trial import Failure, Measurement, Trial
from accel_search.core.workload import Prompt, PromptSet
from tests.support.fakes import PROVENANCE


def test_candidates_are_equal_however_they_are_written():
    one = Candidate(
        {"tome": {"ratio": 0.5, "max_downsample": 1}, "deepcache": {"cache_interval": 2}}
    )
    other = Candidate(
        {"deepcache": {"cache_interval": 2}, "tome": {"max_downsample": 1, "ratio": 0.5}}
    )
    assert one == other and hash(one) == hash(other)
    assert Candidate(one.as_dict()) == one
    assert list(one) == ["deepcache", "tome"]
    assert one.flat() == {"cache_interval": 2, "ratio": 0.5, "max_downsample": 1}
    assert str(Candidate()) == "baseline"


def test_a_measurement_comes_back_from_plain_json_types():
    measured = Measurement(
        (0.5, 0.6), (1.0,), (30.0, 31.0), 4, None, 3.0, shuffled_scores=(12.0, 15.0)
    )
    plain = asdict(measured)
    assert Measurement.from_dict(plain) == measured
    del plain["shuffled_scores"], plain["step_times"]  # As earlier versions stored it.
    assert Measurement.from_dict(plain) == replace(measured, shuffled_scores=())


def test_the_times_of_unet_calls_come_back_from_plain_json_types():
    times = StepTimes(0.5, (0.1, 0.05, 0.1), (0, 1, 0), 3, ((1, 0.11),))
    measured = Measurement((0.5,), (1.0,), (30.0,), 4, step_times=(times,))
    plain = json.loads(json.dumps(asdict(measured)))
    assert Measurement.from_dict(plain) == measured
    assert measured.joined(measured).step_times == (times, times)


def test_the_machines_state_comes_back_from_plain_json_types():
    health = (Health(1410.0, 1980.0, 699.5, 71.0, 4, 0.25, 3.5, 1.0, 16), Health(cores=2))
    measured = Measurement((0.5,), (1.0,), (30.0,), 4, health=health)
    plain = json.loads(json.dumps(asdict(measured)))
    assert Measurement.from_dict(plain) == measured
    assert measured.joined(measured).health == health + health
    del plain["health"]  # As earlier versions stored it.
    assert Measurement.from_dict(plain) == replace(measured, health=())


def test_a_trial_is_measured_or_failed_never_both_nor_neither():
    measured = Measurement((0.5,), (1.0,), (30.0,), 4)
    with pytest.raises(ValueError, match="either"):
        Trial(Candidate(), measured, Failure("timeout", "too long", 1.0))
    with pytest.raises(ValueError, match="either"):
        Trial(Candidate(), None)


def test_provenance_differs_by_anything_but_the_date():
    stored = PROVENANCE.as_dict()
    assert PROVENANCE.differences({**stored, "date": "2030-01-01"}) == []
    assert PROVENANCE.differences({**stored, "device_name": "NVIDIA H200"}) == ["device_name"]
    assert "versions" in PROVENANCE.differences({**stored, "versions": {"torch": "9"}})
    del stored["dtype"]
    assert PROVENANCE.differences(stored) == ["dtype"]


def test_the_prompt_digest_depends_on_texts_seeds_and_parts():
    first = PromptSet("x", (Prompt("a", 1),), (Prompt("b", 2),))
    assert first.digest == PromptSet("y", (Prompt("a", 1),), (Prompt("b", 2),)).digest
    assert first.digest != PromptSet("x", (Prompt("a", 2),), (Prompt("b", 2),)).digest
    assert first.digest != PromptSet("x", (Prompt("a", 1), Prompt("b", 2)), ()).digest


def looked(first, count, pairs, batch_size=4):
    """Return a look at `count` prompts, `pairs` of its calls timed beside the baseline."""
    scores = tuple(float(each) for each in range(first, first + count))
    return Measurement(
        seconds_per_image=tuple(0.1 * (first + each) for each in range(count)),
        baseline_seconds_per_image=tuple(1.0 * (first + each) for each in range(pairs)),
        scores=scores,
        batch_size=batch_size,
        peak_memory_bytes=100 + first,
        seconds=2.0,
        psnr=scores,
        ssim=scores,
        shuffled_scores=scores,
    )


def test_two_looks_are_joined_in_prompt_order_and_pairs_stay_pairs():
    joined = looked(0, 4, 2).joined(looked(4, 4, 1))
    assert joined.scores == joined.psnr == joined.ssim == tuple(map(float, range(8)))
    assert joined.shuffled_scores == joined.scores
    assert joined.baseline_seconds_per_image == (0.0, 1.0, 4.0)
    # Each paired call lies beside the baseline call that was timed next to it.
    assert joined.seconds_per_image[:3] == pytest.approx((0.0, 0.1, 0.4))
    assert sorted(joined.seconds_per_image) == pytest.approx([0.1 * each for each in range(8)])
    assert joined.seconds == 4.0 and joined.peak_memory_bytes == 104


def test_looks_at_two_batch_sizes_are_not_joined():
    with pytest.raises(ValueError, match="two batch sizes"):
        looked(0, 4, 1).joined(looked(4, 4, 1, batch_size=2))


def test_what_could_not_be_read_stays_unknown_when_joined():
    one, other = (Measurement((0.5,), (1.0,), (30.0,), 1) for _ in range(2))
    assert one.joined(other).peak_memory_bytes is None
