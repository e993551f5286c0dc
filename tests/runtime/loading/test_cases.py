"""Cases of images: what does not fit is one line, before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accel_search.errors import ConfigurationError
from accel_search.runtime.loading import images
from accel_search.runtime.loading.images import read_image
from accel_search.traversal_search import main


def picture(path, width=64, height=64, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    picture(tmp_path / "wide.png", width=72)
    picture(tmp_path / "odd.png", width=66)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "half.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    return tmp_path


def refused(capsys, text, *options, name="cases.csv"):
    Path(name).write_text(text)
    code = main(["--prompts", name, "--num_samples", "2", "--held_out_samples", "0", *options])
    message = capsys.readouterr().err
    assert code == 2 and message.count("\n") == 1, message
    return message


BAD = {
    "missing": (
        "prompt,image\nx,a.png\ny,c.png\nz,d.png\nw,b.png\n",
        "2 of its 4 images are missing (c.png, d.png): paths are relative to .",
    ),
    "all missing": (
        "prompt,image\n" + "".join(f"{n},{n}.png\n" for n in "vwxyz"),
        "5 of its 5 images are missing (v.png, w.png, x.png, …)",
    ),
    "a folder": ("prompt,image\nx,.\ny,a.png\n", "1 of its 2 images are missing (.)"),
    "a null byte": ('{"prompt": "x", "image": "\\u0000"}\n', "1 of its 1 images are missing"),
    "an address": ("prompt,image\nx,https://h/a.png\n", "images are missing (https://h/a.png)"),
    "sizes": (
        "prompt,image\nx,a.png\ny,wide.png\n",
        "the image wide.png is 72 × 64 pixels, and pictures are 64 × 64: resize it",
    ),
    "no multiple": (
        "prompt,image\nx,odd.png\ny,odd.png\n",
        "66 × 64 pixels, which are no multiples",
    ),
    "text": ("prompt,image\nx,text.png\ny,a.png\n", "text.png: is no PNG, JPEG or WebP image"),
    "truncated": ("prompt,image\nx,a.png\ny,half.png\n", "half.png: is truncated or corrupt"),
    "gaps": (
        "prompt,image\nx,a.png\ny,\n",
        "1 of 2 rows have nothing in the column image (row 2): fill it in every row",
    ),
    "mask alone": ("prompt,mask\nx,a.png\ny,a.png\n", "has a column mask, but no column image"),
    "strength alone": ("prompt,strength\nx,1\ny,1\n", "has a column strength, but no column image"),
    "strengths": (
        "prompt,image,strength\nx,a.png,0.5\ny,a.png,0.6\n",
        "its rows differ in strength (0.5, 0.6), which decides how many steps are made",
    ),
    "some strengths": (
        "prompt,image,strength\nx,a.png,0.5\ny,a.png,\n",
        "1 of 2 rows have nothing in the column strength",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_cases_that_do_not_fit_are_one_line(there, capsys, name):
    text, said = BAD[name]
    file = "cases.jsonl" if text.startswith("{") else "cases.csv"
    message = refused(capsys, text, name=file).replace(f"{there}/", "")
    assert f"--prompts {file}: " in message and said in message


GOOD = "prompt,image,mask\nx,a.png,b.png\ny,a.png,a.png\n"
CONTROL = "prompt,control_image\nx,a.png\ny,b.png\n"
IMAGE = "prompt,image\nx,a.png\ny,b.png\n"
ADAPTER = "prompt,ip_adapter_image\nx,a.png\ny,wide.png\n"
OPTIONS = {
    "--pipe_class inpaint": ("prompt,image\nx,a.png\ny,b.png\n", "has no column mask: add it"),
    "--pipe_class img2img": ("prompt\nx\ny\n", "has no column image: add it"),
    "--pipe_class img2img --latency_only": (GOOD, "--latency_only and --pipe_class img2img"),
    "--pipe_class inpaint --replay t.json": (GOOD, "--replay and --pipe_class inpaint: choose"),
    "--controlnet n": (
        GOOD,
        "1 given, for the columns control_image, and --prompts cases.csv has none",
    ),
    "--controlnet n:11": (CONTROL, "--controlnet 'n:11': expected a scale from 0 to 10"),
    "--controlnet n --controlnet m": (
        CONTROL,
        "for the columns control_image, control_image_2, and",
    ),
    "--num_samples 2": (CONTROL, "a column control_image, and there is no ControlNet: give one"),
    "--pipe_class controlnet": (CONTROL, "give its ControlNet with --controlnet"),
    "--pipe_class text2img --controlnet n": (CONTROL, "choose one, or name the class controlnet"),
    "--controlnet n --replay t.json": (CONTROL, "--replay and --controlnet n: choose one"),
    "--controlnet n --latency_only": (CONTROL, "--latency_only and --controlnet n: choose one"),
    "--controlnet n --prompts builtin": (GOOD, "--prompts builtin has none of them"),
    "--ip_adapter a": (GOOD, "has no column ip_adapter_image: add it"),
    "--ip_adapter a --prompts builtin": (GOOD, "builtin has no column ip_adapter_image: add it"),
    "--ip_adapter a --pipe_class img2img": (IMAGE, "has no column ip_adapter_image: add it"),
    "--ip_adapter a --replay t.json": (IMAGE, "--replay and --ip_adapter a: choose one"),
    "--ip_adapter_scale 0.5": (IMAGE, "there is no --ip_adapter: give one, or leave it out"),
    "--num_samples 2 ": (ADAPTER, "has a column ip_adapter_image, and there is no IP-Adapter"),
    "--pipe_class 3d": (GOOD, "--pipe_class '3d': expected one of auto, text2img, img2img"),
    "--width 128": (GOOD, "a.png is 64 × 64 pixels, and pictures are 128 × 64"),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options_that_do_not_fit_the_cases_are_one_line(there, capsys, options):
    text, said = OPTIONS[options]
    assert said in refused(capsys, text, *options.split())


def test_cases_are_refused_before_torch_is_imported(there):
    (there / "cases.csv").write_text("prompt,image\nx,a.png\ny,text.png\n")
    code = (
        "import sys; from accel_search.traversal_search import main; "
        "code = main(['--prompts', 'cases.csv', '--num_samples', '2', '--held_out_samples', '0']); "
        "print(code, {'torch', 'diffusers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 set()\n", done


def test_an_image_is_read_upright_and_in_the_mode_that_is_asked_for(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by a quarter.
    picture(tmp_path / "turned.jpg", width=64, height=32, exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (32, 64)
    picture(tmp_path / "alpha.webp", mode="RGBA", lossless=True)
    assert read_image(tmp_path / "alpha.webp").mode == "RGB"
    assert read_image(tmp_path / "alpha.webp", "L").mode == "L"


def test_a_picture_that_would_fill_the_memory_is_not_decoded(tmp_path, monkeypatch):
    picture(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(ConfigurationError, match=r"is 64 × 64 pixels; at most 4,095"):
        read_image(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(ConfigurationError, match=r"is larger than 0 MiB"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["gif", "bmp", "tiff", "ico"])
def test_other_formats_are_refused(tmp_path, ending):
    picture(tmp_path / f"a.{ending}")
    with pytest.raises(ConfigurationError, match=r"is no PNG, JPEG or WebP image"):
        read_image(tmp_path / f"a.{ending}")


def test_several_frames_are_refused(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(ConfigurationError, match=r"holds several frames"):
        read_image(tmp_path / "a.webp")
