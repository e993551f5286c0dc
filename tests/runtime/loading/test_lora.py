"""LoRAs in a pipeline: its pictures are those of a script, and what does not fit is refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from accel_search.accelerators.compose import apply_candidate
from accel_search.core.candidate import Candidate
from accel_search.errors import ConfigurationError, LoadError
from accel_search.runtime.loading.lora.active import active_scales
from accel_search.runtime.loading.lora.files import check_loras, find_loras
from accel_search.runtime.loading.lora.header import read_layers
from accel_search.runtime.loading.pipelines import load_pipeline, random_pipeline
from accel_search.runtime.loading.single_file.names import unet_name, unet_places
from accel_search.runtime.quiet import quiet_libraries
from accel_search.settings import Settings
from accel_search.storage.digests import digest_of
from tests.support.hub import Repository
from tests.support.loras import by_hand, draw, make
from tests.support.pipelines import LOG
from tests.support.tiny import assert_same, snapshot

ONE, OTHER = [("kohya", 1.0)], [("peft", 0.7)]
BOTH = [("kohya", 0.8), ("peft", -0.4)]
TGATE = {"gate_step": 3, "sp_interval": 2, "fi_interval": 1, "warmup": 1}
DEEPCACHE = {"cache_interval": 2, "cache_branch_id": 0}
TOME = {"ratio": 0.5, "max_downsample": 2}
CANDIDATES = [
    {"deepcache": DEEPCACHE},
    {"tome": TOME},
    {"tgate": TGATE},
    {"deepcache": DEEPCACHE, "tgate": TGATE, "tome": TOME},
]


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    return make(tmp_path_factory.mktemp("loras"), "sd", "xl")


def asked(there, kind, loras, **options):
    names = tuple(f"{there / f'{kind}_{name}.safetensors'}:{scale}" for name, scale in loras)
    return Settings(**{"pipe": str(there / kind), "lora": names, "device": "cpu", **options})


def loaded(settings):
    check_loras(settings)
    return load_pipeline(settings, LOG, loras=find_loras(settings, LOG))[0]


@pytest.mark.parametrize("file", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_the_pictures_are_those_of_a_script_bit_for_bit(there, kind, file):
    plain = draw(by_hand(there, kind, [], file=file))
    pipe = f"{there / kind}.safetensors" if file else str(there / kind)
    for loras in (ONE, OTHER, BOTH):
        theirs = draw(by_hand(there, kind, loras, file=file))
        ours = loaded(asked(there, kind, loras, pipe=pipe))
        assert torch.equal(draw(ours), theirs), loras
        assert (theirs - plain).abs().max() > 0.01
        assert active_scales(ours) == [sorted(scale for _, scale in loras)]


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_accelerators_come_and_go_with_loras_in_the_pipeline(there, kind):
    pipe = loaded(asked(there, kind, BOTH))
    bare, before = draw(pipe, 6), snapshot(pipe)
    for settings in CANDIDATES:
        with apply_candidate(pipe, Candidate(settings)):
            fast = draw(pipe, 6)
        assert not torch.equal(fast, bare), settings
        assert_same(before, snapshot(pipe))
        assert torch.equal(draw(pipe, 6), bare), settings


def test_offloaded_parts_take_their_loras_along(there):
    """Hooks on a processor: a picture rounds otherwise than without them, LoRA or not."""
    pipe = loaded(asked(there, "sd", BOTH))
    bare = draw(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    offloaded = draw(pipe)
    assert torch.allclose(offloaded, bare, atol=1e-4)
    for settings in CANDIDATES:
        with apply_candidate(pipe, Candidate(settings)):
            assert not torch.equal(draw(pipe), offloaded), settings
        assert torch.equal(draw(pipe), offloaded), settings


@pytest.mark.parametrize("target", ["deepcache", "tome", "tgate"])
def test_the_packages_make_of_it_what_our_own_make(there, target):
    pipe = loaded(asked(there, "sd", BOTH))
    candidate = Candidate({target: {"deepcache": DEEPCACHE, "tome": TOME, "tgate": TGATE}[target]})
    bare = draw(pipe, 6)
    with apply_candidate(pipe, candidate):
        ours = draw(pipe, 6)
    with apply_candidate(pipe, candidate, implementation="package"):
        theirs = draw(pipe, 6)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.equal(draw(pipe, 6), bare)


def test_half_precision_and_no_dropout(there, tmp_path):
    """As a configuration of peft's may have it, for training."""
    options = {"r": 4, "lora_alpha": 4, "lora_dropout": 0.5, "target_modules": ["to_q"]}
    tensors = load_file(there / "sd_peft.safetensors")
    tensors = {n: v for n, v in tensors.items() if ".to_q." in n and n.startswith("unet.")}
    named = {f"unet.{name}": value for name, value in options.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(named)}
    save_file(tensors, tmp_path / "d.safetensors", metadata=metadata)
    lora = (str(tmp_path / "d.safetensors"),)
    pipe = loaded(Settings(pipe=str(there / "sd"), lora=lora, device="cpu", dtype="bfloat16"))
    assert pipe.unet.dtype == torch.bfloat16
    assert not any(module.training for module in pipe.unet.modules())
    assert torch.equal(draw(pipe), draw(pipe))


