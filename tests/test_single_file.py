"""The programs on a pipeline in one file, and what they say of one that is refused."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from scripts.make_random_pipeline import main as make
from scripts.make_random_pipeline import write_pipeline, write_single_file

from accel_search import accelerate
from accel_search.core.paths import PICKLES
from accel_search.errors import ConfigurationError
from accel_search.explore_upper_bounds import main as explore
from accel_search.option_checks import conversion_line
from accel_search.settings import Settings
from accel_search.storage.lookup import is_same_model
from accel_search.storage.run_reader import read_run
from accel_search.sweep.settings import SweepSettings
from accel_search.traversal_search import main
from accel_search.write_report import main as report
from tests.runtime.test_cases import write_cases
from tests.support import making
from tests.support.fakes import PROVENANCE
from tests.support.results import GRID
from tests.support.results import searched as fake_searched

PATH = {"PATH": str(Path(sys.executable).parent) + ":/usr/bin:/bin"}
QUICK = """
height = 32
width = 32
steps = 3
device = "cpu"
threads = 1
num_samples = 2
held_out_samples = 0
timing_pairs = 1
batch_size = 2
req_score_loss = 1.0
strategy = "grid"
prompts = "prompts.txt"
clip_model = "scorer"
[space.deepcache]
cache_interval = [2]
cache_branch_id = [0]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder and a file of the same weights, with what a search needs beside them."""
    folder = tmp_path_factory.mktemp("made")
    write_pipeline(folder / "sd15", "SD1.5", width="narrow")
    write_single_file(folder / "sd15.safetensors", folder / "sd15", "SD1.5")
    making.make_scorer(folder / "scorer")
    making.make_prompts(folder / "prompts.txt")
    (folder / "quick.toml").write_text(QUICK)
    return folder


@pytest.fixture
def there(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


@pytest.fixture(scope="module")
def searched(made):
    """Results of the file and of the folder, in files of their own: name -> path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        for name, pipe in (("file", "sd15.safetensors"), ("folder", "sd15")):
            files = ["--output", f"{name}.json", "--run_dir", f"runs_{name}"]
            files += ["--trials_out", f"trials_{name}.json", "--log_file", f"{name}.log"]
            assert main(["--config", "quick.toml", "--pipe", pipe, *files, "--quiet"]) in (0, 3)
    return made


def test_a_search_of_a_file_has_the_scores_of_its_folder(searched):
    mine, theirs = (
        json.loads((searched / f"trials_{name}.json").read_text()) for name in ("file", "folder")
    )
    assert mine["baseline"]["scores"] == pytest.approx(theirs["baseline"]["scores"], abs=0.01)
    assert len(mine["trials"]) == len(theirs["trials"]) == 1
    for one, other in zip(mine["trials"], theirs["trials"], strict=True):
        assert one["candidate"] == other["candidate"]
        assert one["scores"] == pytest.approx(other["scores"], abs=0.01)
    assert mine["workload"]["pipeline"] == "sd15.safetensors"


def test_the_provenance_tells_the_file_from_the_folder(searched):
    wheres = [read_run(searched / f"runs_{name}").record.where for name in ("file", "folder")]
    assert [where.model_id for where in wheres] == ["sd15.safetensors", "sd15"]
    assert len({where.weights for where in wheres}) == 2 and all(w.weights for w in wheres)
    assert wheres[0].scheduler == wheres[1].scheduler


def test_the_script_of_a_file_loads_it_and_says_what_it_predicts(searched, monkeypatch, tmp_path):
    """With the configurations that diffusers would fetch taken from the folder."""
    from diffusers import StableDiffusionPipeline

    monkeypatch.chdir(searched)
    assert report(["runs_file", "--export", str(tmp_path / "fast.py")]) == 0
    text = (tmp_path / "fast.py").read_text()
    assert "StableDiffusionPipeline.from_single_file(MODEL, dtype=dtype)" in text
    assert "from_pretrained" not in text and "prediction_type='epsilon'" in text
    original = StableDiffusionPipeline.from_single_file.__func__

    def offline(cls, *args, **options):
        return original(cls, *args, config="sd15", local_files_only=True, **options)

    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", classmethod(offline))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    exec(  # noqa: S102
        compile(text.replace('"fast.png"', repr(str(tmp_path / "f.png"))), "fast.py", "exec"), {}
    )
    assert (tmp_path / "f.png").stat().st_size > 1000


