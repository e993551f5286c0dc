"""Results of several workloads in one file: nothing is lost, and each is found again."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from accel_search.api import load_best
from accel_search.errors import ConfigurationError
from accel_search.report.console.summary import snippet
from accel_search.search.space import JointSpace
from accel_search.storage.answers import stored_answer
from accel_search.storage.choice import find_result
from accel_search.storage.lookup import Wanted, results
from accel_search.storage.search_results import save
from accel_search.storage.workloads import held
from tests.support.fakes import PROVENANCE, WORKLOAD
from tests.support.results import GRID, searched

ROOT = Path(__file__).parents[2]


def slower(factor):
    """Return a truth by which everything is slower than on the fake."""

    def truth(candidate):
        params = candidate["deepcache"]
        interval, branch = params["cache_interval"], params["cache_branch_id"]
        speedup = 1 + (0.4 * (interval - 1) - 0.1 * branch) * factor
        return speedup, 0.001 * interval**3 / (1 + branch)

    return truth


def search(path, provenance=PROVENANCE, factor=1.0):
    settings = GRID(batch_size=provenance.batch_size)
    return searched(path, settings, provenance, truth=slower(factor))


def answer(path, provenance):
    settings = GRID(batch_size=provenance.batch_size)
    space = JointSpace(settings.targets, WORKLOAD, settings.space)
    return stored_answer(path, WORKLOAD, settings, space.values(), provenance)


@pytest.mark.parametrize(
    "others",
    [
        {"batch_size": 1},
        {"height": 192},
        {"guidance_scale": 1.0},
        {"dtype": "float16"},
        {"weights": "0123456789abcdef"},
        {"scheduler": {"timestep_spacing": "trailing"}},
        {"vae": "other@0123"},
        {"offload": "model"},
        {"compiled": True},
        {"revision": "abc"},
        {"device_name": "another"},
        {"versions": {"torch": "2.16.0"}},
        {"prompt_set_hash": "f" * 16},
    ],
    ids=lambda others: next(iter(others)),
)
def test_another_workload_is_searched_anew_and_removes_nothing(tmp_path, others):
    path = tmp_path / "f.json"
    first = search(path)
    elsewhere = replace(PROVENANCE, **others)
    assert answer(path, elsewhere) == (None, list(others))
    second = search(path, elsewhere, 0.5)
    assert second.speedup < first.speedup
    assert answer(path, PROVENANCE)[0] == first and answer(path, elsewhere)[0] == second
    # Under the shared key both, the flat fields being the latest's; under the speedups one each.
    content = json.loads(path.read_text())
    (shared,) = (value for value in content.values() if len(held(value)) == 2)
    assert shared["speedup"] == second.speedup and len(content) == 3
    # The same again takes its own place alone.
    again = search(path, elsewhere, 0.4)
    assert answer(path, PROVENANCE)[0] == first and answer(path, elsewhere)[0] == again
    assert len(list(results(json.loads(path.read_text())))) == 4


def test_a_result_is_chosen_by_the_size_of_the_call(tmp_path, caplog):
    path = tmp_path / "f.json"
    one = replace(PROVENANCE, batch_size=1, date="2026-01-02T00:00:00+00:00")
    tall = replace(PROVENANCE, height=192, date="2026-01-03T00:00:00+00:00")
    four = search(path)
    single = search(path, one, 0.5)
    high = search(path, tall, 0.4)
    assert load_best(path, batch_size=1) == single.settings
    assert load_best(path, height=192, batch_size=4) == high.settings
    assert load_best(path, height=128, batch_size=4, guidance_scale=4.0) == four.settings
    assert not caplog.records
    # Not the fastest of all, which was measured at another size: the latest, and it is said.
    assert find_result(path).entry == high
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path}: holds results of other height, batch size, too; taking those measured last "
        "(height=192, batch_size=4): say which with height=, batch_size="
    )
    with pytest.raises(ConfigurationError, match="batch_size=8, but with batch_size=1 or batch_si"):
        load_best(path, batch_size=8)


def test_the_printed_lines_find_their_result_after_others_were_searched(tmp_path):
    path = str(tmp_path / "f.json")
    settings = GRID(output=path)
    four = search(Path(path))
    single = search(Path(path), replace(PROVENANCE, batch_size=1), 0.5)
    lines = "\n".join(snippet(four, settings, WORKLOAD))
    assert "batch_size=4" in lines and "height" not in lines
    assert "batch_size=1" in "\n".join(snippet(single, settings, WORKLOAD))


def test_of_one_workload_what_other_versions_measured_is_not_taken(tmp_path):
    path = tmp_path / "f.json"
    search(path)
    new = replace(PROVENANCE, versions={"torch": "2.16.0"}, date="2026-02-01T00:00:00+00:00")
    entry = search(path, new, 0.5)
    assert find_result(path).entry == entry


def test_what_a_pipeline_shows_goes_before_what_was_measured_last(tmp_path, caplog):
    path = tmp_path / "f.json"
    half = replace(PROVENANCE, dtype="float16", weights="aa", date="2026-01-02T00:00:00+00:00")
    full = search(path, replace(PROVENANCE, weights="bb"))
    other = search(path, half, 0.5)
    assert find_result(path, near={"dtype": ["float32"]}).entry == full
    assert find_result(path, near={"weights": ["bb", "cc"]}).entry == full
    assert find_result(path, near={"weights": ["cc"], "dtype": ["float16"]}).entry == other
    assert not caplog.records


def test_samplers_of_one_class_are_named_where_they_choose(tmp_path, caplog):
    path = tmp_path / "f.json"
    karras, sde = {"use_karras_sigmas": True}, {"algorithm_type": "sde-dpmsolver++"}
    for options, factor in ((karras, 1.0), ({**karras, **sde}, 0.5)):
        provenance = replace(PROVENANCE, scheduler=options)
        workload = replace(WORKLOAD, scheduler_class="DPMSolverMultistepScheduler")
        entry = search(path, provenance, factor)
        save(path, workload, GRID(), entry)
    names = re.escape('give scheduler="DDIM" or "DPM++ 2M Karras" or "DPM++ 2M SDE Karras"')
    with pytest.raises(ConfigurationError, match=names):
        load_best(path, scheduler="UniPC")
    caplog.clear()
    load_best(path, scheduler="DPM++ 2M SDE Karras")
    assert "(scheduler='DPM++ 2M SDE Karras'): say which with scheduler=" in caplog.text


def test_twelve_workloads_of_four_processes_at_once_are_all_kept(tmp_path):
    path = tmp_path / "f.json"
    script = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from tests.support.fakes import PROVENANCE\n"
        "from tests.storage.test_workloads import search\n"
        "for batch in range(int(sys.argv[2]), int(sys.argv[2]) + 3):\n"
        "    search(Path(sys.argv[1]), replace(PROVENANCE, batch_size=batch))\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    started = [subprocess.Popen([*command, str(n)], cwd=ROOT) for n in (1, 4, 7, 10)]
    assert [process.wait() for process in started] == [0] * 4
    kept = list(results(json.loads(path.read_text()), strict=True))
    batches = [stored.entry.where.batch_size for stored in kept if stored.key.goal != 1.9]
    assert sorted(batches) == list(range(1, 13))
    for batch in range(1, 13):
        assert find_result(path, Wanted(provenance={"batch_size": batch})).entry.speedup > 1
