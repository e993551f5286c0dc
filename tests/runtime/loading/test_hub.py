"""Fetching from a stand-in for the hub, over its real client: what is taken, and what stops it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from scripts.make_random_pipeline import write_pipeline

from accel_search.errors import ExitCode, LoadError
from accel_search.runtime.loading import hub
from accel_search.runtime.loading.pipeline_folder import HUB_IDS, find_pipeline, find_vae
from accel_search.runtime.loading.pipelines import load_pipeline
from tests.support.hub import IS_OLD_CLIENT, Repository, forget_session
from tests.support.making import IS_OLD, without
from tests.support.pipelines import LOG

TOKEN = "hf_" + "s3cret" * 4


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """A repository as SD1.5's is: both precisions, shards, pickles, a safety checker."""
    folder = write_pipeline(
        tmp_path_factory.mktemp("hub") / "sd15", "SD1.5", fp16=True, max_shard_size="300KB"
    )
    index = folder / "model_index.json"
    entry = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | entry))
    for name in (
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/custom.py",
        "vae/flax_model.msgpack",
        "v1-5-pruned.safetensors",
        "README.md",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"never to be fetched")
    return folder


@pytest.fixture
def sd15(served, published) -> Repository:
    served.repositories[HUB_IDS["SD1.5"]] = Repository(published)
    return served.repositories[HUB_IDS["SD1.5"]]


def offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget_session()


def settings(settings_for, pipe="SD1.5", **changes):
    return settings_for(pipe=pipe, **changes)


def test_the_half_precision_variant_and_nothing_else_is_fetched(
    served, sd15, published, settings_for, caplog
):
    with caplog.at_level(logging.INFO, LOG.name):
        pipe, folder = load_pipeline(settings(settings_for, dtype="float16"), LOG)

    words = sorted(path.name for path in (published / "tokenizer").iterdir())
    assert sorted(served.fetched()) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        *(f"tokenizer/{name}" for name in words),
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert folder.half_parts == ("vae", "text_encoder", "unet")
    assert folder.revision == sd15.commit
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float16
    assert pipe.safety_checker is None
    assert "its safety checker is left out" in caplog.text
    assert f"fetching {9 + len(words)} files, 0.00 GB" in caplog.text


def test_plain_files_are_fetched_for_full_precision_and_kept_for_offline_use(
    served, sd15, settings_for, monkeypatch, caplog
):
    first = find_pipeline(settings(settings_for), half=False, log=LOG)
    assert not any(".fp16" in name for name in served.fetched())
    assert "unet/diffusion_pytorch_model-00003-of-00003.safetensors" in served.fetched()
    assert first.half_parts == ()

    served.requests.clear()
    assert find_pipeline(settings(settings_for), half=False, log=LOG) == first
    assert served.fetched() == []

    offline(monkeypatch)
    served.requests.clear()
    with caplog.at_level(logging.INFO, LOG.name):
        pipe, again = load_pipeline(settings(settings_for), LOG)
    assert again == first
    assert served.requests == []
    assert "using the copy that was fetched before, commit " + sd15.commit in caplog.text


def test_plain_files_are_taken_where_there_are_no_others(served, tmp_path, settings_for):
    write_pipeline(tmp_path / "sd21", "SD2.1")
    served.repositories[HUB_IDS["SD2.1"]] = Repository(tmp_path / "sd21")

    pipe, folder = load_pipeline(settings(settings_for, "SD2.1", dtype="float16"), LOG)

    assert folder.half_parts == ()
    assert pipe.unet.dtype == torch.float16


def test_a_part_without_half_precision_files_is_taken_in_plain_ones(
    served, published, tmp_path, settings_for
):
    folder = shutil.copytree(published, tmp_path / "mixed")
    (folder / "text_encoder" / "model.fp16.safetensors").unlink()
    served.repositories["me/mixed"] = Repository(folder)

    pipe, found = load_pipeline(settings(settings_for, "me/mixed", dtype="float16"), LOG)

    assert found.half_parts == ("vae", "unet")
    assert "text_encoder/model.safetensors" in served.fetched()
    assert pipe.text_encoder.dtype == torch.float16


