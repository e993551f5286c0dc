"""CLIP score: the same number as open_clip's own pipeline gives for a saved picture."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil

import open_clip
import pytest
import torch
from PIL import Image
from scripts.make_random_scorer import main as make_random_scorer
from torchvision.transforms import Compose

from accel_search.errors import ConfigurationError, LoadError
from accel_search.runtime.scoring import clip
from accel_search.runtime.scoring.clip import ClipScorer, load_scorer
from accel_search.runtime.scoring.preprocessing import batched
from tests.support.hub import Repository
from tests.support.making import without
from tests.support.pipelines import CPU

TEXTS = ["a small red ring", "a large blue star", "many words " * 50]


def _images(height, width):
    """Smooth random pictures, with some noise: `[3, 3, H, W]`."""
    torch.manual_seed(0)
    coarse = torch.rand(3, 3, 5, 5)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (smooth + 0.1 * torch.rand_like(smooth)).clamp(0, 1)


def _direct(made, images):
    """Score as open_clip's documentation does, from 8-bit PIL pictures."""
    name = f"local-dir:{made / 'scorer'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    pictures = [
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()) for image in images
    ]
    inputs = torch.stack([preprocess(picture) for picture in pictures])
    with torch.no_grad():
        image_features = model.eval().encode_image(inputs)
        text_features = model.encode_text(open_clip.get_tokenizer(name)(TEXTS))
    image_features /= image_features.norm(dim=-1, keepdim=True)
    text_features /= text_features.norm(dim=-1, keepdim=True)
    return inputs, 100 * (image_features * text_features).sum(-1)


@pytest.mark.parametrize("size, levels", [((32, 32), 0.01), ((64, 64), 1.01), ((48, 80), 1.01)])
def test_preprocessing_and_score_agree_with_open_clips_own(made, scorer, size, levels):
    images = _images(*size)
    inputs, scores = _direct(made, images)

    own = scorer.preprocess(images)

    # PIL rounds to 8 bits after resizing along each axis; the deviation's least is 0.2.
    assert own.shape == inputs.shape
    assert (own - inputs).abs().max() <= levels / 255 / 0.2
    found = scorer.score(images, TEXTS)
    assert found == pytest.approx(scores.tolist(), abs=1e-3 if size == (32, 32) else 0.3)
    assert all(isinstance(score, float) for score in found)


PREPROCESSING = [
    {"resize_mode": "shortest", "interpolation": "bilinear"},
    {"resize_mode": "shortest", "interpolation": "random"},
    {"resize_mode": "squash"},
    {"resize_mode": "longest", "fill_color": 0},
    {"resize_mode": "longest", "fill_color": 200},
    {"resize_mode": "longest", "fill_color": [250, 0, 100], "interpolation": "bilinear"},
]


@pytest.mark.parametrize(
    "config", PREPROCESSING, ids=lambda config: "-".join(map(str, config.values()))
)
@pytest.mark.parametrize("size", [(81, 48), (17, 33)])
def test_every_way_to_preprocess_agrees_with_open_clips_own(
    made, tmp_path, settings_for, config, size
):
    shutil.copytree(made / "scorer", tmp_path / "scorer")
    _edit_config(tmp_path / "scorer", lambda c: c["preprocess_cfg"].update(config))
    images = _images(*size)
    inputs, _ = _direct(tmp_path, images)

    own = load_scorer(settings_for(clip_model=str(tmp_path / "scorer")), CPU).preprocess(images)

    assert own.shape == inputs.shape
    # PIL rounds to 8 bits after each axis, and enlarging carries the first rounding on.
    assert (own - inputs).abs().max() <= 2.01 / 255 / 0.2


def test_a_model_that_is_not_square_is_preprocessed_as_open_clip_does():
    images = _images(48, 80)
    transform = open_clip.image_transform((32, 24), is_train=False, std=(0.2,) * 3)

    own = images
    for step in batched(transform):
        own = step(own)

    levels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    expected = torch.stack([transform(Image.fromarray(each)) for each in levels])
    assert own.shape == (3, 3, 32, 24)
    assert (own - expected).abs().max() <= 1.51 / 255 / 0.2  # It was not rounded to begin with.


