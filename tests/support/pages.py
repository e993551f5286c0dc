"""Runs for the report's tests: a fake search, pictures of a few pixels, texts that mean harm."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
from PIL import Image

from accel_search.core.candidate import Candidate
from accel_search.core.trial import Failure, Goal, Trial
from accel_search.search.explain import of_search
from accel_search.search.space import JointSpace
from accel_search.settings import Settings
from accel_search.storage.run_folder import ended_record, pictures_path, to_picture, write_record
from accel_search.storage.trials_db import TrialStore, default_url
from tests.support.fakes import PROVENANCE, WORKLOAD, FakeEvaluator, called
from tests.support.searches import run

EVIL = (
    "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed = 2'>"
    '"{{ 7 * 7 }}'
)
TARGETS = ("deepcache",)


class StepTimed(FakeEvaluator):
    """Times UNet calls one by one: 0.02 s an image of a plain one, 0.008 of a partial one."""

    def measure(self, candidate, *arguments, **options):
        measured = super().measure(candidate, *arguments, **options)
        if "deepcache" not in candidate:
            return measured
        plain = tuple(range(0, 20, candidate["deepcache"]["cache_interval"]))
        seconds = tuple(0.02 if call in plain else 0.008 for call in range(20))
        return replace(measured, step_times=(called(sum(seconds) + 0.05, seconds, plain),))


def search(evaluator=None, **options):
    """Return the outcome of a fake search, and its record."""
    evaluator = evaluator or FakeEvaluator()
    outcome = run(evaluator, **options)
    space = JointSpace(TARGETS, WORKLOAD)
    load = replace(WORKLOAD, pipeline=options.pop("pipeline", "demo"))
    return outcome, ended_record(
        outcome,
        Settings(),
        space.summary(),
        load,
        PROVENANCE,
        "study",
        of_search(outcome, space, PROVENANCE),
    )


def make_run_dir(
    folder, model="demo", prompt="a red ring", pictures=True, record=True, evaluator=None
):
    """Make the folder that a search leaves, and return it."""
    outcome, ended = search(evaluator, url=default_url(folder))
    name = "study-run1"
    if record:
        workload = replace(ended.workload, pipeline=model)
        where = replace(ended.provenance, model_id=model, device_name=model)
        write_record(folder, replace(ended, study=name, workload=workload, provenance=where))
    if pictures:
        place = pictures_path(folder, name)
        place.mkdir(parents=True)
        columns = []
        for part, candidate in to_picture(outcome, Goal(0.02)).items():
            files = [f"{part}-{number}.png" for number in range(2)]
            for file in files:
                pixels = np.random.default_rng(len(part)).integers(0, 255, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(place / file)
            columns.append({"part": part, "candidate": candidate.as_dict(), "files": files})
        prompts = [{"text": prompt, "seed": seed} for seed in range(2)]
        (place / "pictures.json").write_text(json.dumps({"prompts": prompts, "columns": columns}))
    return folder


def add_failure(folder, message):
    """Store a trial that failed in a run folder's study."""
    store = TrialStore(default_url(folder), "study", JointSpace(TARGETS, WORKLOAD).values())
    failed = Candidate({"deepcache": {"cache_interval": 2, "cache_branch_id": 3}})
    store.add(Trial(failed, None, Failure("unknown_error", message, 1.0)), None)


def many_trials(path, count):
    """Write a file of so many trials, each of 64 prompts."""
    rng = np.random.default_rng(0)
    seconds = [0.5] * 4
    base = [float(each) for each in rng.normal(30, 2, 64)]
    trials = []
    for number in range(count):
        params = {
            "gate_step": 5 + number % 15,
            "sp_interval": 2 + number // 15 % 8,
            "fi_interval": 1 + number // 120 % 5,
            "warmup": 1 + number // 600,
        }
        loss = float(rng.gamma(1.5, 0.02))
        speed = 1 + 0.8 * params["sp_interval"] / 9 * (1 - params["gate_step"] / 25)
        trials.append(
            {
                "candidate": {"tgate": params},
                "seconds_per_image": [0.5 / speed * float(rng.normal(1, 0.01)) for _ in range(2)],
                "scores": [each * (1 - loss) for each in base],
                "failure": None,
            }
        )
    content = {
        "format": "accel-search-trials/1",
        "workload": {**asdict(WORKLOAD), "pipeline": "many"},
        "baseline": {"seconds_per_image": seconds, "scores": base},
        "trials": trials,
    }
    path.write_text(json.dumps(content))
    return path
