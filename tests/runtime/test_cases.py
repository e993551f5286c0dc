"""Searches on cases: the pictures are those of a diffusers script, row by row."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils import load_image
from PIL import Image
from scripts.make_random_pipeline import write_controlnet, write_ip_adapter

from accel_search.accelerators.compose import apply_candidate
from accel_search.accelerators.computation import effective_workload
from accel_search.core.candidate import Candidate
from accel_search.errors import ConfigurationError, LoadError
from accel_search.runtime.loading.controlnets import find_controlnet
from accel_search.runtime.loading.ip_adapters import find_ip_adapter
from accel_search.runtime.loading.prompts import load_prompts
from accel_search.runtime.quiet import quiet_libraries
from accel_search.runtime.workbench import Workbench
from tests.support.generation import generate
from tests.support.hub import Repository
from tests.support.pipelines import LOG

SIDE = 32
"""Pixels of the tiny pipelines' pictures."""
STEPS = 6
SIZES = {"num_samples": 2, "held_out_samples": 0, "batch_size": 2, "timing_pairs": 1}


TGATE = Candidate({"tgate": {"gate_step": 2, "sp_interval": 2, "fi_interval": 1, "warmup": 1}})
TOME = Candidate({"tome": {"ratio": 0.5, "max_downsample": 2}})
DEEPCACHE = Candidate({"deepcache": {"cache_interval": 2, "cache_branch_id": 0}})


