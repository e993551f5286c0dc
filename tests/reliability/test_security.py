"""Files that mean harm: nothing in them runs, nothing is fetched, nothing is written elsewhere."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import socket
from pathlib import Path

import pytest

from accel_search.api import load_best
from accel_search.core.candidate import Candidate
from accel_search.core.trial import Failure, Trial
from accel_search.errors import AccelSearchError, ConfigurationError, LoadError
from accel_search.report.html.page import search_page
from accel_search.report.html.script import script
from accel_search.search import strategies
from accel_search.search.space import JointSpace
from accel_search.settings import Settings
from accel_search.storage.run_reader import read_run
from accel_search.storage.trials_db import TrialStore, default_url
from accel_search.sweep.page import read_bounds, sweep_page
from tests.support.fakes import WORKLOAD
from tests.support.pages import EVIL, TARGETS, add_failure, make_run_dir

# ruff: noqa: F811
from tests.support.pipelines import made, one_thread, settings_for  # noqa: F401

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
HARM = "harmed"


class Harm:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


@pytest.fixture
def offline(monkeypatch):
    """Let nothing reach a network, and note what tries."""
    tried = []

    def connect(self, address, *_):
        tried.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return tried


@pytest.fixture
def hostile(made, tmp_path, offline, monkeypatch):
    """Return a copy of a sound pipeline; at the end nothing may have run or reached out."""
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.chdir(outside)
    folder = tmp_path / "run" / "model"
    shutil.copytree(made / "sd", folder)
    code = f"import os\nos.mkdir({str(tmp_path / HARM)!r})\n"
    yield folder, code, tmp_path / HARM
    assert not (tmp_path / HARM).exists(), "it ran"
    assert list(outside.iterdir()) == [] and offline == []


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickle_beside(folder, code, harm):
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.ckpt"):
        (folder / "unet" / name).write_bytes(pickle.dumps(Harm(harm)))
        (folder / "text_encoder" / name).write_bytes(pickle.dumps(Harm(harm)))


def pickle_alone(folder, code, harm):
    pickle_beside(folder, code, harm)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def pickle_named_safetensors(folder, code, harm):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(pickle.dumps(Harm(harm)))


def custom_pipeline(folder, code, harm):
    (folder / "pipeline.py").write_text(code)
    (folder / "my_pipeline.py").write_text(code)
    edit(folder / "model_index.json", _class_name=["my_pipeline", "MyPipeline"])


def custom_pipeline_file_alone(folder, code, harm):
    (folder / "pipeline.py").write_text(code)
    (folder / "__init__.py").write_text(code)


def code_in_a_component(folder, code, harm):
    (folder / "unet" / "my_unet.py").write_text(code)
    edit(folder / "model_index.json", unet=["my_unet", "MyUNet"])


def another_library(folder, code, harm):
    edit(folder / "model_index.json", unet=["os", "system"])


def a_path_as_library(folder, code, harm):
    edit(folder / "model_index.json", unet=["../../outside/evil", "UNet"])


def a_component_that_climbs_out(folder, code, harm):
    shutil.copytree(folder / "unet", folder.parent / "elsewhere")
    edit(folder / "model_index.json", **{"../elsewhere": ["diffusers", "UNet2DConditionModel"]})


def a_class_that_is_a_path(folder, code, harm):
    edit(folder / "model_index.json", unet=["diffusers", "../evil.Class"])


def a_component_of_three_parts(folder, code, harm):
    edit(folder / "model_index.json", unet=["diffusers", "UNet2DConditionModel", "evil"])


def another_class_in_the_config(folder, code, harm):
    edit(folder / "unet" / "config.json", _class_name="subprocess.Popen")


def auto_map(folder, code, harm):
    edit(folder / "text_encoder" / "config.json", auto_map={"AutoModel": "evil/repo--code.Model"})


def auto_map_of_the_tokenizer(folder, code, harm):
    place = folder / "tokenizer" / "tokenizer_config.json"
    edit(place, auto_map={"AutoTokenizer": ["evil/repo--code.Tokenizer", None]})


def auto_map_of_the_unet(folder, code, harm):
    edit(folder / "unet" / "config.json", auto_map={"AutoModel": "code.UNet"})


def shards_that_climb_out(folder, code, harm):
    unet = folder / "unet"
    weights = unet / "diffusion_pytorch_model.safetensors"
    weights.rename(unet / "diffusion_pytorch_model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "../../elsewhere.safetensors", "b": ["x"]}}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def a_pickled_shard_beside_the_weights(folder, code, harm):
    """diffusers reads shards where there is an index, though the weights are in one file too."""
    unet = folder / "unet"
    (unet / "shard.bin").write_bytes(pickle.dumps(Harm(harm)))
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "shard.bin"}}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def an_index_without_end(folder, code, harm):
    (folder / "model_index.json").write_text('{"a":' * 50_000)


def a_config_without_end(folder, code, harm):
    (folder / "unet" / "config.json").write_text("[" * 50_000)


def a_header_without_end(folder, code, harm):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])


REFUSED = [
    pickle_alone,
    pickle_named_safetensors,
    custom_pipeline,
    code_in_a_component,
    another_library,
    a_path_as_library,
    a_class_that_is_a_path,
    a_component_of_three_parts,
    auto_map,
    auto_map_of_the_tokenizer,
    auto_map_of_the_unet,
    shards_that_climb_out,
    a_pickled_shard_beside_the_weights,
    an_index_without_end,
    a_config_without_end,
    a_header_without_end,
]
HARMLESS = [
    pickle_beside,
    custom_pipeline_file_alone,
    a_component_that_climbs_out,
    another_class_in_the_config,
]


def load(settings_for, folder):
    import logging

    from accel_search.runtime.loading.pipelines import load_pipeline

    return load_pipeline(settings_for(pipe=str(folder)), logging.getLogger("tests"))[0]


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_a_model_that_means_harm_is_refused_in_one_line(hostile, settings_for, make):
    folder, code, harm = hostile
    make(folder, code, harm)
    with pytest.raises(LoadError) as caught:
        load(settings_for, folder)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("--pipe ")


@pytest.mark.parametrize("make", HARMLESS, ids=lambda make: make.__name__)
def test_what_is_not_read_of_a_model_does_no_harm(hostile, settings_for, make):
    folder, code, harm = hostile
    make(folder, code, harm)
    assert type(load(settings_for, folder).unet).__name__ == "UNet2DConditionModel"


def test_a_link_is_followed_and_what_it_leads_to_is_data_alone(hostile, settings_for, tmp_path):
    """The hub's own cache is made of links; a pickle at the end of one is still no safetensors."""
    folder, _, harm = hostile
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    elsewhere = tmp_path / "blob"
    weights.rename(elsewhere)
    weights.symlink_to(elsewhere)
    load(settings_for, folder)
    elsewhere.write_bytes(pickle.dumps(Harm(harm)))
    with pytest.raises(LoadError):
        load(settings_for, folder)
    elsewhere.unlink()
    weights.unlink()
    weights.symlink_to(weights)
    with pytest.raises(LoadError):
        load(settings_for, folder)


