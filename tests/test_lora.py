"""The programs on a pipeline with LoRAs, from end to end."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file, save_file

from accel_search import accelerate, load_best, restore, search
from accel_search.core.loras import Lora
from accel_search.explore_upper_bounds import main as explore
from accel_search.report.console.listing import listing, stored_in
from accel_search.runtime.quiet import quiet_libraries
from accel_search.storage.digests import digest_of
from accel_search.storage.run_reader import read_run
from accel_search.traversal_search import main
from accel_search.write_report import main as report
from tests.support import making
from tests.support.docs_pages import printed_python
from tests.support.fakes import PROVENANCE
from tests.support.loras import by_hand, make
from tests.support.results import GRID
from tests.support.results import searched as fake_searched
from tests.support.tiny import runs
from tests.test_single_file import QUICK, said

SEARCH = ["--config", "quick.toml", "--sched", "Euler a", "--negative_prompt", "blue"]
LORAS = ["--lora", "sd_kohya.safetensors:0.8", "--lora", "sd_peft.safetensors:-0.4"]


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("made"), "sd")
    making.make_scorer(folder / "scorer")
    making.make_prompts(folder / "prompts.txt")
    (folder / "quick.toml").write_text(QUICK)
    return folder


@pytest.fixture
def inside(there, monkeypatch):
    monkeypatch.chdir(there)
    return there


@pytest.fixture(scope="module")
def printed(there):
    """What a search of the single file with both LoRAs prints."""
    command = [*SEARCH, "--pipe", "sd.safetensors", *LORAS, "--report", "page.html"]
    command += ["--pictures", "2", "--export", "fast.py", "--log_file", "log"]
    program = [sys.executable, "-m", "accel_search.traversal_search", *command]
    done = subprocess.run(program, cwd=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def script(folder, prompts, candidate=None):
    """Return the pictures that a script of diffusers makes."""
    pipe = by_hand(folder, "sd", [("kohya", 0.8), ("peft", -0.4)], file=True)
    # Its spacing is as SD1.5's published configuration, in place of which the folder is, leaves it.
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace"
    )
    if candidate is not None:
        accelerate(pipe, candidate)
    return [
        np.asarray(
            pipe(
                prompt["text"],
                negative_prompt="blue",
                num_inference_steps=3,
                height=32,
                width=32,
                generator=torch.Generator("cpu").manual_seed(prompt["seed"]),
            ).images[0]
        )
        for prompt in prompts
    ]


def test_a_search_measures_the_pictures_of_a_script(there, printed):
    (index,) = there.glob("accel_search_runs/**/pictures.json")
    shown = json.loads(index.read_text())
    baseline, winner = (
        next(column for column in shown["columns"] if column["part"] == part)
        for part in ("baseline", "winner")
    )
    for column, candidate in ((baseline, None), (winner, winner["candidate"])):
        theirs = script(there, shown["prompts"], candidate)
        for file, picture in zip(column["files"], theirs, strict=True):
            ours = np.asarray(Image.open(index.with_name(file)))
            # Made in one batch, each of them alone there: the last bit may round otherwise.
            assert np.abs(ours.astype(int) - picture.astype(int)).max() <= 1


def test_the_provenance_has_digests_and_scales(there, printed, inside):
    where = read_run(Path("accel_search_runs")).record.where
    names = ("sd_kohya.safetensors", "sd_peft.safetensors")
    digests = [digest_of([there / name], by_folder=False) for name in names]
    scales = (0.8, -0.4)
    assert where.loras == tuple(map(Lora, names, digests, scales))
    assert where.versions["peft"]
    line = f"LoRA sd_kohya.safetensors ({digests[0]}) at 0.8, LoRA sd_peft.safetensors"
    assert line in listing(stored_in(Path("search_params.json")), Path("x"))
    page = Path("page.html").read_text()
    assert f"sd_kohya.safetensors ({digests[0]}) at 0.8, sd_peft.safetensors (" in page


def test_the_lines_that_are_printed_load_them(there, printed, inside):
    (lines,) = printed_python(printed)
    theirs = by_hand(there, "sd", [("kohya", 0.8), ("peft", -0.4)], file=True)
    page = Path("page.html").read_text()
    copied = [unescape(code) for code in re.findall(r'<code id="[\w-]+">(.*?)</code>', page, re.S)]
    copied = [code for code in copied if "accelerate(" in code]
    assert len(copied) == 2
    for code in (lines, *copied):
        pipe = by_hand(there, "sd", [], file=False)
        full = runs(pipe.unet.mid_block)
        with quiet_libraries():
            exec(code, {"pipe": pipe})  # noqa: S102
        pipe("a ring", num_inference_steps=4, height=32, width=32)
        assert len(full) == 2  # DeepCache's, of four.
        restore(pipe)
        pipe.scheduler = theirs.scheduler
        options = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "pt"}
        pictures = [
            each("a ring", generator=torch.Generator().manual_seed(0), **options).images
            for each in (pipe, theirs)
        ]
        assert torch.allclose(*pictures, atol=1e-4)


def test_the_exported_script_loads_them(there, printed, inside, monkeypatch, tmp_path):
    from diffusers import StableDiffusionPipeline

    original = StableDiffusionPipeline.from_single_file.__func__

    def offline(cls, *args, **options):
        return original(cls, *args, config="sd", local_files_only=True, **options)

    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", classmethod(offline))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert report(["accel_search_runs", "--export", "again.py"]) == 0
    for name in ("fast.py", "again.py"):
        text = Path(name).read_text().replace('"fast.png"', repr(str(tmp_path / "f.png")))
        left = {}
        with quiet_libraries():
            exec(compile(text, name, "exec"), left)  # noqa: S102
        assert left["pipe"].get_active_adapters() == ["lora_0", "lora_1"]
        assert left["pipe"].unet.mid_block.attentions[0].proj_in.scaling == {
            "lora_0": 0.4,  # Its alpha is half its rank.
            "lora_1": -0.4,
        }


def measured(*words, scales=None):
    """Return how many candidates a search measured; it must find one or none.

    On a busy machine a small gain may not show: only a winner's scales are added to `scales`.
    """
    before = Path("log").stat().st_size if Path("log").exists() else 0
    code = main([*SEARCH, "--log_file", "log", "--quiet", *words])
    assert code in (0, 3)
    if scales is not None and code == 0:
        scales.append([float(word.rpartition(":")[2]) for word in words if ".safetensors:" in word])
    return Path("log").read_bytes()[before:].count(b"trial 1/1")


def test_what_changes_a_lora_is_searched_anew_and_nothing_is_lost(there, inside, tmp_path):
    file = tmp_path / "l.safetensors"
    file.write_bytes((there / "sd_peft.safetensors").read_bytes())
    own = ["--pipe", "sd", "--output", str(tmp_path / "o.json"), "--run_dir", str(tmp_path / "r")]
    scales = []
    assert measured(*own, scales=scales) == 1
    assert measured(*own, "--lora", f"{file}:1", scales=scales) == 1
    assert measured(*own, "--lora", str(file)) == 0
    assert measured(*own, "--lora", f"{file}:0.5", scales=scales) == 1
    tensors = load_file(file)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, file)
    assert measured(*own, "--lora", f"{file}:1", scales=scales) == 1
    assert measured(*own) == 0
    stored = stored_in(tmp_path / "o.json")
    kept = sorted(
        [(lora.scale, lora.digest) for lora in one.entry.where.loras or ()] for one in stored
    )
    assert [[scale for scale, _ in loras] for loras in kept] == sorted(scales)
    whole = [digest for loras in kept for scale, digest in loras if scale == 1]
    assert len(set(whole)) == len(whole)  # Of the file before and after.


def test_in_python_the_same_is_searched(there, inside, tmp_path):
    """Of the folder with both LoRAs: the same scores, so the same pictures, and the same winner."""
    command = [*SEARCH, "--pipe", "sd", *LORAS, "--trials_out", str(tmp_path / "cli.json")]
    command += ["--run_dir", str(tmp_path / "c"), "--output", str(tmp_path / "c.json")]
    assert main([*command, "--log_file", str(tmp_path / "l"), "--quiet"]) in (0, 3)
    options = tomllib.loads(QUICK)
    del options["device"]
    pipe = by_hand(there, "sd", [("kohya", 0.8), ("peft", -0.4)], file=False)
    search(
        pipe, options.pop("prompts"), sched="Euler a", call={"negative_prompt": "blue"},
        trials_out=tmp_path / "live.json", run_dir=tmp_path / "p", output=tmp_path / "p.json",
        log_file=tmp_path / "l", **options,
    )  # fmt: skip
    mine, theirs = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("live", "cli"))
    assert mine["baseline"]["scores"] == pytest.approx(theirs["baseline"]["scores"], abs=1e-3)
    assert len(mine["trials"]) == len(theirs["trials"]) == 1
    for one, other in zip(mine["trials"], theirs["trials"], strict=True):
        assert one["candidate"] == other["candidate"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-3)


def test_named_settings_verify_and_latency_only_take_them(there, inside, tmp_path, capsys):
    own = ["--log_file", str(tmp_path / "log"), "--output", str(tmp_path / "o.json")]
    own += ["--run_dir", str(tmp_path / "r"), "--bounds", str(tmp_path / "b.json")]
    command = [*SEARCH, "--pipe", "sd", *LORAS, *own, "--json"]
    assert main([*command, "--candidate", "deepcache(2,0)"]) in (0, 3, 7)
    document = json.loads(capsys.readouterr().out)
    assert [each["scale"] for each in document["provenance"]["loras"]] == [0.8, -0.4]
    assert main([*command, "--latency_only"]) in (0, 3)
    entry = json.loads(capsys.readouterr().out)
    assert [each["scale"] for each in entry["provenance"]["loras"]] == [0.8, -0.4]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--verify"]) in (0, 3, 7)
    assert json.loads(capsys.readouterr().out)["differences"] == {}


def test_a_sweep_passes_them_on_and_knows_what_is_done(there, inside, tmp_path, capsys):
    (tmp_path / "sweep.toml").write_text(
        f'models = ["{there / "sd"}"]\nscheds = ["DDIM"]\nsteps = [3]\nmethods = ["deepcache"]\n'
        f'lora = ["{there / "sd_peft.safetensors"}:0.5"]\nlatency_only = true\n'
        "height = 32\nwidth = 32\ndevice = 'cpu'\nbatch_size = 1\ntiming_pairs = 1\nthreads = 1\n"
        f'bounds = "{tmp_path / "b.json"}"\nrun_dir = "{tmp_path / "r"}"\nmax_trials = 1\n'
        f'log_file = "{tmp_path / "log"}"\n'
    )
    command = ["--sweep", str(tmp_path / "sweep.toml")]
    assert explore(command) in (0, 3)
    capsys.readouterr()
    assert explore([*command, "--dry_run"]) == 0
    assert "0 to run, 1 done" in capsys.readouterr().out
    assert explore([*command, "--dry_run", "--lora", f"{there / 'sd_peft.safetensors'}"]) == 0
    assert "1 to run, 0 done" in capsys.readouterr().out


def test_a_result_is_taken_by_the_loras_that_are_active(there, tmp_path, caplog):
    path = tmp_path / "r.json"
    bare = replace(PROVENANCE, loras=None)
    style = replace(PROVENANCE, loras=(Lora("style.safetensors", "0" * 16, 0.8),))
    slow = {"deepcache": {"cache_interval": (2,), "cache_branch_id": (3,)}}
    fast = {"deepcache": {"cache_interval": (4,), "cache_branch_id": (3,)}}
    fake_searched(path, GRID(space=slow), style)
    fake_searched(path, GRID(space=fast), bare)
    caplog.set_level(logging.WARNING)

    def interval(loras):
        caplog.clear()
        pipe = by_hand(there, "sd", loras, file=False)
        chosen = load_best(path, pipe, scheduler="DDIM", model="demo")
        return chosen["deepcache"]["cache_interval"]

    assert interval([]) == 4 and "LoRA" not in caplog.text
    assert interval([("peft", 0.8)]) == 2 and "LoRA" not in caplog.text
    assert interval([("peft", 0.5)]) == 4
    assert "measured with no LoRA, and the pipeline has active LoRAs at 0.5" in caplog.text
    path.unlink()
    fake_searched(path, GRID(space=slow), style)
    assert interval([]) == 2
    said = (
        "measured with LoRA style.safetensors (0000000000000000) at 0.8, and the pipeline has none"
    )
    assert said in caplog.text and caplog.text.count("\n") == 1


def test_what_is_no_lora_is_said_before_torch_is_imported(there, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "empty").mkdir()
    torch.save({}, tmp_path / "x.pt")
    code = (
        "import sys\n"
        "from accel_search.traversal_search import main\n"
        f"pipe = ['--quiet', '--pipe', {str(there / 'sd')!r}]\n"
        "codes = [main([*pipe, '--lora', each]) for each in sys.argv[1:]]\n"
        "print(codes, {'torch', 'diffusers', 'peft'} & set(sys.modules))"
    )
    names = ["none.safetensors", "broken.safetensors", "empty", "x.pt", "nowhere"]
    names += ["C:\\x.safetensors:1"]
    names += [str(there / "sd.safetensors")]
    make(tmp_path / "xl", "xl")
    names += [str(tmp_path / "xl/xl_kohya.safetensors")]
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{[2] * len(names)} set()"
    lines = done.stderr.splitlines()
    expected = ["no such file", "truncated or corrupt", "no .safetensors file", "is a pickle"]
    expected += ["no such file", "no such file", "is no LoRA", "is not for --pipe"]
    assert len(lines) == len(expected)
    for line, what in zip(lines, expected, strict=True):
        assert what in line and "--lora" in line


def test_a_lora_as_a_pipeline_says_where_to_give_it(inside, capsys):
    from accel_search.errors import ExitCode

    assert main(["--pipe", "sd_peft.safetensors", "--quiet"]) == ExitCode.NOT_LOADED
    assert "give it to --lora" in capsys.readouterr().err
    assert "is a pickle" in said(capsys, "--pipe", "sd", "--lora", "x.bin:0.5")
