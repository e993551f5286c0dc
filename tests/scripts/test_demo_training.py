"""The demo's training code: its world, its tokens, and short runs that end in loadable folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
open_clip = pytest.importorskip("open_clip")

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "training")]

import train_demo  # noqa: E402

from training import (  # noqa: E402
    denoiser,
    drawing,
    model_card,
    package,
    scenes,
    scorer,
    tokenizer,
    vae,
)
from training.training import Run, load_tensors, parameter_key  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    """Several threads wait for each other at every layer where other processes take the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def some_scenes() -> torch.Tensor:
    return scenes.sample_scenes(2000, torch.Generator().manual_seed(0))


def test_captions_parse_back_to_their_scene(some_scenes: torch.Tensor) -> None:
    texts = scenes.captions(some_scenes)
    assert torch.equal(scenes.parse_captions(texts), some_scenes)


@pytest.mark.parametrize("text", ["", "a red dog", "two red circle in a row on a navy background"])
def test_other_sentences_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a caption"):
        scenes.parse_caption(text)


def test_two_wordings_of_one_scene_share_a_code() -> None:
    ground = "on a navy background"
    above, below, other = scenes.parse_captions(
        [
            f"a small red circle above a large blue star {ground}",
            f"a large blue star below a small red circle {ground}",
            f"a large blue star above a small red circle {ground}",
        ]
    )
    codes = scenes.scene_code(torch.stack([above, below, other])).tolist()
    assert codes[0] == codes[1] != codes[2]


def test_different_scenes_have_different_codes(some_scenes: torch.Tensor) -> None:
    rows = {tuple(row) for row in scenes.canonical(some_scenes).tolist()}
    assert len(set(scenes.scene_code(some_scenes).tolist())) == len(rows)


def test_reserved_scenes_are_never_sampled_for_training(some_scenes: torch.Tensor) -> None:
    assert not scenes.is_reserved(some_scenes).any()
    assert scenes.is_reserved(scenes.sample_scenes(200, reserved=True)).all()


def test_prompts_are_reserved_distinct_and_balanced() -> None:
    prompts = package.prompt_scenes()
    assert scenes.is_reserved(prompts).all()
    assert len(set(scenes.scene_code(prompts).tolist())) == package.PROMPTS
    development = scenes.scene_code(package.development_scenes()).tolist()
    assert not set(development) & set(scenes.scene_code(prompts).tolist())
    searched = prompts[:64]
    assert min(torch.bincount(searched[:, scenes.COLOR_1], minlength=10).tolist()) >= 4
    assert min(torch.bincount(searched[:, scenes.KIND], minlength=3).tolist()) >= 16


def test_a_hard_negative_differs_in_meaning(some_scenes: torch.Tensor) -> None:
    wrong = scenes.mutate(some_scenes, torch.Generator().manual_seed(1))
    assert (scenes.scene_code(wrong) != scenes.scene_code(some_scenes)).all()
    assert ((wrong != some_scenes).sum(1) <= 2).all()


def test_each_word_is_one_token() -> None:
    words = tokenizer.build_tokenizer()
    assert [word for word in scenes.WORDS if len(words.tokenize(word)) != 1] == []
    assert len(words.tokenize("zebra?")) > 2


def test_scenes_are_encoded_as_their_captions_are(some_scenes: torch.Tensor) -> None:
    words = tokenizer.build_tokenizer()
    texts = ["", *scenes.captions(some_scenes[:300])]
    expected = words(texts, padding="max_length", return_tensors="pt").input_ids
    encoder = tokenizer.CaptionEncoder("cpu", words)
    assert torch.equal(encoder(some_scenes[:300]), expected[1:])
    assert torch.equal(encoder.empty(), expected[0])


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_a_shape_is_drawn_in_its_colour_where_it_belongs(shape: str) -> None:
    scene = scenes.parse_caption(f"a large blue {shape} at the center on a beige background")
    geometry = drawing.place_objects(scene[None], torch.Generator().manual_seed(0))
    image = (drawing.draw(geometry)[0] + 1) / 2
    x, y = geometry.center[0, 0].round().long().tolist()
    radius = float(geometry.radius[0, 0])
    # A ring is hollow: its band lies at three quarters of its radius.
    inside = image[:, y, x + round(0.76 * radius)] if shape == "ring" else image[:, y, x]
    assert torch.allclose(inside, torch.tensor(scenes.COLORS["blue"]), atol=1e-3)
    if shape == "ring":
        assert torch.allclose(image[:, y, x], torch.tensor(scenes.BACKGROUNDS["beige"]), atol=1e-3)
    assert torch.allclose(image[:, 2, 2], torch.tensor(scenes.BACKGROUNDS["beige"]), atol=1e-3)


def test_shapes_look_different() -> None:
    texts = [f"a large red {shape} at the center on a white background" for shape in scenes.SHAPES]
    images = drawing.draw_scenes(scenes.parse_captions(texts), torch.Generator().manual_seed(0))
    apart = (images[:, None] - images[None]).square().mean((2, 3, 4))
    assert (apart + torch.eye(len(texts)) > 0.01).all()