def test_a_step_that_is_not_known_is_refused():
    from torchvision.transforms import Grayscale

    with pytest.raises(LoadError, match="has a step Grayscale, which is not known here"):
        batched(Compose([Grayscale()]))


def test_a_score_does_not_depend_on_the_batch(scorer):
    images = _images(32, 32)

    alone = [scorer.score(images[i : i + 1], TEXTS[i : i + 1])[0] for i in range(3)]

    assert scorer.score(images, TEXTS) == pytest.approx(alone, abs=1e-3)


def test_a_text_is_scored_against_its_own_image(scorer):
    images = _images(32, 32)

    scores = scorer.score(images, TEXTS)

    assert scorer.score(images.flip(0), TEXTS[::-1]) == pytest.approx(scores[::-1], abs=1e-3)
    assert scorer.score(images.flip(0), TEXTS)[0] != pytest.approx(scores[0], abs=1e-2)


def test_the_scorer_identifies_its_weights(made, tmp_path, settings_for):
    shutil.copytree(made / "scorer", tmp_path / "scorer")
    same = load_scorer(settings_for(clip_model=str(tmp_path / "scorer")), CPU)
    from safetensors.torch import load_file, save_file

    file = tmp_path / "scorer" / "open_clip_model.safetensors"
    weights = load_file(file)
    weights["logit_scale"] += 1
    save_file(weights, file)
    other = load_scorer(settings_for(clip_model=f"local-dir:{tmp_path / 'scorer'}"), CPU)

    assert same.name == load_scorer(settings_for(), CPU).name
    assert same.name.startswith("scorer@")
    assert other.name != same.name


SNAPSHOTS = {
    "laion's": ["open_clip_pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin"],
    "all of laion's": ["open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"],
    "timm's": ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors"],
    "both of open_clip's": ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"],
    "transformers' name": ["model.safetensors", "a.safetensors", "pytorch_model.bin"],
    "a name of its own": ["mine.safetensors", "optimizer.bin"],
}
"""Files in the folder of a scorer; the first is what open_clip reads."""


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_of_several_files_it_is_named_by_the_one_that_open_clip_reads(
    made, tmp_path, settings_for, scorer, name
):
    folder = shutil.copytree(made / "scorer", tmp_path / "scorer")
    weights = (folder / "open_clip_model.safetensors").rename(folder / "weights")
    for file in SNAPSHOTS[name]:
        (folder / file).write_bytes(b"never read")
    weights.rename(folder / SNAPSHOTS[name][0])

    found = load_scorer(settings_for(clip_model=str(folder)), CPU)

    assert found.name == scorer.name
    images = _images(32, 32)
    # The sums' order, so their last digit, depends on where in memory the weights lie.
    assert found.score(images, TEXTS) == pytest.approx(scorer.score(images, TEXTS), rel=1e-5)


def test_loading_is_quiet_and_leaves_logging_as_it_was(settings_for, capfd, caplog):
    root = logging.getLogger()
    before = root.level, list(root.handlers)

    load_scorer(settings_for(), CPU)

    assert (root.level, list(root.handlers)) == before
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def _edit_config(folder, change):
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def _cut_off(file):
    file.write_bytes(file.read_bytes()[:-100])