def test_a_revision_is_pinned_to_its_commit(served, sd15, settings_for):
    sd15.tags = ("v1",)
    found = find_pipeline(settings(settings_for, revision="v1"), half=True, log=LOG)

    assert found.revision == found.path.name == sd15.commit
    pinned = find_pipeline(settings(settings_for, revision=sd15.commit), half=True, log=LOG)
    assert pinned == found


@pytest.mark.skipif(IS_OLD_CLIENT, reason="the hub's client below 1 goes on in the next run")
def test_a_connection_that_dies_half_way_is_resumed_within_the_file(
    served, sd15, settings_for, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    name = "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors"
    sd15.dies[name] = 1

    load_pipeline(settings(settings_for, dtype="float16"), LOG)

    assert served.fetched().count(name) == 2
    whole = sd15.files[name].stat().st_size
    assert 0 < served.begins[name] < whole  # The second time, what was left of it.


def test_what_was_fetched_before_a_failure_is_not_fetched_again(
    served, sd15, settings_for, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    name = "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors"
    sd15.dies[name] = 100
    with pytest.raises(LoadError, match=r"could not be fetched \(.*run the same command again"):
        find_pipeline(settings(settings_for), half=True, log=LOG)

    sd15.dies.clear()
    before = set(served.fetched())
    served.requests.clear()
    find_pipeline(settings(settings_for), half=True, log=LOG)

    assert name in served.fetched()
    large = {file for file in before - {name} if file.endswith(".safetensors")}
    assert len(large) == 3
    assert not large & set(served.fetched())


def test_an_interrupted_fetch_ends_at_once_and_goes_on_with_what_is_missing(
    served, sd15, settings_for, monkeypatch
):
    """In the thread that signals come to: a pool of threads would first finish what it began."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sd15.pauses = 0.05
    name = "text_encoder/model.fp16.safetensors"
    pressed = []

    def press():
        while name not in served.fetched():
            time.sleep(0.01)
        time.sleep(0.5)
        pressed.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            find_pipeline(settings(settings_for), half=True, log=LOG)
        assert time.monotonic() - pressed[0] < 3
    finally:
        signal.signal(signal.SIGINT, before)
        finger.join()

    sd15.pauses = 0.0
    arrived = served.fetched()[:-1]
    served.requests.clear()
    find_pipeline(settings(settings_for), half=True, log=LOG)
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in arrived
    assert name in served.fetched() and not set(arrived) & set(served.fetched())


def test_a_file_of_another_size_than_the_hubs_is_fetched_again(served, sd15, settings_for):
    """A cache that was copied half, or met a full disk."""
    found = find_pipeline(settings(settings_for), half=True, log=LOG)
    weights = found.path / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    whole = weights.read_bytes()
    weights.resolve().write_bytes(whole[:-100])
    served.requests.clear()

    pipe, again = load_pipeline(settings(settings_for, dtype="float16"), LOG)

    assert again == found and weights.read_bytes() == whole
    assert served.fetched() == ["vae/diffusion_pytorch_model.fp16.safetensors"]


def test_too_small_a_disk_shows_before_anything_large_is_fetched(
    served, sd15, settings_for, monkeypatch
):
    sd15.full_disk_sizes["vae/diffusion_pytorch_model.fp16.safetensors"] = 3 * 10**9
    usage = shutil.disk_usage("/")._replace(free=2 * 10**9)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda folder: usage)

    with pytest.raises(LoadError, match=r"needs 3\.00 GB more in .*hub, where 2\.00 GB are free"):
        find_pipeline(settings(settings_for), half=True, log=LOG)

    assert served.fetched() == ["model_index.json"]


def test_a_commit_that_shares_files_with_an_older_one_needs_no_room_for_them(
    served, published, tmp_path, settings_for, monkeypatch
):
    folder = shutil.copytree(published, tmp_path / "moving")
    served.repositories["me/moving"] = Repository(folder)
    first = find_pipeline(settings(settings_for, "me/moving"), half=True, log=LOG)
    (folder / "README.md").write_text("changed")
    usage = shutil.disk_usage("/")._replace(free=hub.SPARE_BYTES + 200_000)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda folder: usage)
    served.requests.clear()

    second = find_pipeline(settings(settings_for, "me/moving"), half=True, log=LOG)

    assert second.revision != first.revision
    assert not any(name.endswith(".safetensors") for name in served.fetched())


def _error(settings_for, pipe="SD1.5", **changes) -> str:
    with pytest.raises(LoadError) as caught:
        load_pipeline(settings(settings_for, pipe, **changes), LOG)
    assert caught.value.exit_code == ExitCode.NOT_LOADED
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"--pipe {pipe}: ")
    assert TOKEN not in message
    return message


def _gated(served, repository, monkeypatch):
    repository.token = TOKEN


def _disabled(served, repository, monkeypatch):
    repository.disabled = True


def _missing(served, repository, monkeypatch):
    served.repositories.clear()


def _failing(served, repository, monkeypatch):
    served.status = 503


def _bad_token(served, repository, monkeypatch):
    served.status = 403


def _busy(served, repository, monkeypatch):
    served.status = 429


def _another_hub(served, repository, monkeypatch):
    served.status = 404


def _odd_token(served, repository, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN + "é")


def _unreachable(served, repository, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


OBSTACLES = {
    "gated": (_gated, "is gated: accept its licence at http://127.0.0.1"),
    "disabled": (_disabled, "was disabled by the hub: give another id"),
    "missing": (_missing, "does not exist, was removed or is private: check the spelling"),
    "failing": (_failing, "the hub fails (HTTP 503): try again later"),
    "bad token": (_bad_token, "may not be read (HTTP 403): set HF_TOKEN to a valid token"),
    "busy": (_busy, "the hub was asked too often (HTTP 429): wait some minutes, or set HF_TOKEN"),
    "another hub": (_another_hub, "does not exist, was removed or is private: check the spelling"),
    "odd token": (
        _odd_token,
        "cannot be requested: HF_TOKEN holds characters that no token has: set it",
    ),
    "unreachable": (_unreachable, "could not be fetched (Connect"),
    "offline": (lambda served, repository, patch: offline(patch), "in offline mode: unset HF_HUB_"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_each_obstacle_is_one_line_and_a_copy_fetched_before_is_taken(
    served, sd15, settings_for, monkeypatch, caplog, name
):
    stand_in_the_way, expected = OBSTACLES[name]
    if name == "odd token" and IS_OLD_CLIENT:
        pytest.skip("the hub's client below 1 sends it")
    with monkeypatch.context() as patch:
        stand_in_the_way(served, sd15, patch)
        assert expected in _error(settings_for)
    forget_session()
    served.status, sd15.token, sd15.disabled = None, None, False
    served.repositories[HUB_IDS["SD1.5"]] = sd15
    found = find_pipeline(settings(settings_for), half=True, log=LOG)

    stand_in_the_way(served, sd15, monkeypatch)
    with caplog.at_level(logging.INFO, LOG.name):
        assert find_pipeline(settings(settings_for), half=True, log=LOG) == found
    if name != "gated":  # Its list is public, and says that the copy is what it is now.
        assert expected.partition(":")[0].partition(" (")[0] in caplog.text
        assert "using the copy that was fetched before" in caplog.text

    (found.path / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    assert "is incomplete" in _error(settings_for)


def test_a_revision_that_is_not_there_is_not_answered_by_another(served, sd15, settings_for):
    sd15.tags = ("v9",)
    find_pipeline(settings(settings_for, revision="v9"), half=True, log=LOG)
    sd15.tags = ()
    assert "at revision v9 has no such revision: take a branch" in _error(
        settings_for, revision="v9"
    )


def test_a_repository_of_something_else_is_refused_before_it_is_fetched(
    served, published, tmp_path, settings_for
):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text("{}")
    served.repositories["me/text"] = Repository(tmp_path / "text")
    assert "holds no model_index.json, so it is not a diffusers pipeline" in _error(
        settings_for, "me/text"
    )

    pickled = shutil.copytree(published, tmp_path / "pickled")
    for file in (pickled / "unet").glob("*.safetensors"):
        file.unlink()
    served.repositories["me/pickled"] = Repository(pickled)
    assert "unet has only pickled weights (diffusion_pytorch_model.bin)" in _error(
        settings_for, "me/pickled"
    )

    index = pickled / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": ["os", "system"]}))
    assert "never a repository's own code" in _error(settings_for, "me/pickled")
    assert set(served.fetched()) == {"model_index.json"}


def _without(*names):
    def remove(folder):
        for name in names:
            place = folder / name
            shutil.rmtree(place) if place.is_dir() else place.unlink()

    return remove


INCOMPLETE = {
    "config": (_without("unet/config.json"), "unet lacks its config.json, so it is incomplete"),
    "tokenizer": (_without("tokenizer"), "tokenizer lacks its tokenizer_config.json"),
    "scheduler": (_without("scheduler"), "scheduler lacks its scheduler_config.json"),
    "part": (_without("vae"), "vae lacks its config.json"),
    "shard": (
        _without("unet/diffusion_pytorch_model-00002-of-00003.safetensors"),
        "unet lacks diffusion_pytorch_model-00002-of-00003.safetensors, so it is incomplete",
    ),
    "index of shards": (
        _without("unet/diffusion_pytorch_model.safetensors.index.json"),
        "unet lacks its index of shards",
    ),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_an_incomplete_repository_is_refused_before_it_is_fetched(
    served, published, tmp_path, settings_for, name
):
    break_it, expected = INCOMPLETE[name]
    break_it(shutil.copytree(published, tmp_path / "copy"))
    served.repositories["me/copy"] = Repository(tmp_path / "copy")

    assert expected in _error(settings_for, "me/copy")
    assert served.fetched() == ["model_index.json"]


def test_shards_that_another_size_left_behind_are_no_part_of_it(
    served, published, tmp_path, settings_for
):
    unet = shutil.copytree(published, tmp_path / "copy") / "unet"
    (unet / "custom.py").unlink()
    (unet / "diffusion_pytorch_model-00001-of-00007.safetensors").write_bytes(b"left behind")
    pipe, _ = load_pipeline(settings(settings_for, str(tmp_path / "copy")), LOG)
    assert pipe.unet.dtype is torch.float32


def test_a_cache_that_cannot_be_written_to_is_one_line(
    served, sd15, settings_for, monkeypatch, tmp_path
):
    (tmp_path / "file").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file"))
    message = _error(settings_for)
    assert f"cannot be written to the cache {tmp_path / 'file'} (NotADirectoryError: " in message
    assert message.endswith("set HF_HOME to a folder that you may write to")


def test_a_revision_behind_an_id_is_one_line(served, settings_for):
    assert "no such folder; give --pipe me/own --revision v1" in _error(settings_for, "me/own@v1")


def test_a_malformed_id_is_one_line(served, settings_for):
    assert "cannot exist: a hub id is owner/name" in _error(settings_for, "a b/c--d")


def test_a_token_comes_from_the_environment_and_goes_into_no_line(
    served, sd15, settings_for, monkeypatch, caplog
):
    sd15.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    with caplog.at_level(logging.DEBUG):
        load_pipeline(settings(settings_for), LOG)

    # The client asks things of its own too, once a process, and without a token.
    asked = {token for _, path, token in served.requests if HUB_IDS["SD1.5"] in path}
    assert asked == {TOKEN}
    assert TOKEN not in caplog.text


# Another VAE


@pytest.fixture(scope="session")
def other_vae(tmp_path_factory) -> Path:
    """A repository of a VAE alone, as those that replace SDXL's."""
    from diffusers import AutoencoderKL

    pipe = write_pipeline(tmp_path_factory.mktemp("vae") / "pipe", "SDXL", seed=1)
    vae = AutoencoderKL.from_pretrained(pipe / "vae")
    vae.register_to_config(force_upcast=False, scaling_factor=0.18215)
    folder = pipe.parent / "vae"
    vae.save_pretrained(folder)
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"never to be fetched")
    (folder / "sdxl_vae.safetensors").write_bytes(b"never to be fetched")
    return folder


def test_a_vae_from_the_hub_replaces_the_pipelines_own(
    served, sd15, other_vae, settings_for, monkeypatch
):
    served.repositories["me/vae"] = Repository(other_vae)

    pipe, folder = load_pipeline(settings(settings_for, vae="me/vae"), LOG)

    assert set(served.fetched()) & {"sdxl_vae.safetensors", "vae/config.json"} == set()
    assert not any(name.endswith(".bin") for name in served.fetched())
    assert pipe.vae.config.force_upcast is False
    commit = served.repositories["me/vae"].commit
    assert folder.vae.name == f"me/vae@{commit[:12]}"
    at = find_pipeline(settings(settings_for, vae=f"me/vae@{commit}"), half=False, log=LOG)
    assert at.vae.name == f"me/vae@{commit[:12]}"
    with pytest.raises(LoadError, match=r"--vae me/vae@no-such: .*me/vae at revision no-such"):
        find_pipeline(settings(settings_for, vae="me/vae@no-such"), half=False, log=LOG)
    offline(monkeypatch)
    assert find_pipeline(settings(settings_for, vae="me/vae"), half=False, log=LOG) == folder


def test_a_vae_from_a_folder_is_known_by_its_weights(other_vae, made, tmp_path, settings_for):
    copy = shutil.copytree(other_vae, tmp_path / "vae")
    name = find_vae(str(copy), False, LOG).name
    assert name == find_vae(str(other_vae), False, LOG).name
    weights = copy / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert find_vae(str(copy), False, LOG).name != name


def _class(folder: Path, name: str) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": name}))


BROKEN_VAES = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    "other class": (lambda f: _class(f, "AutoencoderTiny"), "only AutoencoderKL can replace"),
    "code": (lambda f: (f / "vae.py").write_text("raise SystemExit"), "which is never run"),
    "pipeline": (lambda f: (f / "model_index.json").write_text("{}"), "whole pipeline: give its"),
    "pickles": (
        lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(),
        "only pickled weights",
    ),
    "without a tensor": (
        lambda f: without(f / "diffusion_pytorch_model.safetensors", "decoder.conv_in.bias"),
        "lacks 1 of the tensors that its config.json asks for (decoder.conv_in.bias)",
    ),
    "cut off": (
        lambda f: (f / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 99),
        "truncated or corrupt",
    ),
}