def test_zero_terminal_snr_is_in_the_script_too():
    from accel_search.report.html.script import _predicting

    assert _predicting({"beta_schedule": "linear"}) == {"prediction_type": "'epsilon'"}
    scheduler = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert _predicting({"prediction_type": "v_prediction", **scheduler}) == {
        "prediction_type": "'v_prediction'",
        "rescale_betas_zero_snr": "True",
        "timestep_spacing": "'trailing'",
    }


def test_a_result_of_a_file_is_found_by_its_pipeline(there, caplog, tmp_path):
    from diffusers import StableDiffusionPipeline

    from accel_search.runtime.loading.pipelines import load_pipeline

    settings = Settings(pipe="sd15.safetensors", device="cpu")
    ours, _ = load_pipeline(settings, logging.getLogger("test"))
    theirs = StableDiffusionPipeline.from_single_file(
        "sd15.safetensors", config="sd15", local_files_only=True
    )
    path = tmp_path / "results.json"
    fake_searched(path, GRID(), replace(PROVENANCE, model_id=str(there / "sd15.safetensors")))
    options = {"scheduler": "DDIM", "quiet": True}

    # diffusers does not keep where a single file was: the only result is taken, with a warning.
    for pipe, is_known in ((ours, True), (theirs, False)):
        caplog.clear()
        with accelerate(pipe, path, **options) as applied:
            assert applied.candidate
        assert ("the pipeline was loaded from elsewhere" in caplog.text) is not is_known
    fake_searched(path, GRID(), replace(PROVENANCE, model_id="another/model"))
    with accelerate(ours, path, **options):
        pass
    with pytest.raises(ConfigurationError, match="say whose with model="):
        accelerate(theirs, path, **options)
    caplog.clear()
    with accelerate(theirs, path, model="./sd15.safetensors", **options):
        assert not caplog.records


def test_a_file_is_the_same_model_under_any_of_its_names(there):
    assert is_same_model("sd15.safetensors", str(there / "sd15.safetensors"))
    assert not is_same_model("sd15.safetensors", "sd15")


