"""Pictures of a finished search, on a tiny pipeline."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager

import numpy as np
from PIL import Image

from accel_search.core.candidate import Candidate
from accel_search.runtime.pictures import write_pictures
from accel_search.runtime.scoring.similarity import to_bytes

LOG = logging.getLogger("tests.pictures")
DEEP = Candidate({"deepcache": {"cache_interval": 3, "cache_branch_id": 0}})
STEPS = Candidate({"steps": {"num_inference_steps": 1}})


def test_each_candidate_is_pictured_on_the_first_prompts(evaluator_for, tmp_path):
    evaluator = evaluator_for(search=4, batch_size=2)
    evaluator.baseline()
    wanted = {"baseline": Candidate(), "winner": DEEP, "rival": STEPS}
    write_pictures(evaluator, wanted, 3, tmp_path / "p", LOG)
    index = json.loads((tmp_path / "p" / "pictures.json").read_text())
    assert [each["part"] for each in index["columns"]] == ["baseline", "winner", "rival"]
    assert [each["text"] for each in index["prompts"]] == [
        prompt.text for prompt in evaluator.prompts.search[:3]
    ]
    images = {
        each["part"]: [np.asarray(Image.open(tmp_path / "p" / file)) for file in each["files"]]
        for each in index["columns"]
    }
    assert all(len(each) == 3 for each in images.values())
    # The pictures that were scored, not others of the same settings.
    kept = to_bytes(evaluator._caller.call(evaluator.workload, evaluator.prompts.search[:2])[0])
    assert np.array_equal(images["baseline"][1], kept[1].permute(1, 2, 0).numpy())
    assert not np.array_equal(images["winner"][0], images["baseline"][0])
    evaluator.check()


def test_one_that_fails_is_left_out_and_said(evaluator_for, tmp_path, caplog):
    @contextmanager
    def refuses(pipe, candidate):
        raise RuntimeError("no")
        yield

    evaluator = evaluator_for(apply=refuses)
    write_pictures(evaluator, {"baseline": Candidate(), "winner": DEEP}, 2, tmp_path, LOG)
    index = json.loads((tmp_path / "pictures.json").read_text())
    assert [each["part"] for each in index["columns"]] == ["baseline"]
    assert "no images of deepcache" in caplog.text