def test_the_pickle_of_these_tests_does_harm_where_it_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Harm(tmp_path / HARM)))  # noqa: S301
    assert (tmp_path / HARM).exists()


# Result files

KEYS = [
    "__import__('os').mkdir('harmed')",
    "(lambda: __import__('os').mkdir('harmed'))()",
    "[x for x in ().__class__.__bases__[0].__subclasses__()]",
    "(" * 100 + ")" * 100,
]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_a_result_file_is_never_run(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "search_params.json"
    path.write_text(json.dumps({key: {"settings": {"deepcache": {}}, "speedup": 2}}))
    with pytest.raises(ConfigurationError, match="holds no result"):
        load_best(path)
    assert not (tmp_path / HARM).exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"../../evil": {"x": 1}},
        {"deepcache": {"cache_interval": "__import__('os').mkdir('harmed')"}},
        {"deepcache": {"cache_interval": 10**400, "cache_branch_id": 0}},
        {"deepcache": {"cache_interval": 3, "cache_branch_id": 0, "evil": 1}},
        {"deepcache": [[[[[]]]]]},
        {EVIL: {"x": 1}},
    ],
    ids=range(6),
)
def test_settings_of_a_strangers_file_are_checked_before_they_are_applied(tmp_path, settings):
    from accel_search.accelerators import get
    from accel_search.accelerators.base import check_params

    content = json.loads((ROOT / "search_params.json").read_text())
    for entry in content.values():
        entry["settings"] = settings
    path = tmp_path / "search_params.json"
    path.write_text(json.dumps(content))
    with pytest.raises(AccelSearchError) as caught:
        for name, params in load_best(path).items():
            check_params(get(name), params)
    assert caught.value.exit_code == 2