@pytest.mark.parametrize("name", BROKEN_VAES)
def test_a_broken_vae_is_one_line(other_vae, made, tmp_path, settings_for, name):
    break_it, expected = BROKEN_VAES[name]
    folder = shutil.copytree(other_vae, tmp_path / "vae")
    break_it(folder)

    with pytest.raises(LoadError) as caught:
        load_pipeline(settings_for(vae=str(folder)), LOG)

    if name == "without a tensor" and IS_OLD:
        expected = "could not be loaded (ValueError: "
    assert expected in str(caught.value)
    assert str(caught.value).startswith("--vae ") and "\n" not in str(caught.value)


def test_a_vae_of_other_latents_is_refused(made, tmp_path, settings_for):
    from tests.support import making

    vae = making.make_vae()
    vae = type(vae).from_config({**vae.config, "latent_channels": 16})
    vae.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="latents of 16 channels, but the UNet of .* makes 4"):
        load_pipeline(settings_for(vae=str(tmp_path)), LOG)
    vae = making.make_vae(scaling_factor=0.13025)
    vae.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"scaled by 0.13025, those of --pipe .* by 0.18215: give"):
        load_pipeline(settings_for(vae=str(tmp_path)), LOG)
    with pytest.raises(LoadError, match=r"--vae nowhere: no such folder; give a folder of"):
        load_pipeline(settings_for(vae="nowhere"), LOG)


