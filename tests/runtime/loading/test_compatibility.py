"""Parts of pipelines that are whole, and do not belong together."""

from __future__ import annotations

import json
import shutil

import pytest

from accel_search.errors import LoadError
from accel_search.runtime.loading.pipelines import load_pipeline
from tests.support import making
from tests.support.pipelines import LOG

UNETS = {
    "inpainting": ({"in_channels": 9}, "takes 9 channels and makes 4, as those of inpainting"),
    "variances": ({"out_channels": 8}, "takes 4 channels and makes 8"),
    "classes": (
        {"class_embed_type": "timestep"},
        r"draws classes \(class_embed_type 'timestep'\)",
    ),
    "texts": ({"cross_attention_dim": 24}, "takes texts of width 24, its text encoder makes 16"),
}


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_of_another_task_is_refused_before_anything_is_measured(
    made, loaded, tmp_path, settings_for, name
):
    from diffusers import UNet2DConditionModel

    options, says = UNETS[name]
    folder = shutil.copytree(made / "sd", tmp_path / "sd")
    own = loaded("sd")[0].unet.config
    other = UNet2DConditionModel.from_config({**own, **options})
    shutil.rmtree(folder / "unet")
    other.save_pretrained(folder / "unet")
    with pytest.raises(LoadError, match=f"--pipe {folder}: its UNet {says}"):
        load_pipeline(settings_for(pipe=str(folder)), LOG)


VAES = {
    "channels": ({"latent_channels": 16}, "decodes latents of 16 channels, but the UNet of"),
    "grey": ({"out_channels": 1}, "makes pictures of 1 channels; expected 3"),
}


@pytest.mark.parametrize("is_own", [True, False])
@pytest.mark.parametrize("name", VAES)
def test_a_vae_of_other_pictures_is_refused(made, tmp_path, settings_for, name, is_own):
    options, says = VAES[name]
    folder = shutil.copytree(made / "sd", tmp_path / "sd")
    where = folder / "vae" if is_own else tmp_path / "vae"
    shutil.rmtree(where, ignore_errors=True)
    making.make_vae(**options).save_pretrained(where)
    settings = settings_for(pipe=str(folder), vae=None if is_own else str(where))
    start = f"--pipe {folder}: its VAE" if is_own else f"--vae {where}: it"
    with pytest.raises(LoadError, match=f"{start} {says}"):
        load_pipeline(settings, LOG)


def test_a_vae_whose_latents_stand_for_more_pixels_is_refused(made, tmp_path, settings_for):
    making.make_vae(
        block_out_channels=[8, 16, 16],
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
    ).save_pretrained(tmp_path / "vae")
    settings = settings_for(pipe=str(made / "sd"), vae=str(tmp_path / "vae"))
    with pytest.raises(LoadError, match=r"stands for 4 pixels, one of --pipe .* for 2"):
        load_pipeline(settings, LOG)


def test_a_tokenizer_of_another_text_encoder_is_refused(made, tmp_path, settings_for):
    folder = shutil.copytree(made / "sd", tmp_path / "sd")
    file = making.vocabulary_of(folder)
    content = json.loads(file.read_text())
    words = content["model"]["vocab"] if "model" in content else content
    words |= {f"word{i}": len(words) + i for i in range(5)}
    file.write_text(json.dumps(content))
    with pytest.raises(LoadError, match=r"a tokenizer knows 519 tokens, its text encoder 514"):
        load_pipeline(settings_for(pipe=str(folder)), LOG)