# Storages


def test_a_study_that_someone_else_wrote_is_refused_or_passed_over(tmp_path):
    space = JointSpace(TARGETS, WORKLOAD)
    url = default_url(tmp_path)
    store = TrialStore(url, "study", space.values())
    store._study.set_user_attr("owner", EVIL)
    store._study.set_user_attr("baseline:search:4", {"seconds_per_image": EVIL})
    assert TrialStore(url, "study", space.values()).extras() == {}
    import optuna

    for record in (EVIL, {"candidate": [1]}, {"candidate": {}, "measurement": 3, "failure": None}):
        trial = optuna.trial.create_trial(value=None, state=optuna.trial.TrialState.FAIL,
                                          user_attrs={"accel_search": record})  # fmt: skip
        store._study.add_trial(trial)
        with pytest.raises(ConfigurationError, match="no record of accel-search") as caught:
            TrialStore(url, "study", space.values()).trials()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc/x", "a/../../b"])
def test_a_study_whose_name_climbs_out_is_refused(tmp_path, name):
    import optuna

    folder = tmp_path / "run"
    folder.mkdir()
    optuna.create_study(
        study_name=name, storage=default_url(folder), directions=["maximize", "minimize"]
    )
    with pytest.raises(AccelSearchError) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_pictures_are_taken_from_the_runs_own_folder_alone(tmp_path):
    folder = make_run_dir(tmp_path / "run")
    secret = tmp_path / "secret.png"
    shutil.copy(next(folder.rglob("*.png")), secret)
    for changed in ({"study": "../../.."}, {"study": ["x"]}):
        story = next((folder / "stories").iterdir())
        before = story.read_text()
        edit(story, **changed)
        try:
            run = read_run(folder)
            assert run.pictures is None
        except AccelSearchError as error:
            assert "\n" not in str(error)
        story.write_text(before)
    index = next(folder.rglob("pictures.json"))
    content = json.loads(index.read_text())
    content["columns"][0]["files"] = ["../../../secret.png", str(secret)]
    index.write_text(json.dumps(content))
    with pytest.raises(LoadError, match="is missing"):
        read_run(folder)


# Scripts and pages


def shape(text):
    """Return a script's tree without its literals."""

    class Blank(ast.NodeTransformer):
        def visit_Constant(self, node):
            return ast.Constant(None)

        def visit_Dict(self, node):
            ast.literal_eval(node)  # Whatever stands in it is a literal.
            return ast.Constant(None)

    return ast.dump(Blank().visit(ast.parse(text)))