# The real program


@pytest.mark.parametrize(
    "more, says",
    [
        (["--pipe", "SD1.5"], "--pipe SD1.5: the hub repository stable-diffusion-v1-5/stable-dif"),
        (["--pipe", "me/nothing"], "--pipe me/nothing: the hub repository me/nothing does not ex"),
        (["--vae", "me/nothing"], "--vae me/nothing: the hub repository me/nothing does not exis"),
    ],
)
def test_the_program_ends_with_code_5_and_one_line(
    served, sd15, made, monkeypatch, tmp_path, capsys, more, says
):
    from accel_search.traversal_search import main

    sd15.token = TOKEN
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "--device",
                "cpu",
                "--clip_model",
                str(made / "scorer"),
                "--prompts",
                "builtin",
                "--num_samples",
                "4",
                *more,
            ]
        )
        == 5
    )
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"accel-search: error: {says}")


@pytest.mark.slow
def test_a_process_of_its_own_takes_the_hub_and_its_cache_from_the_environment(
    served, sd15, made, tmp_path
):
    """One process asks for three things in turn: importing torch is the dear part."""
    sd15.token = TOKEN
    script = (
        "import sys; from accel_search.traversal_search import main\n"
        "common = sys.argv[1:]\n"
        "for more in (['--pipe', 'SD1.5'], ['--pipe', 'me/nothing'],\n"
        "             ['--pipe', sys.argv[2], '--vae', 'me/nothing']):\n"
        "    print(main([*common[2:], *more]), flush=True)\n"
    )
    ran = subprocess.run(
        [
            sys.executable, "-c", script, "-", str(made / "sd"),
            "--device", "cpu", "--clip_model", str(made / "scorer"),
            "--prompts", str(made / "prompts.txt"), "--num_samples", "4",
        ],
        cwd=tmp_path,
        env={**os.environ, "HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )  # fmt: skip
    assert ran.stdout.split() == ["5"] * 3, ran.stderr
    lines = [line for line in ran.stderr.splitlines() if line.startswith("accel-search: error: ")]
    assert [line.split(": ")[2] for line in lines] == [
        "--pipe SD1.5", "--pipe me/nothing", "--vae me/nothing",
    ]  # fmt: skip
    assert "is gated" in lines[0] and served.url in lines[0]
    assert "Traceback" not in ran.stderr
    # HF_HOME is where the cache is.
    assert not (tmp_path / "hf").exists()


@pytest.mark.slow
def test_ctrl_c_during_a_fetch_ends_the_program_with_its_code(served, sd15, made, tmp_path):
    sd15.pauses = 0.1
    script = (
        "import signal, sys; from accel_search.traversal_search import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # As in a terminal.
        "sys.exit(main())\n"
    )
    program = subprocess.Popen(
        [
            sys.executable, "-c", script, "--pipe", "SD1.5", "--dtype", "float16",
            "--device", "cpu", "--clip_model", str(made / "scorer"),
            "--prompts", str(made / "prompts.txt"), "--num_samples", "4",
        ],
        cwd=tmp_path,
        env={**os.environ, "HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home")},
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 120
        while not any(name.endswith(".safetensors") for name in served.fetched()):
            assert program.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.5)
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=5)
    finally:
        program.kill()
    assert program.returncode == ExitCode.INTERRUPTED
    assert said.splitlines()[-1].startswith("accel-search: interrupted; ")
    assert "Traceback" not in said


# Prompts


def test_coco_captions_come_from_the_hub_and_then_from_the_cache(
    served, tmp_path, settings_for, monkeypatch
):
    import datasets
    import pyarrow
    import pyarrow.parquet

    from accel_search.runtime.loading.prompts import COCO_DATASET, load_prompts

    data = tmp_path / "coco" / "data"
    data.mkdir(parents=True)
    for split, count in (("train", 5), ("validation", 12)):
        rows = [[f"{split} picture {i}", "other words"] for i in range(count)]
        table = pyarrow.table({"file_name": [str(i) for i in range(count)], "captions": rows})
        pyarrow.parquet.write_table(table, data / f"{split}-00000-of-00001.parquet")
    served.repositories[f"datasets/{COCO_DATASET}"] = Repository(tmp_path / "coco")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", served.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    asked = settings_for(prompts="coco", num_samples=4, held_out_samples=8)

    chosen = load_prompts(asked)

    assert chosen.source == "coco"
    texts = {prompt.text for prompt in (*chosen.search, *chosen.held_out)}
    assert texts == {f"validation picture {i}" for i in range(12)}
    served.requests.clear()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    offline(monkeypatch)
    assert load_prompts(asked) == chosen
    assert served.requests == []
