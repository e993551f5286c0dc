"""The packages' own implementations: equal to ours where they are right, and gone afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from accel_search.accelerators.compose import apply_candidate, remove_from
from accel_search.accelerators.packages import check_workload, script_parts
from accel_search.api import accelerate, load_best
from accel_search.errors import AcceleratorError, ConfigurationError
from accel_search.settings import Settings
from tests.support.candidates import SUPPORTED
from tests.support.options import SURE
from tests.support.tiny import KINDS, assert_same, make_pipe, render, snapshot, workload


class Broken(BaseException):
    """Not an Exception, as an interruption is not."""


@pytest.mark.parametrize("candidate", SUPPORTED, ids="+".join)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_ours_in_every_call_and_leaves_nothing(
    kind: str, candidate: dict[str, Any], pipes: dict[str, Any]
) -> None:
    pipe = pipes[kind]
    baseline = render(pipe, (0,), steps=8)
    before = snapshot(pipe)
    with apply_candidate(pipe, candidate):
        ours = render(pipe, steps=8)
    with apply_candidate(pipe, candidate, "package"):
        for _ in range(2):
            assert torch.equal(render(pipe, steps=8), ours)
        with pytest.raises(AcceleratorError, match="accelerated already"):
            apply_candidate(pipe, candidate, "package").__enter__()
    assert_same(before, snapshot(pipe))
    assert not torch.equal(ours[:1], baseline)
    assert torch.equal(render(pipe, (0,), steps=8), baseline)


@pytest.mark.parametrize("candidate", SUPPORTED, ids="+".join)
def test_leaves_nothing_where_a_call_breaks_off(candidate: dict[str, Any]) -> None:
    pipe = make_pipe()
    baseline = render(pipe, (0,), steps=8)
    before = snapshot(pipe)

    def callback(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 5:
            raise Broken
        return {}

    with pytest.raises(Broken), apply_candidate(pipe, candidate, "package"):
        render(pipe, (0,), steps=9, callback_on_step_end=callback)
    assert_same(before, snapshot(pipe))
    assert torch.equal(render(pipe, (0,), steps=8), baseline)


def test_accelerate_applies_and_removes_the_packages(sd: Any) -> None:
    before = snapshot(sd)
    candidate = {"deepcache": {"cache_interval": 2, "cache_branch_id": 0}}
    accelerate(sd, candidate, implementation="package")
    assert "forward" in vars(sd.unet)
    remove_from(sd)
    assert_same(before, snapshot(sd))
    with pytest.raises(ConfigurationError, match="give own or package"):
        accelerate(sd, candidate, implementation="theirs")


def test_a_result_of_the_packages_is_applied_by_them(sd: Any, tmp_path: Path) -> None:
    """`load_best` returns settings for ours, so it refuses in one line."""
    content = json.loads((Path(__file__).parents[2] / "search_params.json").read_text())
    key, value = next(iter(content.items()))
    value["provenance"]["implementation"] = "package"
    file = tmp_path / "params.json"
    file.write_text(json.dumps({key: value}))
    with accelerate(sd, file, steps=20, quiet=True):
        assert "forward" in vars(sd.unet)
    assert "forward" not in vars(sd.unet)
    with pytest.raises(ConfigurationError, match="implementation own, but with another") as caught:
        load_best(file, sd, steps=20)
    assert "\n" not in str(caught.value)


def test_a_branch_that_the_unet_lacks_is_refused(sd: Any) -> None:
    """DeepCacheSDHelper would skip the middle block alone."""
    before = snapshot(sd)
    candidate = {"deepcache": {"cache_interval": 2, "cache_branch_id": 12}}
    with pytest.raises(AcceleratorError, match="give at most 11"):
        apply_candidate(sd, candidate, "package").__enter__()
    assert_same(before, snapshot(sd), called=False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"targets": ("tgate", "tome")}, "another step's tokens"),
        ({"targets": ("deepcache", "tgate", "tome")}, "another step's tokens"),
        ({"targets": ("tgate",), "guidance_scale": 1.0}, "without guidance"),
        ({"targets": ("tgate",), "compile": True}, "compile again"),
        ({"targets": ("tome",), "compile": True}, "compile again"),
        ({"targets": ("deepcache",), "offload": True}, "offloading replaces"),
        ({"targets": ("tome",), "replay": "trials.json"}, "choose one"),
    ],
)
def test_options_that_the_packages_cannot_do_are_refused(
    options: dict[str, Any], reason: str
) -> None:
    Settings(**options | ({"offload": False} if "offload" not in options else {}))
    with pytest.raises(ConfigurationError, match=reason) as caught:
        Settings(implementation="package", **options)
    assert "\n" not in str(caught.value)


def test_they_are_refused_before_torch_is_imported() -> None:
    code = (
        "import sys; from accel_search.traversal_search import main\n"
        "rc = main(['--implementation', 'package', '--targets', 'tome,tgate'])\n"
        "print(rc, sorted({'torch', 'diffusers', 'tomesd', 'tgate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "2 []"
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "changes", "timesteps", "reason"),
    [
        ("deepcache", {}, [3, 2, 2, 1], "repeats some"),
        ("tgate", {"guidance_scale": 1.0}, [2, 1], "without guidance"),
        ("tgate", {"unet_calls": 39}, [2, 1], "counts steps wrongly"),
        ("tome", {"latent_height": 9, "latent_width": 13}, [2, 1], "misjudges"),
    ],
)
def test_pipelines_that_the_packages_get_wrong_are_refused(
    target: str, changes: dict[str, Any], timesteps: list[float], reason: str
) -> None:
    load = workload("SD")
    check_workload([target], load, [20, 10], {})
    with pytest.raises(ConfigurationError, match=reason) as caught:
        check_workload([target], replace(load, **changes), timesteps, {})
    assert "\n" not in str(caught.value)


def test_tomesd_raises_on_the_grids_for_which_it_is_refused() -> None:
    """At levels that are not searched it does nothing, and neither refuses."""
    load = workload("SD", latent_height=9, latent_width=13)
    check_workload(["tome"], load, [2, 1], {"tome": {"max_downsample": (1, 2)}})
    pipe = make_pipe()
    latents = torch.randn(2, 4, 9, 13, generator=torch.Generator().manual_seed(0))

    def call() -> Any:
        from tests.support.tiny import inputs

        return pipe(
            **inputs("SD", (0, 1)) | {"latents": latents},
            num_inference_steps=2,
            output_type="latent",
        )

    def patched(max_downsample: int) -> Any:
        return apply_candidate(
            pipe, {"tome": {"ratio": 0.5, "max_downsample": max_downsample}}, "package"
        )

    with patched(2):
        call()
    with pytest.raises(RuntimeError), patched(4):
        call()


@pytest.mark.parametrize("candidate", SUPPORTED, ids="+".join)
@pytest.mark.parametrize("kind", KINDS)
def test_a_script_of_the_packages_makes_the_measured_images(
    kind: str, candidate: dict[str, Any], pipes: dict[str, Any]
) -> None:
    steps = candidate.get("steps", {}).get("num_inference_steps", 8)
    with apply_candidate(pipes[kind], candidate, "package"):
        measured = render(pipes[kind], steps=8)
    pipe = make_pipe(kind)
    imports, lines, call, arguments = script_parts(candidate, is_xl=kind == "SDXL")
    assert all("accel_search" not in line for line in (*imports, *lines))
    exec("\n".join([*imports, *lines]), {"pipe": pipe, "torch": torch})  # noqa: S102
    method = "tgate" if call == "pipe.tgate" else "__call__"
    assert torch.equal(render(pipe, steps=steps, call=method, **arguments), measured)


def test_a_corrupt_candidate_makes_no_script() -> None:
    with pytest.raises(ConfigurationError, match="give exactly"):
        script_parts({"tome": {"ratio": 0.5, "x=print(1)": 1}}, is_xl=False)


ELSEWHERE = """
import runpy, sys
sys.modules["accel_search"] = None
runpy.run_path("fast.py")
"""


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["deepcache", "deepcache,tgate"])
def test_a_search_by_the_real_command(targets: str, tmp_path: Path) -> None:
    """It resumes, verifies, answers no search for `own`, and exports a script without us."""
    command = f"""--implementation package --targets {targets} --steps 10 --num_samples 4 --json
        --held_out_samples 0 --max_trials 1 --req_score_loss 1 --batch_size 2 --threads 1
        --height 128 --width 128 --config space.toml""".split()
    command += SURE  # A gain that a busy machine does not hide.
    space = "[space.deepcache]\ncache_interval = [5]\ncache_branch_id = [0]\n"
    if "tgate" in targets:
        space += "[space.tgate]\ngate_step = [7]\nsp_interval = [2]\nfi_interval = [2]\n"
        space += "warmup = [1]\n"
    (tmp_path / "space.toml").write_text(space)

    def program(*arguments: str, code: Sequence[int] = (0,)) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode in code, done.stderr
        return done.stdout

    search = ("-m", "accel_search.traversal_search", *command)
    first = json.loads(program(*search, "--export", "fast.py"))
    entry = json.loads((tmp_path / "search_params.json").read_text())
    where = next(iter(entry.values()))["provenance"]
    assert where["implementation"] == "package"
    assert set(targets.split(",")) == {"tomesd", "deepcache", "tgate"} & set(where["versions"])
    again = json.loads(program(*search))
    assert again["settings"] == first["settings"]
    verified = json.loads(program(*search, "--verify", code=(0, 3, 7)))
    assert verified["failure"] is None
    assert not verified["differences"]
    program("-c", ELSEWHERE)
    assert (tmp_path / "fast.png").stat().st_size > 0
    (tmp_path / "fast.py").unlink()
    run = ("accel_search_runs", "--export", "fast.py")
    program("-m", "accel_search.write_report", *run)
    assert "accel_search" not in (tmp_path / "fast.py").read_text().partition("MODEL")[0]
    own = [word for word in search if word not in ("--implementation", "package")]
    assert "holds no result" in subprocess.run(
        [sys.executable, *own, "--verify"], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    ).stderr  # fmt: skip