BROKEN = {
    "no config": (lambda f: (f / "open_clip_config.json").unlink(), "is missing; give"),
    "broken config": (
        lambda f: (f / "open_clip_config.json").write_text("{"),
        "no open_clip configuration",
    ),
    "other config": (
        lambda f: (f / "open_clip_config.json").write_text("{}"),
        "no open_clip configuration",
    ),
    "no weights": (
        lambda f: (f / "open_clip_model.safetensors").rename(f / "model.bin"),
        "0 .safetensors files",
    ),
    "two that open_clip takes the first of": (
        lambda f: shutil.copy(
            (f / "open_clip_model.safetensors").rename(f / "a.safetensors"), f / "b.safetensors"
        ),
        "2 .safetensors files and none of open_clip_model.safetensors, open_clip_pytorch_model.sa",
    ),
    "pickled weights before transformers'": (
        lambda f: (
            (f / "open_clip_model.safetensors").rename(f / "model.safetensors"),
            (f / "open_clip_pytorch_model.bin").write_bytes(b"never read"),
        ),
        "which open_clip reads its open_clip_pytorch_model.bin, a pickle: give the model's name",
    ),
    "cut-off weights": (
        lambda f: _cut_off(f / "open_clip_model.safetensors"),
        "could not be loaded (SafetensorError: Error while deserializing header: incomplete meta",
    ),
    "weights of another shape": (
        lambda f: _edit_config(f, lambda c: c["model_cfg"].update(embed_dim=8)),
        "could not be loaded (RuntimeError: size mismatch for text_projection: copying a param wi",
    ),
    "weights that lack a tensor": (
        lambda f: without(f / "open_clip_model.safetensors", "visual.conv1.weight"),
        'Missing key(s) in state_dict: "visual.conv1.weight"): its weights and open_clip_config.j',
    ),
    "a setting that no model has": (
        lambda f: _edit_config(f, lambda c: c["model_cfg"].update(colour=1)),
        "got an unexpected keyword argument 'colour'): its weights and open_clip_config.json",
    ),
    "a tokenizer that is not there": (
        lambda f: _edit_config(
            f, lambda c: c["model_cfg"]["text_cfg"].update(hf_tokenizer_name="me/tokenizer")
        ),
        "could not be loaded (",
    ),
    "resizing that is not known": (
        lambda f: _edit_config(f, lambda c: c["preprocess_cfg"].update(resize_mode="widest")),
        "has resize_mode 'widest'; expected shortest or longest or squash",
    ),
    "interpolation that is not known": (
        lambda f: _edit_config(f, lambda c: c["preprocess_cfg"].update(interpolation="nearest")),
        "has interpolation 'nearest'; expected bicubic or bilinear or random",
    ),
    "pictures of one channel": (
        lambda f: _edit_config(f, lambda c: c["preprocess_cfg"].update(mode="L")),
        "has mode 'L'; expected RGB",
    ),
    "a fill that is no colour": (
        lambda f: _edit_config(f, lambda c: c["preprocess_cfg"].update(fill_color=[0.5, 0.5])),
        "has fill_color [0.5, 0.5]; expected a number from 0 to 255 or three",
    ),
    "preprocessing that is no object": (
        lambda f: _edit_config(f, lambda c: c.update(preprocess_cfg="openai")),
        "its preprocess_cfg is 'openai'; expected an object",
    ),
    "tokenizer with code": (
        lambda f: _edit_config(
            f,
            lambda c: c["model_cfg"]["text_cfg"].update(tokenizer_kwargs={"trust_remote_code": 1}),
        ),
        "run its own code",
    ),
}


def test_weights_that_the_disk_does_not_give_are_one_clear_line(made, settings_for, monkeypatch):
    def fail(file, name):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(clip.hashlib, "file_digest", fail)
    weights = str(made / "scorer" / "open_clip_model.safetensors")
    for options, given in (
        ({}, f"--clip_model {made / 'scorer'}"),
        ({"clip_model": "ViT-B-32", "clip_pretrained": weights}, f"--clip_pretrained {weights}"),
    ):
        with pytest.raises(LoadError, match=r"cannot be read \(OSError: .*Input/output") as caught:
            load_scorer(settings_for(**options), CPU)
        assert str(caught.value).startswith(f"{given}: {weights} ")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_clear_line(made, tmp_path, settings_for, name):
    break_it, expected = BROKEN[name]
    shutil.copytree(made / "scorer", tmp_path / "scorer")
    break_it(tmp_path / "scorer")

    with pytest.raises(LoadError) as caught:
        load_scorer(settings_for(clip_model=str(tmp_path / "scorer")), CPU)

    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"--clip_model {tmp_path / 'scorer'}: ")
    assert "\n" not in str(caught.value) and "network" not in str(caught.value)