HOSTILE = [
    EVIL,
    "'''\nimport os\nos.mkdir('harmed')\n'''",
    '"""\nimport os\nos.mkdir("harmed")\n"""',
    '\\"""',
    "\r\nimport os\u2028import os\x0cimport os",
    "'); __import__('os').mkdir('harmed'); ('",
    "{{ 7 * 7 }}{% import os %}",
    "\\N{BULLET}\\x41\\",
    '"',
]


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory):
    return make_run_dir(tmp_path_factory.mktemp("sound"), pictures=False)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_an_exported_script_holds_data_alone(sound_run, text):
    story = next((sound_run / "stories").iterdir())
    before = story.read_text()
    benign = {"model_id": "owner/name", "revision": "abc", "device_name": "a GPU", "vae": "v"}
    shapes = []
    for values in (benign, dict.fromkeys(benign, text)):
        told = json.loads(before)
        told["workload"]["pipeline"] = values["model_id"]
        told["provenance"] |= values
        story.write_text(json.dumps(told))
        try:
            found = script(read_run(sound_run))
        finally:
            story.write_text(before)
        shapes.append(shape(found))
        assert "mkdir" not in " ".join(
            each.id for each in ast.walk(ast.parse(found)) if isinstance(each, ast.Name)
        )
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "change",
    [{"pipeline_class": EVIL}, {"scheduler_class": "os;x"}, {"steps": "x"}, {"steps": EVIL}],
)
def test_a_class_that_is_none_makes_no_script(sound_run, change):
    story = next((sound_run / "stories").iterdir())
    before = story.read_text()
    told = json.loads(before)
    told["workload"] |= change
    story.write_text(json.dumps(told))
    try:
        with pytest.raises(AccelSearchError):
            script(read_run(sound_run))
    finally:
        story.write_text(before)


def evil_everywhere(value):
    """Put markup into every text of a document but its names and its format."""
    if isinstance(value, dict):
        return {
            key: each
            if key in ("format", "study", "steps", "part", "files")
            else evil_everywhere(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [evil_everywhere(each) for each in value]
    return EVIL if isinstance(value, str) else value


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium")
@pytest.mark.xdist_group("browser")
def test_markup_in_every_text_of_a_run_and_of_a_sweep_stays_text(tmp_path):
    from playwright.sync_api import sync_playwright

    run_dir = make_run_dir(tmp_path / "run", model=EVIL, prompt=EVIL)
    add_failure(run_dir, EVIL)
    for file in run_dir.rglob("*.json"):
        content = json.loads(file.read_text())
        kept = {key: content[key] for key in ("winner", "refuted", "columns") if key in content}
        file.write_text(json.dumps(evil_everywhere(content) | kept))
    bounds = json.loads((ROOT / "speedup_bounds.json").read_text())
    failed = {"error": EVIL, "message": EVIL, "seconds": 9}
    hurt = {key: evil_everywhere(value) for key, value in bounds.items() if key != "failed_configs"}
    hurt["failed_configs"] = {f"{EVIL}_DDIM_20_tome": failed, f"a_{EVIL}_20_{EVIL}": failed}
    (tmp_path / "bounds.json").write_text(json.dumps(hurt))
    pages = {
        "search": search_page(read_run(run_dir)),
        "sweep": sweep_page(read_bounds(tmp_path / "bounds.json"), {}),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            for name, text in pages.items():
                assert EVIL not in text
                path = tmp_path / f"{name}.html"
                path.write_text(text)
                page, seen = browser.new_page(), []
                page.on("dialog", lambda each, seen=seen: seen.append(each.message))
                page.on("pageerror", lambda each, seen=seen: seen.append(str(each)))
                page.on("console", lambda each, seen=seen: seen.append(each.text))
                page.on("request", lambda each, seen=seen: seen.append(each.url))
                page.goto(path.as_uri())
                for button in page.get_by_role("button").all()[:40]:
                    if button.is_visible() and button.is_enabled():
                        # What a click does, wherever a page that still scrolls has put the button.
                        button.evaluate("each => each.click()")
                    page.keyboard.press("Escape")
                fetched = [each for each in seen if not each.startswith(("file:", "data:"))]
                assert page.evaluate("window.harmed") is None and fetched == []
                assert "harmed" in page.content()  # As a text.
        finally:
            browser.close()


def test_a_settings_file_cannot_name_code(tmp_path):
    """Options are data: what looks like code is a name that is not known."""
    for text in ("__import__('os')", "os.system", "../../evil"):
        with pytest.raises(ConfigurationError):
            strategies.check(text, None)
        with pytest.raises(ConfigurationError):
            Settings(targets=(text,))
    failed = Trial(Candidate({"deepcache": {}}), None, Failure("x", EVIL, 1.0))
    assert str(failed.candidate) == "deepcache()"