def said(capsys, *words, program=main) -> str:
    """The one line of a command that is refused with code 2."""
    assert program(list(words)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("ending", PICKLES)
def test_a_pickle_is_refused_with_the_line_that_converts_it(there, capsys, tmp_path, ending):
    pickled = tmp_path / f"my model{ending}"
    torch.save({}, pickled)
    line = said(capsys, "--pipe", str(pickled))
    assert "is a pickle, which can run code" in line
    assert conversion_line(pickled) in line
    line = said(capsys, "--models", str(pickled), "--dry_run", program=explore)
    assert conversion_line(pickled) in line


def test_the_line_converts(there, capsys, tmp_path):
    """As it is printed: tensors that share storage, are no contiguous ones, or are no tensors."""
    weights = load_file("sd15.safetensors")
    first = next(iter(weights))
    weights["copy"] = weights[first]
    weights["turned"] = torch.arange(6).reshape(2, 3).T
    pickled = tmp_path / "my 'model'.ckpt"
    torch.save({"state_dict": {**weights, "step": 3}, "epoch": 1}, pickled)
    command = re.search(r"`(python -c .*)`", said(capsys, "--pipe", str(pickled)))[1]

    subprocess.run(["bash", "-c", command], check=True, env=PATH)

    made = load_file(pickled.with_suffix(".safetensors"))
    assert made.keys() == weights.keys()
    assert all(torch.equal(made[name], weights[name]) for name in weights)
    # Which another run of the command would overwrite.
    line = said(capsys, "--pipe", str(pickled))
    assert f"give {pickled.with_suffix('.safetensors')}, which lies beside it" in line


def test_the_line_runs_no_code_of_the_file(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "x.ckpt")
    command = conversion_line(tmp_path / "x.ckpt").strip("`")
    done = subprocess.run(
        ["bash", "-c", command],
        env=PATH,
        capture_output=True,
        check=False,
    )
    assert done.returncode and not (tmp_path / "ran").exists()
    assert not (tmp_path / "x.safetensors").exists()


def test_what_cannot_be_loaded_is_said_before_torch_is_imported(there, tmp_path):
    torch.save({}, tmp_path / "x.ckpt")
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    write_sd2(tmp_path / "sd2.safetensors")
    code = (
        "import sys\n"
        "from accel_search.traversal_search import main\n"
        "codes = [main(['--pipe', each, '--quiet']) for each in sys.argv[1:]]\n"
        "print(codes, {'torch', 'diffusers'} & set(sys.modules))"
    )
    files = [str(tmp_path / name) for name in ("x.ckpt", "lora.safetensors", "sd2.safetensors")]
    files += [str(tmp_path / "none.safetensors")]
    done = subprocess.run(
        [sys.executable, "-c", code, *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[2, 5, 2, 5] set()"
    assert len(done.stderr.splitlines()) == 4
    assert "no such file; check the spelling" in done.stderr.splitlines()[-1]


def write_sd2(path) -> None:
    """A file that looks like SD2.x and does not say what it predicts."""
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
        "model.diffusion_model.out.2.weight": (4, 8, 3, 3),
        "cond_stage_model.model.positional_embedding": (77, 8),
    }
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)


def test_options_of_files_are_refused_for_others_and_needed_for_sd2(there, capsys, tmp_path):
    line = said(capsys, "--pipe", "sd15", "--prediction_type", "epsilon")
    assert "is for a .safetensors file, and the scheduler's configuration says it" in line
    line = said(capsys, "--pipe", "SDXL", "--prediction_type", "epsilon", "--latency_only")
    assert "leave it out" in line
    line = said(capsys, "--replay", "x.json", "--prediction_type", "epsilon")
    assert "--replay loads no pipeline" in line
    line = said(capsys, "--pipe", "sd15.safetensors", "--prediction_type", "v")
    assert "expected one of epsilon, v_prediction" in line
    line = said(capsys, "--pipe", "sd15.safetensors", "--revision", "main")
    assert "is a file, and only a repository of the hub has revisions" in line
    write_sd2(tmp_path / "sd2.safetensors")
    line = said(capsys, "--pipe", str(tmp_path / "sd2.safetensors"), "--quiet")
    assert "give --prediction_type v_prediction" in line
    # A sweep says it before the first configuration runs; what cannot be loaded waits its turn.
    with pytest.raises(ConfigurationError, match="give --prediction_type v_prediction"):
        SweepSettings(models=("demo", str(tmp_path / "sd2.safetensors")))
    (tmp_path / "broken.safetensors").touch()
    assert SweepSettings(models=("demo", str(tmp_path / "broken.safetensors"))).table


def test_the_script_writes_both_and_refuses_what_a_file_cannot_tell(tmp_path, capsys):
    out = ["--out", str(tmp_path / "x"), "--single_file", str(tmp_path / "x.safetensors")]
    with pytest.raises(SystemExit):
        make(["--like", "SD1.5", *out])
    assert "give narrow or full" in capsys.readouterr().err
    assert make(["--like", "SD1.5", "--width", "narrow", *out]) == 0
    assert len(load_file(tmp_path / "x.safetensors")) > 900
    shutil.rmtree(tmp_path / "x")


def test_an_inpainting_file_takes_images_and_masks(there, capsys):
    weights = load_file("sd15.safetensors")
    name = "model.diffusion_model.input_blocks.0.0.weight"
    more = torch.randn(weights[name].shape[0], 5, 3, 3) * 0.02
    weights[name] = torch.cat([weights[name], more], 1)
    save_file(weights, "inpainting.safetensors", metadata={"format": "pt"})
    write_cases(there, "image", "mask")
    files = ["--output", "i.json", "--run_dir", "i", "--trials_out", "i.trials.json", "--quiet"]
    search = ["--config", "quick.toml", "--pipe", "inpainting.safetensors", *files]
    assert main(search) == 5
    said = "is an inpainting model, whose UNet takes 9 channels and makes 4; give images and masks"
    assert said in capsys.readouterr().err
    assert main([*search, "--prompts", "cases.csv"]) in (0, 3)
    trials = json.loads((there / "i.trials.json").read_text())
    assert trials["workload"]["pipeline_class"] == "StableDiffusionInpaintPipeline"
    assert len(trials["trials"]) == 1 and trials["trials"][0]["failure"] is None