def test_names_that_are_not_known_say_what_is(settings_for):
    for name in ("ViT-X", "~no-one/scorer"):
        with pytest.raises(LoadError, match=f"--clip_model {name}: neither a folder nor one of"):
            load_scorer(settings_for(clip_model=name), CPU)
    with pytest.raises(LoadError, match="local-dir:~no-one/x: .*open_clip_config.json is missing"):
        load_scorer(settings_for(clip_model="local-dir:~no-one/x"), CPU)
    with pytest.raises(LoadError, match="--clip_pretrained ~no-one/w.pt: for ViT-L-14 give one"):
        load_scorer(settings_for(clip_model=None, clip_pretrained="~no-one/w.pt"), CPU)
    with pytest.raises(LoadError, match="--clip_pretrained mine: for ViT-L-14 give one of openai"):
        load_scorer(settings_for(clip_model=None, clip_pretrained="mine"), CPU)
    with pytest.raises(ConfigurationError, match="ViT-H-14 needs --clip_pretrained: laion2b_s32b"):
        load_scorer(settings_for(clip_model="ViT-H-14"), CPU)
    with pytest.raises(ConfigurationError, match="is a folder with weights of its own"):
        load_scorer(settings_for(clip_pretrained="openai"), CPU)


def test_openais_weights_are_loaded_with_the_gelu_they_were_trained_with(settings_for, monkeypatch):
    asked = {}

    def create(name, pretrained, **options):
        asked.update(options, name=name, pretrained=pretrained)
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr("open_clip.create_model_and_transforms", create)

    with pytest.raises(LoadError, match=r"ViT-L-14/openai could not be fetched") as caught:
        load_scorer(settings_for(clip_model=None), CPU)
    assert (asked["name"], asked["pretrained"]) == ("ViT-L-14", "openai")
    assert asked["force_quick_gelu"] is True
    assert asked["precision"] == "fp32"
    assert "\n" not in str(caught.value)


def _of_another_model(file):
    torch.save(torch.nn.Linear(1, 1).state_dict(), file)


def _of_another_width(file):
    from safetensors.torch import save_file

    save_file({"positional_embedding": torch.ones(77, 8), "logit_scale": torch.ones(1)}, file)


def _script(file):
    torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1)).save(str(file))


def _torn(file):
    _of_another_model(file)
    _cut_off(file)


BROKEN_FILES = {
    "of another model.pt": (_of_another_model, 'RuntimeError: Missing key(s) in state_dict: "'),
    "of another width.safetensors": (_of_another_width, "AssertionError: text pos_embed width cha"),
    "empty.pt": (lambda f: f.touch(), "EOFError"),
    "empty.safetensors": (lambda f: f.touch(), "SafetensorError: Error while deserializing head"),
    "pointer.bin": (
        lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "UnpicklingError: Unsupported operand 118)",
    ),
    "text.bin": (lambda f: f.write_text("hello"), "KeyError: 101"),
    "code.pt": (
        lambda f: torch.save({"weights": os.system}, f),
        "UnpicklingError: ",
    ),
    "list.pt": (
        lambda f: torch.save([1], f),
        "AttributeError: 'list' object has no attribute 'items'",
    ),
    "script.pt": (_script, "RuntimeError: "),
    "cut off.pt": (_torn, "RuntimeError: PytorchStreamReader failed"),
}


@pytest.mark.filterwarnings("ignore:.*TorchScript:UserWarning", "ignore:.*torch.jit")
@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_file_of_other_weights_is_one_line_with_the_cause(tmp_path, settings_for, name):
    break_it, cause = BROKEN_FILES[name]
    break_it(tmp_path / name)

    with pytest.raises(LoadError) as caught:
        load_scorer(
            settings_for(clip_model="ViT-S-32-alt", clip_pretrained=str(tmp_path / name)), CPU
        )

    message = str(caught.value)
    assert message.startswith(f"--clip_pretrained {tmp_path / name}: ViT-S-32-alt/{name}@")
    assert f"could not be loaded ({cause}" in message
    assert "): give a file with the weights of ViT-S-32-alt (.safetensors, or a state" in message
    assert "\n" not in message and "network" not in message and len(message) < 700


OPENAIS = "timm/vit_base_patch32_clip_224.openai"