def draw(path, seed, mode="RGB", side=SIDE):
    """Write a picture of coloured blocks, or a mask of its left half."""
    if mode == "L":
        pixels = np.zeros((side, side), np.uint8)
        pixels[:, : side // 2] = 255
    else:
        blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        pixels = blocks.repeat(side // 4, 0).repeat(side // 4, 1)
    Image.fromarray(pixels).save(path)
    return path


def write_cases(folder, *columns, strength=None):
    """Write two cases of one prompt with images in `columns`, and return the file."""
    names = ["prompt", "seed", *columns, *(["strength"] if strength else [])]
    lines = [",".join(names)]
    for row in range(2):
        files = []
        for number, column in enumerate(columns):
            files.append(f"images/{column}{row}.png")
            (folder / "images").mkdir(exist_ok=True)
            draw(folder / files[-1], 10 * row + number, "L" if column == "mask" else "RGB")
        cells = ["a red ring", str(7 + row), *files, *([str(strength)] if strength else [])]
        lines.append(",".join(cells))
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    return folder / "cases.csv"


def by_hand(folder, arguments):
    """Return seed and arguments of the script's call of each of those cases."""
    return [
        (
            7 + row,
            {"prompt": "a red ring"}
            | {
                argument: load_image(str(folder / f"images/{column}{row}.png"))
                for column, argument in arguments.items()
            },
        )
        for row in range(2)
    ]


def bench_of(settings):
    """Return pipeline, evaluator and cases of settings, the cases in the file's order."""
    bench = Workbench(settings, LOG)
    evaluator = bench.evaluator(settings)
    cases = sorted(evaluator.prompts.search, key=lambda case: case.seed)
    return bench._pipe, evaluator, cases


def assert_as_script(pipe, load, cases, expected):
    """Compare pictures, bit by bit where each is made alone, and in one batch."""
    alone = torch.cat([generate(pipe, load, [case]) for case in cases])
    assert torch.equal(alone, expected)
    assert torch.allclose(generate(pipe, load, cases), expected, atol=1e-4)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


def script(
    folder, steps, calls, cls="DiffusionPipeline", sched="DDIMScheduler", made=None, **parts
):
    """Return the pictures of a script, `[N, 3, H, W]`: one call for each case."""
    pipe = getattr(diffusers, cls).from_pretrained(folder, **parts)
    config = pipe.scheduler.config
    plain = {"clip_sample": False} if sched == "DDIMScheduler" else {}
    pipe.scheduler = getattr(diffusers, sched).from_config(config, **plain)
    pipe.set_progress_bar_config(disable=True)
    if made is not None:
        made(pipe)
    pictures = []
    for seed, options in calls:
        generator = torch.Generator("cpu").manual_seed(seed)
        call = {"num_inference_steps": steps, "output_type": "pt", "generator": generator}
        pictures.append(pipe(**call, **options).images)
    return torch.cat(pictures)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_seeds_and_negative_prompts_of_rows_are_those_of_a_script(
    settings_for, made, tmp_path, kind
):
    (tmp_path / "cases.csv").write_text(
        "prompt,negative_prompt,seed\na red ring,a blurry circle,7\na red ring,,8\n"
    )
    settings = settings_for(kind, prompts=str(tmp_path / "cases.csv"), **SIZES)
    with quiet_libraries():
        bench = Workbench(settings, LOG)
        evaluator = bench.evaluator(settings)
        cases = sorted(evaluator.prompts.search, key=lambda case: case.seed)
        load, pipe = evaluator.workload, bench._pipe
        size = {"height": load.height, "width": load.width}
        calls = [
            (7, {"prompt": "a red ring", "negative_prompt": "a blurry circle", **size}),
            (8, {"prompt": "a red ring", "negative_prompt": "", **size}),
        ]
        expected = script(made / kind, settings.steps, calls)
        alone = torch.cat([generate(pipe, load, [case]) for case in cases])
        assert torch.equal(alone, expected)
        assert torch.allclose(generate(pipe, load, cases), expected, atol=1e-4)
        assert evaluator.baseline().scores


def test_a_negative_prompt_that_changes_nothing_is_one_line(settings_for, tmp_path):
    (tmp_path / "cases.csv").write_text("prompt,negative_prompt\na,x\nb,\n")
    settings = settings_for(prompts=str(tmp_path / "cases.csv"), guidance_scale=1.0, **SIZES)
    said = "without guidance (--guidance_scale 1) its column negative_prompt changes nothing"
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        Workbench(settings, LOG).evaluator(settings)


IMAGES = {
    "img2img": {"image": "image"},
    "inpaint": {"image": "image", "mask": "mask_image"},
}
NAMES = {"img2img": "Img2Img", "inpaint": "Inpaint"}
CONTROLLED = {
    "controlnet": {"control_image": "image"},
    "controlnet_img2img": {"image": "image", "control_image": "control_image"},
    "controlnet_inpaint": {
        "image": "image",
        "mask": "mask_image",
        "control_image": "control_image",
    },
}
CONTROL_NAMES = {
    "controlnet": "ControlNet",
    "controlnet_img2img": "ControlNetImg2Img",
    "controlnet_inpaint": "ControlNetInpaint",
}


@pytest.fixture(scope="session")
def nets(made):
    """Two ControlNets for each of the pipelines: `sd_net0`, …."""
    for kind in ("sd", "sdxl"):
        for seed in range(2):
            write_controlnet(made / f"{kind}_net{seed}", made / kind, seed=seed + 1)
    return made


@pytest.mark.parametrize(
    ("kind", "task", "sched", "strength"),
    [
        ("sd", "img2img", "DDIM", 0.5),
        ("sd", "img2img", "Heun", 0.5),
        ("sd", "img2img", "PNDM", 0.7),
        ("sd", "img2img", "DPM++ 2M", None),
        ("sdxl", "img2img", "DDIM", 0.7),
        ("sd", "inpaint", "DDIM", None),
        ("sd", "inpaint", "Euler", 0.5),
        ("sdxl", "inpaint", "DDIM", None),
    ],
)
def test_pictures_of_images_are_those_of_a_script(
    settings_for, made, tmp_path, kind, task, sched, strength
):
    file = write_cases(tmp_path, *IMAGES[task], strength=strength)
    settings = settings_for(kind, prompts=str(file), sched=sched, steps=STEPS, **SIZES)
    with quiet_libraries():
        pipe, evaluator, cases = bench_of(settings)
        load = evaluator.workload
        name = f"StableDiffusion{'XL' if kind == 'sdxl' else ''}{NAMES[task]}Pipeline"
        assert load.pipeline_class == type(pipe).__name__ == name
        assert (load.height, load.width) == (SIDE, SIDE)
        calls = by_hand(tmp_path, IMAGES[task])
        if strength is not None:
            calls = [(seed, {**call, "strength": strength}) for seed, call in calls]
        expected = script(made / kind, STEPS, calls, name, load.scheduler_class)
        assert_as_script(pipe, load, cases, expected)
        # The UNet calls that step plans and step times count on are those that are made.
        assert counted(pipe, load, cases) == load.unet_calls
        assert evaluator.provenance.call == {"strength": load.strength}
        assert strength in (None, load.strength)
        # As a candidate: the same noise, and the baseline is left as it was, bit for bit.
        assert evaluator.baseline().scores
        assert len(evaluator.measure(DEEPCACHE, pairs=1).scores) == 2
        evaluator.check()
        with apply_candidate(pipe, DEEPCACHE):
            faster = generate(pipe, load, cases)
        assert torch.allclose(generate(pipe, load, cases), expected, atol=1e-4)
        assert not torch.equal(faster, expected)


def counted(pipe, load, cases):
    """Return the UNet calls of one call of a pipeline."""
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    generate(pipe, load, cases)
    hook.remove()
    return len(calls)


@pytest.mark.parametrize("sched", ["DDIM", "Heun", "PNDM", "DPM2"])
@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8, 1.0])
def test_fewer_steps_of_an_image_are_counted_as_the_pipeline_makes_them(
    settings_for, tmp_path, sched, strength
):
    file = write_cases(tmp_path, "image", strength=strength)
    settings = settings_for(prompts=str(file), sched=sched, steps=10, **SIZES)
    with quiet_libraries():
        pipe, evaluator, cases = bench_of(settings)
        load = evaluator.workload
        assert counted(pipe, load, cases[:1]) == load.unet_calls
        for steps in (2, 5, 7):
            candidate = Candidate({"steps": {"num_inference_steps": steps}})
            with apply_candidate(pipe, candidate):
                made = counted(pipe, load, cases[:1])
            assert made == effective_workload(candidate, load).unet_calls, steps