def test_random_weights_of_full_size_get_them_too(there, monkeypatch):
    """With the narrow architecture in the place of the full one, which takes gigabytes."""
    from functools import partial

    from accel_search.runtime.loading import pipelines
    from accel_search.runtime.loading.random_weights import build_random

    monkeypatch.setattr(pipelines, "build_random", partial(build_random, is_narrow=True))
    settings = asked(there, "sd", BOTH, pipe="SD1.5", latency_only=True)
    pipe = random_pipeline(settings, find_loras(settings, LOG))
    assert active_scales(pipe) == [[-0.4, 0.8]]
    settings = asked(there, "xl", ONE, pipe="SD1.5", latency_only=True)
    with pytest.raises(ConfigurationError, match="is not for --pipe SD1.5: its lora_"):
        random_pipeline(settings, find_loras(settings, LOG))


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_the_names_of_a_files_unet_are_found_again(there, kind):
    tensors = load_file(there / kind / "unet" / "diffusion_pytorch_model.safetensors")
    for name, place in unet_places(tensors).items():
        assert unet_name(place.name, 2) == name
    assert unet_name("first_stage_model.decoder.norm_out.weight", 2) is None


@pytest.mark.parametrize(
    ("kind", "pipe", "names"),
    [
        ("xl", "sd", "kohya"),
        ("xl", "sd", "peft"),
        ("sd", "xl", "kohya"),
        ("sd", "xl", "peft"),
        ("xl", "sd.safetensors", "kohya"),
        ("sd", "xl.safetensors", "peft"),
    ],
)
def test_a_lora_of_another_model_is_refused_with_both_shapes(there, kind, pipe, names):
    settings = asked(there, kind, [(names, 1.0)], pipe=str(there / pipe))
    with pytest.raises(ConfigurationError) as refused:
        check_loras(settings)  # By the headers alone.
    pattern = r"is not for --pipe .*: its (lora_unet_|unet\.)\S+ is for a layer of \[[\d, ]+\]"
    assert re.search(
        pattern + r", and that model's \S+ in its unet has \[[\d, ]+\]: give a LoRA",
        (str(refused.value)),
    )
    with pytest.raises(ConfigurationError, match="is not for --pipe"):
        load_pipeline(settings, LOG, loras=find_loras(settings, LOG))


def test_a_text_encoder_that_the_model_lacks_is_said_once_it_is_loaded(there, tmp_path):
    tensors = load_file(there / "xl_kohya.safetensors")
    kept = {name: value for name, value in tensors.items() if name.startswith("lora_te2_")}
    save_file(kept, tmp_path / "te2.safetensors")
    lora = (str(tmp_path / "te2.safetensors"),)
    settings = Settings(pipe=str(there / "sd"), lora=lora, device="cpu")
    check_loras(settings)
    with pytest.raises(
        ConfigurationError, match=r"its lora_te2_\S+, for a layer of .* is for none"
    ):
        load_pipeline(settings, LOG, loras=find_loras(settings, LOG))
    # The same alone, on the model that it is for.
    pipe = loaded(Settings(pipe=str(there / "xl"), lora=lora, device="cpu"))
    assert active_scales(pipe) == [[1.0]]