def _serve_damaged(served, tmp_path, patch):
    (tmp_path / "damaged").mkdir()
    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        (tmp_path / "damaged" / name).write_bytes(b"\0" * 99)
    served.repositories[OPENAIS] = Repository(tmp_path / "damaged")


def _fill_disk(served, tmp_path, patch):
    def download(**options):
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr("open_clip.pretrained.hf_hub_download", download)


def _offline(served, tmp_path, patch):
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _unreachable(served, tmp_path, patch):
    patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    patch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
    )
    patch.setattr(
        "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
        raising=False,
    )


def _unwritable(served, tmp_path, patch):
    (tmp_path / "file").touch()
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file"))
    _serve_damaged(served, tmp_path, patch)


OBSTACLES = {
    "offline": (
        _offline,
        "cannot be fetched in offline mode: unset HF_HUB_OFFLINE to fetch it, or give a folder",
    ),
    "full disk": (_fill_disk, "does not fit the disk of {cache}: free disk space, or set HF_HOME"),
    "no network": (
        _unreachable,
        "could not be fetched (Connect",
    ),
    "no place": (_unwritable, "cannot be written to the cache {file} (NotADirectoryError: "),
    "missing": (lambda *_: None, "does not exist, was removed or is private: check the spelling"),
    "damaged": (
        _serve_damaged,
        "could not be loaded (SafetensorError: Error while deserializing header: invalid JSON in "
        "header: EOF while parsing a value at line 1 column 0): remove {cache}/models--timm--"
        "vit_base_patch32_clip_224.openai to fetch it again, or give a folder",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_stands_in_the_way_of_a_named_scorer_is_one_line(
    served, tmp_path, settings_for, monkeypatch, name
):
    stand_in_the_way, expected = OBSTACLES[name]
    stand_in_the_way(served, tmp_path, monkeypatch)

    with pytest.raises(LoadError) as caught:
        load_scorer(settings_for(clip_model="ViT-B-32"), CPU)

    expected = expected.format(cache=tmp_path / "hf" / "hub", file=tmp_path / "file")
    assert str(caught.value).startswith(f"--clip_model ViT-B-32: ViT-B-32/openai {expected}")
    assert "\n" not in str(caught.value)
    assert ("network" in str(caught.value)) == (name == "no network")


def test_a_tokenizer_that_a_file_has_to_fetch_is_not_taken_for_the_file(
    served, made, settings_for, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    file = made / "scorer" / "open_clip_model.safetensors"
    options = {"clip_model": "roberta-ViT-B-32", "clip_pretrained": str(file)}
    with pytest.raises(LoadError) as caught:
        load_scorer(settings_for(**options), CPU)
    assert str(caught.value).endswith(
        ": the model's tokenizer or text part cannot be fetched in offline mode: unset "
        "HF_HUB_OFFLINE to fetch it, or choose another model"
    )


def test_a_library_that_a_scorer_lacks_is_named(settings_for, monkeypatch):
    def create(name, pretrained, **options):
        raise ImportError("\nT5Tokenizer requires the SentencePiece library but it was not found")

    monkeypatch.setattr("open_clip.create_model_and_transforms", create)
    with pytest.raises(LoadError, match=r"SentencePiece library .*\): install what is missing$"):
        load_scorer(settings_for(clip_model=None), CPU)


@pytest.fixture
def created(monkeypatch, scorer):
    """What open_clip was asked to create; it gives a tiny model in place of a large one."""
    asked = []

    def create(name, pretrained, **options):
        asked.append(options | {"name": name, "pretrained": pretrained})
        return scorer._model, None, Compose([])

    monkeypatch.setattr("open_clip.create_model_and_transforms", create)
    return asked


@pytest.mark.parametrize(
    "model, file, warns",
    [
        ("ViT-B-32", True, True),
        ("ViT-L-14", True, True),
        ("ViT-B-32-quickgelu", True, False),
        ("ViT-S-32-alt", True, False),  # It has no twin, so nothing else could be given.
        ("ViT-B-32", False, False),
    ],
)
def test_a_file_that_may_want_another_gelu_is_warned_of(
    settings_for, tmp_path, created, caplog, model, file, warns
):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"")
    pretrained = str(weights) if file else "laion2b_s34b_b79k"

    load_scorer(settings_for(clip_model=model, clip_pretrained=pretrained), CPU)

    assert [record.levelname for record in caplog.records] == ["WARNING"] * warns
    assert created[0]["force_quick_gelu"] is False
    if warns:
        assert caplog.messages[0].startswith(f"--clip_pretrained {weights}: ")
        assert f"give --clip_model {model}-quickgelu" in caplog.messages[0]
        assert "\n" not in caplog.messages[0]


def test_a_pretrained_file_is_taken(made, settings_for, tmp_path):
    # A real named model with weights of its own file: the smallest that open_clip has.
    name = "ViT-S-32-alt"
    model = open_clip.create_model(name)
    torch.save(model.state_dict(), tmp_path / "weights.pt")

    scorer = load_scorer(
        settings_for(clip_model=name, clip_pretrained=str(tmp_path / "weights.pt")), CPU
    )

    assert scorer.name.startswith("ViT-S-32-alt/weights.pt@")
    assert len(scorer.score(_images(32, 32)[:1], TEXTS[:1])) == 1


def test_the_images_scored_last_are_scored_against_the_caption_before_their_own(scorer):
    images, captions = _images(32, 32), [*TEXTS, "x"]
    scorer.score(images, TEXTS)
    shuffled = scorer.score_shuffled(captions, range(len(TEXTS)))
    others = ["x", *TEXTS[:-1]]
    assert shuffled == pytest.approx(scorer.score(images, others), abs=1e-4)
    scorer.score(images[2:], TEXTS[2:])
    assert scorer.score_shuffled(captions, [2]) == pytest.approx(shuffled[2:], abs=1e-4)
    assert scorer.score_shuffled(["x"], [0]) == []
    with pytest.raises(ValueError, match="not as many images"):
        scorer.score_shuffled(captions, [0, 1])


def test_texts_are_encoded_once(scorer, monkeypatch):
    fresh = ClipScorer(scorer._model, Compose([]), scorer._tokenizer, "fresh")
    fresh.preprocess = scorer.preprocess
    seen = []
    monkeypatch.setattr(
        fresh, "_tokenizer", lambda texts: seen.extend(texts) or scorer._tokenizer(texts)
    )

    first = fresh.score(_images(32, 32), ["x", "y", "x"])

    assert fresh.score(_images(32, 32), ["x", "y", "x"]) == first
    assert seen == ["x", "y"]
    assert clip.DEFAULT_MODEL == "ViT-L-14"


def _pooled(output):
    """Return what transformers calls features; version 4 returns them themselves."""
    return getattr(output, "pooler_output", output)


def _as_transformers(model):
    """Return transformers' CLIPModel in the weights of an open_clip ViT."""
    from transformers import CLIPConfig, CLIPModel

    visual = model.visual
    width, layers = visual.conv1.out_channels, len(visual.transformer.resblocks)
    text_width, text_layers = model.ln_final.weight.shape[0], len(model.transformer.resblocks)
    config = CLIPConfig(
        text_config={
            "vocab_size": model.vocab_size, "hidden_size": text_width, "hidden_act": "gelu",
            "intermediate_size": 4 * text_width, "num_hidden_layers": text_layers,
            "num_attention_heads": 2, "max_position_embeddings": model.context_length,
            "projection_dim": 16, "eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "hidden_act": "gelu",
            "projection_dim": 16,
        },
        projection_dim=16,
    )  # fmt: skip
    state = {
        "text_model.embeddings.token_embedding.weight": model.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": model.positional_embedding,
        "text_projection.weight": model.text_projection.T,
        "vision_model.embeddings.class_embedding": visual.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": visual.positional_embedding,
        "visual_projection.weight": visual.proj.T,
        "logit_scale": model.logit_scale,
    }
    norms = {
        "text_model.final_layer_norm": model.ln_final,
        "vision_model.pre_layrnorm": visual.ln_pre,
        "vision_model.post_layernorm": visual.ln_post,
    }
    for part, blocks in (
        ("text_model", model.transformer.resblocks),
        ("vision_model", visual.transformer.resblocks),
    ):
        for i, block in enumerate(blocks):
            prefix = f"{part}.encoder.layers.{i}"
            norms[f"{prefix}.layer_norm1"], norms[f"{prefix}.layer_norm2"] = block.ln_1, block.ln_2
            norms[f"{prefix}.self_attn.out_proj"] = block.attn.out_proj
            norms[f"{prefix}.mlp.fc1"], norms[f"{prefix}.mlp.fc2"] = (
                block.mlp.c_fc,
                block.mlp.c_proj,
            )
            for name, weight, bias in zip(
                "qkv", block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3),
                strict=True,
            ):  # fmt: skip
                state[f"{prefix}.self_attn.{name}_proj.weight"] = weight
                state[f"{prefix}.self_attn.{name}_proj.bias"] = bias
    for name, module in norms.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = module.weight, module.bias
    other = CLIPModel(config).eval()
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert unexpected == [] and all("position_ids" in name for name in missing)
    return other


def _as_torchmetrics_takes_it(scorer):
    """Return the model and processor that torchmetrics' CLIPScore would load by their name.

    Under the transformers that is supported here it raises by itself: it divides the features by
    their norm, and they come within an object. So they are handed to it as the tensors they were.
    """
    from transformers import CLIPImageProcessor

    model = _as_transformers(scorer._model)
    for name in ("get_image_features", "get_text_features"):
        get = getattr(model, name)
        setattr(model, name, lambda *args, get=get: _pooled(get(*args)))
    pictures = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32},
        image_mean=[0.4, 0.5, 0.6], image_std=[0.3, 0.25, 0.2],
    )  # fmt: skip

    def processor(text=None, images=None, **kwargs):
        if images is not None:
            return pictures(images=images, return_tensors="pt")
        tokens = scorer._tokenizer(text)
        return {"input_ids": tokens, "attention_mask": (tokens != 0).long()}

    return model, processor


