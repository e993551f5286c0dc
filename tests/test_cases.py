"""Searches of pipelines of images from a file of cases, by the program, and what they print."""

from __future__ import annotations

import json
import logging
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
from PIL import Image
from scripts.make_random_pipeline import write_controlnet, write_ip_adapter

from accel_search import accelerate
from accel_search.core.tasks import SCALE
from accel_search.errors import ConfigurationError
from accel_search.report.html import script as export
from accel_search.storage.run_reader import read_run
from accel_search.traversal_search import main
from tests.runtime.test_cases import SIDE, draw, write_cases
from tests.support import making
from tests.support.pages import make_run_dir

QUICK = ["--clip_model", "scorer", "--prompts", "cases.csv", "--device", "cpu", "--threads", "1"]
QUICK += ["--steps", "4", "--num_samples", "2", "--held_out_samples", "0", "--timing_pairs", "1"]
QUICK += ["--batch_size", "2", "--quiet"]
SEARCH = ["--max_trials", "2", "--req_score_loss", "1.0", "--trials_out", "trials.json"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    making.make_sd(folder / "sd")
    making.make_sdxl(folder / "sdxl")
    making.make_scorer(folder / "scorer")
    write_controlnet(folder / "net", folder / "sd")
    write_controlnet(folder / "xl_net", folder / "sdxl")
    write_ip_adapter(folder / "adapter", folder / "sd")
    return folder


@pytest.fixture
def there(made, tmp_path, monkeypatch):
    for name in ("sd", "sdxl", "scorer", "net", "xl_net", "adapter"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUNS = {
    "img2img": (["image"], "sd", [], "StableDiffusionImg2ImgPipeline"),
    "img2img XL": (["image"], "sdxl", [], "StableDiffusionXLImg2ImgPipeline"),
    "inpaint": (["image", "mask"], "sd", [], "StableDiffusionInpaintPipeline"),
    "ControlNet": (
        ["control_image"],
        "sd",
        ["--controlnet", "net"],
        "StableDiffusionControlNetPipeline",
    ),
    "two ControlNets": (
        ["control_image", "control_image_2"],
        "sd",
        ["--controlnet", "net:0.5", "--controlnet", "net"],
        "StableDiffusionControlNetPipeline",
    ),
    "IP-Adapter": (["image"], "sd", ["--ip_adapter", "adapter"], "StableDiffusionPipeline"),
    "ControlNet and img2img XL": (
        ["image", "control_image"],
        "sdxl",
        ["--controlnet", "xl_net"],
        "StableDiffusionXLControlNetImg2ImgPipeline",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_search_of_cases_ends_with_a_result_or_without(there, name):
    columns, pipe, options, class_name = RUNS[name]
    write_cases(there, *columns, strength=0.9 if "Img2Img" in class_name else None)
    assert main(["--pipe", pipe, *QUICK, *SEARCH, *options]) in (0, 3)
    trials = json.loads((there / "trials.json").read_text())
    assert trials["workload"]["pipeline_class"] == class_name
    assert trials["workload"]["height"] == trials["workload"]["width"] == SIDE
    assert len(trials["trials"]) == 2
    assert not any(trial["failure"] for trial in trials["trials"])


@pytest.mark.parametrize("candidate", ["tome(0.5,1)", "tgate(3,2,1,1)", "steps(2)"])
def test_every_accelerator_is_measured_on_images(there, candidate):
    write_cases(there, "image", strength=0.9)
    options = [*QUICK, "--steps", "6", "--trials_out", "trials.json", "--candidate", candidate]
    assert main(["--pipe", "sd", *options]) in (0, 3, 7)
    (trial,) = json.loads((there / "trials.json").read_text())["trials"]
    assert trial["failure"] is None and len(trial["scores"]) == 2


CONTROLS = ["control_image", "control_image_2"]
SCRIPTS = {
    "StableDiffusionImg2ImgPipeline": ("sd", ["image"], ()),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl", ["image"], ()),
    "StableDiffusionInpaintPipeline": ("sd", ["image", "mask"], ()),
    "StableDiffusionControlNetPipeline": ("sd", CONTROLS[:1], ("net:0.5",)),
    "StableDiffusionXLControlNetPipeline": ("sdxl", CONTROLS, ("xl_net", "xl_net:0.5")),
    "StableDiffusionControlNetImg2ImgPipeline": ("sd", ["image", *CONTROLS], ("net", "net:2")),
}


@pytest.mark.parametrize("class_name", SCRIPTS)
def test_the_exported_script_loads_the_class_and_runs_as_it_is(there, class_name):
    kind, columns, nets = SCRIPTS[class_name]
    run = read_run(make_run_dir(there / "runs", model=kind, pictures=False))
    size = {"steps": 4, "height": SIDE, "width": SIDE, "call": ()}
    if "image" in columns:
        size["call"] = (("strength", 0.75),)
    names = [SCALE, f"{SCALE}_2"]
    size["call"] += tuple((name, 0.25) for name, _ in zip(names, nets, strict=False))
    load = replace(run.record.workload, pipeline_class=class_name, **size)
    record = replace(run.record, workload=load)
    if nets:
        unsaid = replace(record, asked=replace(record.asked, controlnet=None))
        with pytest.raises(ConfigurationError, match="does not say its ControlNets"):
            export.script(replace(run, record=unsaid))
    record = replace(record, asked=replace(record.asked, controlnet=nets))
    export.write_script(replace(run, record=record), there / "fast.py")
    for column in columns:
        draw(there / f"{column}.png", 1, "L" if column == "mask" else "RGB")
    variables = runpy.run_path("fast.py")
    assert type(variables["pipe"]).__name__ == class_name
    assert Image.open("fast.png").size == (SIDE, SIDE)
    assert len(variables["pipe"].scheduler.timesteps) == 4
    assert variables["pipe"].num_timesteps == (3 if "image" in columns else 4)
    text = (there / "fast.py").read_text()
    assert ("0.25" in text) == bool(nets) and ("[0.25, 0.25]" in text) == (len(nets) == 2)


@pytest.mark.parametrize(
    "place", ["adapter", "adapter/ip-adapter.safetensors", "other/ip.safetensors"]
)
def test_the_exported_script_loads_the_ip_adapter(there, place):
    name = "ip-adapter.safetensors"
    if place.startswith("other"):  # As the hub's repository has those of SDXL.
        shutil.copytree("adapter/image_encoder", "models/image_encoder")
        Path("other").mkdir()
        shutil.copy("adapter/ip-adapter.safetensors", place)
        name = "ip.safetensors (models/image_encoder)"
    run = read_run(make_run_dir(there / "runs", model="sd", pictures=False))
    load = replace(run.record.workload, steps=4, height=SIDE, width=SIDE)
    where = replace(run.record.where, ip_adapter=f"{name}@0123456789abcdef × 0.5")
    asked = replace(run.record.asked, ip_adapter=place, ip_adapter_scale=0.5)
    record = replace(run.record, workload=load, provenance=where, asked=asked)
    export.write_script(replace(run, record=record), there / "fast.py")
    draw(there / "ip_adapter_image.png", 1)
    pipe = runpy.run_path("fast.py")["pipe"]
    scales = {
        processor.scale[0]
        for processor in pipe.unet.attn_processors.values()
        if hasattr(processor, "scale")
    }
    assert scales == {0.5} and Image.open("fast.png").size == (SIDE, SIDE)


def test_a_pipeline_takes_the_result_of_its_own_class_before_that_of_its_family(there, caplog):
    """Both as a search writes them; the result of text to image is the faster one."""
    entries = {}
    for class_name, interval in (
        ("StableDiffusionImg2ImgPipeline", 2),
        ("StableDiffusionPipeline", 5),
    ):
        key = (class_name, "DDIMScheduler", "4", "upbound_speedup", 1.0, ["deepcache"])
        settings = {"deepcache": {"cache_interval": interval, "cache_branch_id": 0}}
        entries[str(key)] = {"speedup": float(interval), "score_loss": 0.0, "settings": settings}
    (there / "search_params.json").write_text(json.dumps(entries))
    pipe = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained("sd", safety_checker=None)
    with caplog.at_level(logging.WARNING), accelerate(pipe, scheduler="DDIM", steps=4) as handle:
        assert handle.candidate["deepcache"]["cache_interval"] == 2
        image = Image.open(draw(there / "image.png", 1))
        pipe("a red ring", image=image, num_inference_steps=4)
    assert "searched on" not in caplog.text
    text = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    with accelerate(text, scheduler="DDIM", steps=4) as handle:
        assert handle.candidate["deepcache"]["cache_interval"] == 5