WRONG = {
    "a UNet": ({"down_blocks.0.weight": (2, 2)}, {}, "is no LoRA (it holds down_blocks.0.weight)"),
    "LoHa": ({"lora_unet_x.hada_w1_a": (2, 2)}, {}, "is a LoHa, LoKr, DoRA or the like"),
    "DoRA": (
        {"lora_unet_x.lora_down.weight": (2, 2), "lora_unet_x.dora_scale": (2, 1)},
        {},
        "is a LoHa, LoKr, DoRA or the like (it holds lora_unet_x.dora_scale)",
    ),
    "a half": ({"lora_unet_x.lora_down.weight": (2, 2)}, {}, "is incomplete"),
    "of two ranks": (
        {"lora_unet_x.lora_down.weight": (2, 4), "lora_unet_x.lora_up.weight": (4, 3)},
        {},
        "[2, 4] and lora_unet_x.lora_up.weight [4, 3] do not go together",
    ),
    "Flux": (
        {"transformer.x.lora_A.weight": (2, 4), "transformer.x.lora_B.weight": (4, 2)},
        {},
        "belongs to neither a UNet nor a text encoder",
    ),
    "embeddings": (
        {
            "bundle_emb.x.string_to_param.*": (2, 4),
            "lora_unet_x.lora_down.weight": (2, 4),
            "lora_unet_x.lora_up.weight": (4, 2),
        },
        {},
        "holds bundle_emb.x.string_to_param.* beside a LoRA's layers",
    ),
    "a module": (
        {"unet.x.lora_A.weight": (2, 4), "unet.x.lora_B.weight": (4, 2)},
        {"lora_adapter_metadata": '{"unet.megatron_config": {"a": 1}}'},
        "its header asks for unet.megatron_config",
    ),
    "no JSON": (
        {"unet.x.lora_A.weight": (2, 4), "unet.x.lora_B.weight": (4, 2)},
        {"lora_adapter_metadata": "{"},
        "lora_adapter_metadata is no JSON",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_no_lora_is_refused(tmp_path, what):
    shapes, metadata, said = WRONG[what]
    file = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, file, metadata)
    with pytest.raises(ConfigurationError, match=re.escape(said)) as refused:
        read_layers("--lora x", file)
    assert "\n" not in str(refused.value)


def test_names_of_diffusers_first_versions_are_understood(tmp_path):
    names = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora": "to_out_0",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k.lora": "attn1_to_k",
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora": "self_attn_q_proj",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer": "mlp_fc1",
    }
    tensors = {}
    for name in names:
        tensors |= {
            f"{name}.down.weight": torch.zeros(2, 4),
            f"{name}.up.weight": torch.zeros(6, 2),
        }
    save_file(tensors, tmp_path / "old.safetensors")
    layers = read_layers("--lora x", tmp_path / "old.safetensors")
    for (part, layer), (name, end) in zip(sorted(layers), sorted(names.items()), strict=True):
        assert part == name.partition(".")[0]
    assert all(any(layer.endswith(end) for _, layer in layers) for end in names.values())
    assert {layer.fits for layer in layers.values()} == {(6, 4)}


def test_what_diffusers_would_leave_out_in_silence_is_refused(there, tmp_path):
    """Original names on SD1.5, whose loader does not know them."""
    tensors = load_file(there / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
    layer = next(name for name in tensors if name.endswith("attn2.to_k.weight"))
    place = unet_places(tensors)[layer].name.removeprefix("model.diffusion_model.")
    made, taken = tensors[layer].shape
    name = f"lora_unet_{place.removesuffix('.weight').replace('.', '_')}"
    halves = {f"{name}.lora_down.weight": (4, taken), f"{name}.lora_up.weight": (made, 4)}
    save_file({n: torch.ones(s) for n, s in halves.items()}, tmp_path / "o.safetensors")
    lora = (str(tmp_path / "o.safetensors"),)
    settings = Settings(pipe=str(there / "sd"), lora=lora, device="cpu")
    with (
        quiet_libraries(),
        pytest.raises(ConfigurationError, match="diffusers (loads 0 of|cannot)"),
    ):
        load_pipeline(settings, LOG, loras=find_loras(settings, LOG))


@pytest.fixture
def repository(there, served, tmp_path):
    folder = tmp_path / "repository"
    (folder / "more").mkdir(parents=True)
    for name, file in (("pytorch_lora_weights", "kohya"), ("more/other", "peft")):
        (folder / f"{name}.safetensors").write_bytes(
            (there / f"sd_{file}.safetensors").read_bytes()
        )
    (folder / "pytorch_lora_weights.bin").write_bytes(b"a pickle")
    served.repositories["me/lora"] = Repository(folder)
    return served.repositories["me/lora"]


def test_a_lora_of_the_hub_is_the_file_of_the_usual_or_the_named_path(there, served, repository):
    lora = ("me/lora:0.8", "me/lora/more/other.safetensors:-0.4")
    settings = Settings(pipe=str(there / "sd"), lora=lora, device="cpu")
    check_loras(settings)
    assert not served.requests  # Nothing is fetched for a check.
    found = find_loras(settings, LOG)
    records = [each.record() for each in found]
    assert [each.file for each in records] == [
        "me/lora/pytorch_lora_weights.safetensors",
        "me/lora/more/other.safetensors",
    ]
    assert {each.revision for each in records} == {repository.commit}
    local = [there / f"sd_{name}.safetensors" for name in ("kohya", "peft")]
    assert [each.digest for each in records] == [digest_of([f], by_folder=False) for f in local]
    assert not any(name.endswith(".bin") for name in served.fetched())
    pipe, _ = load_pipeline(settings, LOG, loras=found)
    assert torch.equal(draw(pipe), draw(by_hand(there, "sd", BOTH, file=False)))


def test_a_lora_that_the_hub_lacks_is_one_line(there, served, repository):
    def fails(name):
        with pytest.raises(LoadError) as failed:
            find_loras(Settings(pipe=str(there / "sd"), lora=(name,)), LOG)
        assert "\n" not in str(failed.value)
        return str(failed.value)

    assert "--lora nobody/none: the hub repository" in fails("nobody/none")
    assert "holds no more/none.safetensors" in fails("me/lora/more/none.safetensors")
    assert not any(name.endswith(".bin") for name in served.fetched())