@pytest.mark.parametrize("size, tolerance", [((32, 32), 1e-3), ((48, 80), 0.3)])
def test_the_score_is_torchmetrics_clip_score(scorer, size, tolerance):
    from torchmetrics.multimodal import CLIPScore

    metric = CLIPScore(lambda: _as_torchmetrics_takes_it(scorer))
    images = _images(*size)
    # Every picture with every text: a random model finds some of them opposite to each other.
    pairs = [(image, text) for image in images for text in TEXTS]
    scores = scorer.score(torch.stack([image for image, _ in pairs]), [text for _, text in pairs])

    found = [
        float(metric((image * 255).round().to(torch.uint8), text).detach()) for image, text in pairs
    ]

    # It gives no score below 0.
    assert found == pytest.approx([max(score, 0) for score in scores], abs=tolerance)
    assert max(found) - min(found) > 10 * tolerance and sum(score > 0 for score in found) >= 3


def test_the_text_is_cut_to_the_models_own_length(scorer):
    assert scorer._tokenizer(TEXTS).shape == (3, 16)
    assert open_clip.get_tokenizer(clip.DEFAULT_MODEL)(TEXTS).shape == (3, 77)


def test_a_random_scorer_of_one_of_open_clips_architectures_gives_positive_scores(
    tmp_path, settings_for, capsys
):
    folder = tmp_path / "scorer"
    assert make_random_scorer(["--like", "ViT-S-32-alt", "--out", str(folder)]) == 0
    assert "ViT-S-32-alt, " in capsys.readouterr().out
    scorer = load_scorer(settings_for(clip_model=str(folder)), CPU)
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert all(5 < score < 60 for score in scorer.score(images, TEXTS))


@pytest.mark.parametrize("name", ["ViT-X", "ViT-B-16-SigLIP"])
def test_a_random_scorer_of_no_plain_architecture_is_refused(tmp_path, capsys, name):
    with pytest.raises(SystemExit, match="2"):
        make_random_scorer(["--like", name, "--out", str(tmp_path)])
    assert f"--like {name}: not one of ViT-B-16, " in capsys.readouterr().err
