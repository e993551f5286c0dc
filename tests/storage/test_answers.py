"""One rule says which stored result answers: a table of single differences for all who ask."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from accel_search.search.space import JointSpace
from accel_search.session import explore, open_store
from accel_search.settings import Settings
from accel_search.storage import answers, choice, lookup, speedup_bounds
from accel_search.storage.entries import SearchEntry
from accel_search.storage.json_files import as_type
from accel_search.storage.keys import Configuration
from accel_search.storage.search_results import save_winner
from accel_search.sweep.status import status_of
from tests.support.fakes import PROVENANCE, WORKLOAD, FakeEvaluator

ROOT = Path(__file__).parents[2]
STORED_BY = Settings(max_trials=400)
EVERYWHERE = {"resume", "sweep", "verify", "accelerate"}
HERE = {"resume", "sweep"}  # The others measure again, or are told what the user wants to know.

# Name -> what is asked otherwise, how it shows in a provenance, and who is not answered.
DIFFERENCES = {
    "nothing": ({}, {}, set()),
    "sched": ({"sched": "UniPC"}, {}, EVERYWHERE),
    "steps": ({"steps": 25}, {}, EVERYWHERE),
    "targets": ({"targets": ("tome",)}, {}, EVERYWHERE),
    "req_score_loss": ({"req_score_loss": 0.3}, {}, EVERYWHERE),
    "threads": ({"threads": 8}, {"threads": 8}, HERE),
    "memory_limit": ({"memory_limit": 8.0}, {"memory_limit": 8.0}, HERE),
    "batch_size": ({"batch_size": 2}, {"batch_size": 2}, HERE),
    "compile": ({"compile": True}, {"compiled": True}, HERE),
    "offload": ({"offload": True}, {"offload": "model"}, HERE),
    "num_samples": ({"num_samples": 8}, {"prompt_set_hash": "other"}, HERE),
    "device": ({}, {"device_name": "other"}, HERE),
    "versions": ({}, {"versions": {"torch": "0"}}, HERE),
    "implementation": (
        {"implementation": "package"},
        {"implementation": "package"},
        HERE | {"verify"},
    ),
    "a package that was not used": ({}, {"versions": {"torch": "2.15.0", "tomesd": "0"}}, set()),
    "min_ssim": ({"min_ssim": 0.9}, {}, HERE),
    "max_tail_loss": ({"max_tail_loss": 0.9}, {}, HERE),
    "more pairs": ({"timing_pairs": 5}, {}, HERE),
    "fewer pairs": ({"timing_pairs": 2}, {}, set()),
    "grid": ({"strategy": "grid"}, {}, HERE),
    "strategy": ({"strategy": "random"}, {}, set()),
    "budget": ({"max_trials": 10}, {}, set()),
    "trial_timeout": ({"trial_timeout": 60.0}, {}, set()),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a file of results and one of bounds, from one exploration that was settled."""
    folder = tmp_path_factory.mktemp("answers")
    found = explore(replace(STORED_BY, run_dir=str(folder)), FakeEvaluator(), logging.getLogger())
    assert found.entry.evidence.search_settled
    speedup_bounds.save(folder / "bounds.json", found.key, found.label, found.entry)
    save_winner(folder / "params.json", found.key, found.winner)
    return folder / "params.json", folder / "bounds.json"


def unanswered(files, settings, provenance):
    """Return who is not answered from the files."""
    params, bounds = files
    content = json.loads(params.read_text())
    load = replace(WORKLOAD, scheduler_class=settings.scheduler_class, steps=settings.steps)
    values = JointSpace(settings.targets, load, settings.space).values()
    entry, _ = answers.stored_answer(params, load, settings, values, provenance)
    configuration = Configuration("demo", settings.sched, settings.steps, settings.targets[0])
    machine = {name: provenance.as_dict()[name] for name in ("device_name", "driver", "versions")}
    status = status_of(json.loads(bounds.read_text()), configuration, settings, machine)
    wanted = lookup.Wanted(
        load.pipeline_class, load.scheduler_class, load.steps, settings.targets,
        settings.req_score_loss,
    )  # fmt: skip
    answered = {
        "resume": entry is not None,
        "sweep": status.state == "done",
        "verify": bool(answers.answering(content, settings, load)),
        "accelerate": choice.holds_any(params, wanted),
    }
    return {user for user, is_answered in answered.items() if not is_answered}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_single_difference_counts_for_all_who_ask_for_it(files, name):
    asked, measured, expected = DIFFERENCES[name]
    settings = replace(STORED_BY, **asked)
    assert unanswered(files, settings, replace(PROVENANCE, **measured)) == expected