@pytest.mark.parametrize(("relation", "axis", "sign"), [("above", 1, 1), ("right of", 0, -1)])
def test_a_pair_is_placed_as_its_caption_says(relation: str, axis: int, sign: int) -> None:
    text = f"a small red circle {relation} a large blue star on a white background"
    many = scenes.parse_caption(text)[None].repeat(50, 1)
    center = drawing.place_objects(many).center
    assert (sign * (center[:, 1, axis] - center[:, 0, axis]) > 20).all()


def test_rows_have_as_many_objects_as_they_say_inside_the_picture() -> None:
    texts = [f"{count} red rings in a column on a white background" for count in scenes.COUNTS]
    many = scenes.parse_captions(texts).repeat(50, 1)
    geometry = drawing.place_objects(many)
    assert (geometry.radius > 0).sum(1).tolist() == [2, 3, 4] * 50
    reach = (geometry.center - scenes.IMAGE_SIZE / 2).abs().amax(2) + 1.05 * geometry.radius
    assert (reach[geometry.radius > 0] < scenes.IMAGE_SIZE / 2).all()


def test_standardizing_latents_leaves_pictures_alone(run: Run) -> None:
    model = vae.build_vae().eval()
    images = drawing.draw_scenes(scenes.sample_scenes(4))
    with torch.no_grad():
        before = model(images).sample
        vae.standardize_latents(run, model, [images])
        latents = vae.encode(run, model, images)
        after = model(images).sample
    assert torch.allclose(before, after, atol=1e-4)
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(4), atol=1e-2)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(
        out=tmp_path / "out",
        work=tmp_path / "work",
        sheet=tmp_path / "sheet.png",
        device=torch.device("cpu"),
    )


@pytest.mark.slow
def test_two_steps_of_every_stage_end_in_loadable_folders(run: Run) -> None:
    from diffusers import StableDiffusionPipeline

    folders = ["--out", str(run.out), "--work", str(run.work), "--sheet", str(run.sheet)]
    short = ["--steps", "2", "--batch", "2", "--steps-scale", "1e-6"]
    train_demo.main(["--stage", "all", "--device", "cpu", *folders, *short])

    prompts = (run.out / "prompts.txt").read_text().splitlines()
    assert len(set(prompts)) == package.PROMPTS
    pipeline = StableDiffusionPipeline.from_pretrained(run.out / "pipeline", safety_checker=None)
    assert {p.dtype for p in pipeline.text_encoder.parameters()} == {torch.float32}
    saved = load_tensors(run, "vae")["scaling_factor"]
    assert pipeline.vae.config.scaling_factor == pytest.approx(float(saved))
    loaded = {
        parameter_key(prefix, name): value
        for prefix in ("unet", "text_encoder")
        for name, value in getattr(pipeline, prefix).named_parameters()
    }
    trained = load_tensors(run, "denoiser")
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[key], trained[key].float()) for key in trained)

    name = f"local-dir:{run.out / 'scorer'}"
    model, _, _ = open_clip.create_model_and_transforms(name)
    words = open_clip.get_tokenizer(name)
    assert torch.equal(words(prompts), tokenizer.CaptionEncoder("cpu")(package.prompt_scenes()))
    trained = load_tensors(run, "scorer")
    assert all(torch.equal(v, trained[k].float()) for k, v in model.state_dict().items())

    card = (run.out / "README.md").read_text()
    assert "| denoiser | 2 | 2 |" in card
    assert run.sheet.stat().st_size > 0
    modes = {path.stat().st_mode & 0o777 for path in run.out.rglob("*") if path.is_file()}
    assert modes == {0o644}


DEMO = Path(train_demo.REPOSITORY, "src/accel_search/demo")


@pytest.fixture
def figures() -> dict[str, dict]:
    return json.loads((DEMO / package.FIGURES).read_text())


@pytest.mark.parametrize("stage", [vae, scorer, denoiser])
def test_defaults_are_what_the_shipped_demo_was_trained_with(figures, stage) -> None:
    trained = figures[stage.__name__.rpartition(".")[2]]
    assert (trained["steps"], trained["batch"]) == (stage.STEPS, stage.BATCH)


def test_the_shipped_demo_is_what_the_scripts_write(figures) -> None:
    assert (DEMO / "README.md").read_text() == model_card.text(figures)
    prompts = (DEMO / "prompts.txt").read_text().splitlines()
    assert prompts == scenes.captions(package.prompt_scenes())
    defaults = json.loads((DEMO / "demo.json").read_text())
    assert defaults["default_guidance_scale"] == package.DEFAULT_GUIDANCE
    assert defaults["default_steps"] == package.DEFAULT_STEPS
    weight = package.size_bytes(DEMO / "pipeline") + package.size_bytes(DEMO / "scorer")
    assert weight <= package.SIZE_LIMIT_BYTES