def test_an_inpainting_unet_of_nine_channels_takes_images_and_masks(settings_for, made, tmp_path):
    """Of a folder of its own class, as the hub's inpainting models are saved."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    pipe = StableDiffusionPipeline.from_pretrained(made / "sd", safety_checker=None)
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 9})
    parts = {**pipe.components, "unet": unet}
    name = "StableDiffusionInpaintPipeline"
    folder = tmp_path / "inpainting"
    getattr(diffusers, name)(**parts, requires_safety_checker=False).save_pretrained(folder)
    file = write_cases(tmp_path, "image", "mask")
    settings = settings_for(prompts=str(file), pipe=str(folder), steps=STEPS, **SIZES)
    with quiet_libraries():
        pipe, evaluator, cases = bench_of(settings)
        expected = script(folder, STEPS, by_hand(tmp_path, IMAGES["inpaint"]), name)
        assert_as_script(pipe, evaluator.workload, cases, expected)
        assert len(evaluator.measure(DEEPCACHE, pairs=1).scores) == 2
        evaluator.check()
        with pytest.raises(LoadError, match=r"takes 9 channels.*give images and masks in the"):
            Workbench(replace(settings, pipe_class="img2img"), LOG)


def test_a_class_that_is_named_takes_its_columns_alone(settings_for, tmp_path):
    file = write_cases(tmp_path, "image", "mask", strength=0.5)
    settings = settings_for(prompts=str(file), **SIZES)
    digests = set()
    for task in ("inpaint", "img2img", "text2img"):
        prompts = load_prompts(replace(settings, pipe_class=task))
        assert prompts.columns == set(IMAGES.get(task, ()))
        assert prompts.strength == (None if task == "text2img" else 0.5)
        digests.add(prompts.digest)
    assert len(digests) == 3
    assert load_prompts(settings).task == "inpaint"


def test_what_an_image_holds_is_part_of_the_identity_and_where_it_lies_is_not(
    settings_for, tmp_path
):
    def read(folder):
        return load_prompts(settings_for(prompts=str(folder / "cases.csv"), **SIZES))

    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        write_cases(folder, "image")
    one, two = map(read, folders)
    assert one.digest == two.digest
    draw(folders[1] / "images/image1.png", 99)
    assert read(folders[1]).digest != one.digest


def test_an_image_that_is_changed_during_the_run_is_one_line(settings_for, tmp_path):
    file = write_cases(tmp_path, "image")
    with quiet_libraries():
        pipe, evaluator, cases = bench_of(settings_for(prompts=str(file), **SIZES))
        draw(tmp_path / "images/image0.png", 99)
        with pytest.raises(ConfigurationError, match=r"image0.png: was changed during the run"):
            generate(pipe, evaluator.workload, cases)


def test_a_strength_that_leaves_no_step_is_one_line(settings_for, tmp_path):
    file = write_cases(tmp_path, "image", strength=0.1)
    settings = settings_for(prompts=str(file), steps=5, **SIZES)
    with quiet_libraries(), pytest.raises(ConfigurationError, match=r"strength of 0.1 leaves no"):
        Workbench(settings, LOG).evaluator(settings)


@pytest.mark.parametrize(
    ("kind", "task", "count"),
    [
        ("sd", "controlnet", 1),
        ("sd", "controlnet", 2),
        ("sd", "controlnet_img2img", 1),
        ("sd", "controlnet_img2img", 2),
        ("sd", "controlnet_inpaint", 1),
        ("sdxl", "controlnet", 1),
        ("sdxl", "controlnet", 2),
        ("sdxl", "controlnet_img2img", 2),
        ("sdxl", "controlnet_inpaint", 1),
    ],
)
def test_pictures_under_controlnets_are_those_of_a_script(
    settings_for, nets, tmp_path, kind, task, count
):
    columns = CONTROLLED[task]
    seconds = {"control_image_2": columns["control_image"]} if count == 2 else {}
    strength = None if task == "controlnet" else 0.7
    file = write_cases(tmp_path, *columns, *seconds, strength=strength)
    paths, scales = [nets / f"{kind}_net{number}" for number in range(count)], [0.5, 1.5]
    settings = settings_for(
        kind,
        prompts=str(file),
        steps=STEPS,
        controlnet=tuple(f"{path}:{scale}" for path, scale in zip(paths, scales, strict=False)),
        **SIZES,
    )
    models = [diffusers.ControlNetModel.from_pretrained(path) for path in paths]
    with quiet_libraries():
        pipe, evaluator, cases = bench_of(settings)
        load, where = evaluator.workload, evaluator.provenance
        name = f"StableDiffusion{'XL' if kind == 'sdxl' else ''}{CONTROL_NAMES[task]}Pipeline"
        assert load.pipeline_class == name
        assert (load.height, load.width) == (SIDE, SIDE)
        calls = by_hand(tmp_path, columns)
        for (_, call), (_, other) in zip(calls, by_hand(tmp_path, seconds), strict=True):
            call["controlnet_conditioning_scale"] = scales[:count] if count == 2 else scales[0]
            if strength is not None:
                call["strength"] = strength
            for argument in set(seconds.values()):
                call[argument] = [call[argument], other[argument]]
        given = models if count == 2 else models[0]
        expected = script(nets / kind, STEPS, calls, name, controlnet=given)
        assert_as_script(pipe, load, cases, expected)
        assert counted(pipe, load, cases) == load.unet_calls
        assert evaluator.baseline().scores
        for candidate in (DEEPCACHE, TGATE, TOME):
            assert len(evaluator.measure(candidate, pairs=1).scores) == 2
            evaluator.check()
    # Another ControlNet, or another scale of it, is another result.
    assert re.match(rf"{kind}_net0@[0-9a-f]{{16}} × 0.5", where.controlnet)
    assert where.controlnet.count(" × ") == count
    assert where.call["controlnet_conditioning_scale"] == 0.5
    with quiet_libraries():
        other = f"{nets}/{kind}_net{2 - count}"
        swapped = replace(settings, controlnet=(other, *settings.controlnet[1:]))
        again = bench_of(swapped)[1].provenance
    assert {"controlnet", "call"} <= set(again.differences(where.as_dict()))


def test_a_controlnet_for_another_model_is_one_line(settings_for, nets, tmp_path):
    file = write_cases(tmp_path, "control_image")
    settings = settings_for(prompts=str(file), controlnet=(f"{nets}/sdxl_net0",), **SIZES)
    with quiet_libraries(), pytest.raises(LoadError, match=r"it is for another model"):
        Workbench(settings, LOG)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "--controlnet nowhere: no such folder; give a folder of a ControlNetModel"),
        ("{made}/sd", "config.json is missing; give a folder"),
        ("{made}/sd/unet", "names the class 'UNet2DConditionModel'; only ControlNetModel"),
        ("{pickled}", "has only pickled weights"),
    ],
)
def test_what_is_no_controlnet_is_one_line(settings_for, nets, tmp_path, name, said):
    file = write_cases(tmp_path, "control_image")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((nets / "sd_net0/config.json").read_text())
    torch.save({}, pickled / "diffusion_pytorch_model.bin")
    given = name.format(made=nets, pickled=pickled)
    settings = settings_for(prompts=str(file), controlnet=(given,), **SIZES)
    with quiet_libraries(), pytest.raises(LoadError, match=re.escape(said)):
        Workbench(settings, LOG)


@pytest.fixture(scope="session")
def adapters(made):
    """An IP-Adapter for each of the pipelines, and one that looks at patches."""
    for kind in ("sd", "sdxl"):
        write_ip_adapter(made / f"{kind}_adapter", made / kind)
    write_ip_adapter(made / "sd_plus", made / "sd", plus=True)
    return made


@pytest.mark.parametrize(
    ("kind", "adapter", "columns", "class_name"),
    [
        ("sd", "sd_adapter", {"image": "ip_adapter_image"}, ""),
        ("sd", "sd_plus", {"ip_adapter_image": "ip_adapter_image"}, ""),
        ("sdxl", "sdxl_adapter", {"ip_adapter_image": "ip_adapter_image"}, ""),
        (
            "sd",
            "sd_adapter",
            IMAGES["img2img"] | {"ip_adapter_image": "ip_adapter_image"},
            "Img2Img",
        ),
        (
            "sd",
            "sd_plus",
            CONTROLLED["controlnet"] | {"ip_adapter_image": "ip_adapter_image"},
            "ControlNet",
        ),
    ],
)
def test_pictures_of_an_ip_adapter_are_those_of_a_script(
    settings_for, adapters, nets, tmp_path, kind, adapter, columns, class_name
):
    file = write_cases(tmp_path, *columns)
    more = {"controlnet": (f"{nets}/{kind}_net0",)} if class_name == "ControlNet" else {}
    settings = settings_for(
        kind,
        prompts=str(file),
        steps=STEPS,
        ip_adapter=str(adapters / adapter),
        ip_adapter_scale=0.6,
        **SIZES,
        **more,
    )
    parts = {}
    if more:
        parts["controlnet"] = diffusers.ControlNetModel.from_pretrained(f"{nets}/{kind}_net0")

    def load(pipe):
        pipe.load_ip_adapter(adapters / adapter, subfolder="", weight_name="ip-adapter.safetensors")
        pipe.set_ip_adapter_scale(0.6)

    with quiet_libraries():
        pipe, evaluator, cases = bench_of(settings)
        work, where = evaluator.workload, evaluator.provenance
        name = f"StableDiffusion{'XL' if kind == 'sdxl' else ''}{class_name}Pipeline"
        assert work.pipeline_class == name
        calls = by_hand(tmp_path, columns)
        expected = script(adapters / kind, STEPS, calls, name, made=load, **parts)
        assert_as_script(pipe, work, cases, expected)
        assert where.attention_backend == "native"
        assert evaluator.baseline().scores
        for candidate in (DEEPCACHE, TGATE, TOME):
            assert len(evaluator.measure(candidate, pairs=1).scores) == 2
            evaluator.check()
    assert re.fullmatch(r"ip-adapter.safetensors@[0-9a-f]{16} × 0.6", where.ip_adapter)
    with quiet_libraries():
        other = bench_of(replace(settings, ip_adapter_scale=0.5))[1].provenance
    assert other.differences(where.as_dict()) == ["ip_adapter"]


def test_an_ip_adapter_without_guidance_has_no_unconditional_half(settings_for, adapters, tmp_path):
    file = write_cases(tmp_path, "image")
    path = adapters / "sd_adapter" / "ip-adapter.safetensors"
    settings = settings_for(prompts=str(file), ip_adapter=str(path), guidance_scale=1.0, **SIZES)

    def load(pipe):
        pipe.load_ip_adapter(path.parent, subfolder="", weight_name=path.name)

    calls = [
        (seed, {**call, "guidance_scale": 1.0})
        for seed, call in by_hand(tmp_path, {"image": "ip_adapter_image"})
    ]
    with quiet_libraries():
        pipe, evaluator, cases = bench_of(settings)
        expected = script(adapters / "sd", settings.steps, calls, made=load)
        assert_as_script(pipe, evaluator.workload, cases, expected)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "no such file or folder; give a .safetensors file"),
        ("me/own/ip.bin", "no such file or folder; give a .safetensors file"),
        ("{made}/sd/unet/config.json", "only .safetensors files are loaded"),
        ("{made}/sd/unet", "holds no IP-Adapter: its tensors are named otherwise"),
        ("{made}/sd", "expected one .safetensors file in the folder, and there are none"),
        ("{alone}", "an image encoder of projection_dim 24 is neither in"),
        ("{made}/sdxl_adapter", "it makes images of width 32, the UNet takes 16"),
    ],
)
def test_what_is_no_ip_adapter_is_one_line(settings_for, adapters, tmp_path, name, said):
    file = write_cases(tmp_path, "image")
    alone = tmp_path / "alone"
    alone.mkdir()
    content = (adapters / "sd_adapter/ip-adapter.safetensors").read_bytes()
    (alone / "ip.safetensors").write_bytes(content)
    given = name.format(made=adapters, alone=alone)
    settings = settings_for(prompts=str(file), ip_adapter=given, **SIZES)
    with quiet_libraries(), pytest.raises(LoadError, match=re.escape(said)):
        Workbench(settings, LOG)


def test_an_adapter_takes_the_encoder_that_fits_it(adapters, tmp_path):
    """Of the two places in which the hub's repository of adapters has one."""
    adapter, encoder = adapters / "sd_adapter", "image_encoder"
    for place in ("sdxl_models", "models"):
        shutil.copytree(adapter / encoder, tmp_path / place / encoder)
    shutil.copy(adapter / "ip-adapter.safetensors", tmp_path / "sdxl_models")
    config = tmp_path / "sdxl_models" / encoder / "config.json"
    config.write_text(config.read_text().replace('"projection_dim": 24', '"projection_dim": 48'))
    found = find_ip_adapter(str(tmp_path / "sdxl_models"), False, LOG)
    assert found.encoder == tmp_path / "models" / encoder
    assert found.name.startswith("ip-adapter.safetensors (models/image_encoder)@")


def test_adapters_and_controlnets_of_the_hub_are_fetched_without_pickles(
    served, settings_for, adapters, nets, tmp_path, monkeypatch
):
    from huggingface_hub import constants

    folder = tmp_path / "repository"
    shutil.copytree(adapters / "sd_adapter", folder / "models")
    (folder / "models/other.bin").write_bytes(b"pickle")
    (folder / "models/image_encoder/pytorch_model.bin").write_bytes(b"pickle")
    served.repositories["me/adapters"] = Repository(folder)
    served.repositories["me/net"] = Repository(nets / "sd_net0")
    name = "me/adapters/models/ip-adapter.safetensors"
    for _ in range(2):
        adapter = find_ip_adapter(name, False, LOG)
        net = find_controlnet("me/net:0.5", False, LOG)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # Then from the cache.
    assert re.fullmatch(rf"{name}@[0-9a-f]{{16}}", adapter.name)
    assert adapter.path.is_file() and adapter.encoder.name == "image_encoder"
    assert re.fullmatch(r"me/net@[0-9a-f]{16} × 0.5", str(net))
    assert not [file for file in served.fetched() if file.endswith(".bin")]