@pytest.mark.parametrize(
    "name", ["threads", "memory_limit", "batch_size", "more pairs", "compile", "implementation"]
)
def test_trials_are_shared_by_the_same_rule(tmp_path, name):
    asked, measured, _ = DIFFERENCES[name]
    stores = []
    for settings, where in (
        (STORED_BY, PROVENANCE),
        (replace(STORED_BY, max_trials=3), PROVENANCE),  # Another goal shares the samples.
        (replace(STORED_BY, **asked), replace(PROVENANCE, **measured)),
    ):
        evaluator = FakeEvaluator()
        evaluator.provenance = where
        space = JointSpace(settings.targets, WORKLOAD, settings.space)
        stores.append(
            open_store(
                replace(settings, run_dir=str(tmp_path)), evaluator, space.values(), "deepcache"
            ).name
        )
    assert stores[0] == stores[1] != stores[2]


def test_what_is_committed_is_answered_as_it_was():
    content = json.loads((ROOT / "search_params.json").read_text())
    (key, value), *_ = content.items()
    entry = as_type(value, SearchEntry)
    provenance = type(PROVENANCE)(**value["provenance"])
    values = value["evidence"]["search"]["values"]
    for asked in ({}, {"req_speedup": 2.5}, {"strategy": "bayes"}, {"timing_pairs": 2}):
        found = answers.stored_answer(
            ROOT / "search_params.json", WORKLOAD, Settings(**asked), values, provenance
        )
        assert found == (entry, [])
    # It lists the packages, which its own search did not use; a search today lists none of them.
    others = {"deepcache", "tgate", "tomesd"}
    assert others <= set(provenance.versions)
    kept = {name: own for name, own in provenance.versions.items() if name not in others}
    for versions in (kept, kept | dict.fromkeys(others, "9")):
        here = replace(provenance, versions=versions)
        assert answers.stored_answer(
            ROOT / "search_params.json", WORKLOAD, Settings(), values, here
        ) == (entry, [])
    theirs = replace(provenance, implementation="package")
    assert answers.stored_answer(
        ROOT / "search_params.json", WORKLOAD, Settings(implementation="package"), values, theirs
    ) == (None, [])
    content = json.loads((ROOT / "speedup_bounds.json").read_text())
    states = []
    for stored in lookup.bounds(content):
        targets = tuple(stored.key.targets)
        short = {"DDIMScheduler": "DDIM", "UniPCMultistepScheduler": "UniPC"}
        settings = Settings(
            pipe=stored.entry.model,
            sched=short.get(stored.key.scheduler_class, "DPM-Solver++"),
            steps=int(stored.key.steps),
            targets=targets,
            latency_only=stored.entry.latency_only,
            **{
                name: value
                for name, value in stored.entry.asked.items()
                if name not in ("space", "req_score_loss")
            },
        )
        machine = {"device_name": stored.entry.provenance.device_name}
        name = Configuration(settings.pipe, settings.sched, settings.steps, "+".join(targets))
        states.append(status_of(content, name, settings, machine).state)
        limited = replace(settings, memory_limit=8.0)
        assert status_of(content, name, limited, machine).state == "open"
    assert states and set(states) == {"done"}


def test_versions_of_packages_count_where_they_were_used():
    used = replace(
        PROVENANCE, implementation="package", versions={"torch": "2.15.0", "deepcache": "0.1.1"}
    )
    for versions, differing in (
        ({"deepcache": "0.1.1", "tomesd": "0"}, []),
        ({"deepcache": "0.2"}, ["versions"]),
        ({}, ["versions"]),
    ):
        here = replace(used, versions={"torch": "2.15.0"} | versions)
        assert here.differences(used.as_dict()) == differing
    assert used.differences(PROVENANCE.as_dict()) == ["implementation"]
    assert PROVENANCE.differences(used.as_dict()) == ["versions", "implementation"]
    assert "implementation" not in PROVENANCE.identity()
