"""Tiny random models of openai/CLIP, transformers and open_clip against their own recorded outputs."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from shared_data import shared_data

import clipkit
from clipkit import hf_conversion

OPENAI = ("openai_vit", "openai_rn")
HF_CLIP = ("hf_clip_gelu", "hf_clip_quickgelu")
OPEN_CLIP = ("oc_vit", "oc_vit_quickgelu", "oc_rn50like", "oc_vit_attnpool_ls", "oc_vit_noncausal_lastpool")
TOLERANCE = 1e-5


def golden(name):
    folder = shared_data("golden_generated") / name
    stored = np.load(folder / "io.npz")
    return folder, {key: torch.from_numpy(stored[key]) for key in stored}


def assert_agrees(model, image, text, expected_image, expected_text, *, normalize=False):
    with torch.no_grad():
        found_image = model.encode_image(image, normalize=normalize)
        found_text = model.encode_text(text, normalize=normalize)
    torch.testing.assert_close(found_image, expected_image, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(found_text, expected_text, atol=TOLERANCE, rtol=0)


def test_every_golden_model_is_in_a_test():
    folder = shared_data("golden_generated")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        *OPENAI,
        *HF_CLIP,
        *OPEN_CLIP,
        "hf_siglip",
    }


@pytest.mark.parametrize("name", OPENAI)
def test_openai_state_dicts(name):
    folder, io = golden(name)
    model = clipkit.load(folder / "model.safetensors", model_name="openai")
    assert_agrees(model, io["image"], io["text"], io["image_features"], io["text_features"])
    logits = model(io["image"], io["text"])
    found = logits["logit_scale"] * logits["image_features"] @ logits["text_features"].T
    torch.testing.assert_close(found, io["logits_per_image"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", HF_CLIP)
@pytest.mark.parametrize("towers", ["both", "image", "text"])
def test_transformers_clip_directories(name, towers):
    folder, io = golden(name)
    model = clipkit.load(folder, towers=towers)
    with torch.no_grad():
        if towers != "text":
            found = model.encode_image(io["pixel_values"], normalize=True)
            torch.testing.assert_close(found, io["image_embeds"], atol=TOLERANCE, rtol=0)
            tokens = model.tokens(io["pixel_values"]).tokens[0]
            torch.testing.assert_close(tokens, io["vision_last_hidden"][:, 1:], atol=TOLERANCE, rtol=0)
        if towers != "image":
            found = model.encode_text(io["input_ids"], normalize=True)
            torch.testing.assert_close(found, io["text_embeds"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip_checkpoints(name, tmp_path):
    folder, io = golden(name)
    config = json.loads((folder / "config.json").read_text())
    # The recorded configs hold some switches as texts.
    config = {
        key: json.loads(value.lower()) if isinstance(value, str) else value for key, value in config.items()
    }
    (tmp_path / "architecture.json").write_text(json.dumps(config))
    model = clipkit.load(folder / "model.safetensors", model_name=str(tmp_path / "architecture.json"))
    assert_agrees(model, io["image"], io["text"], io["image_features"], io["text_features"])
    assert_agrees(model, io["image"], io["text"], io["image_norm"], io["text_norm"], normalize=True)
    output = model(io["image"], io["text"])
    torch.testing.assert_close(output["logit_scale"], io["logit_scale"], atol=TOLERANCE, rtol=0)
    if "logit_bias" in io:
        torch.testing.assert_close(output["logit_bias"], io["logit_bias"], atol=TOLERANCE, rtol=0)


def test_a_model_without_its_tokenizer_is_not_saved(tmp_path):
    """The recorded directories have 150 words and no tokenizer files."""
    folder, _ = golden("hf_clip_gelu")
    with pytest.raises(ValueError, match="knows 150 tokens, open_clip's tokenizer makes 49408"):
        clipkit.load(folder).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_siglip_of_sizes_that_timm_does_not_have_is_refused():
    folder, _ = golden("hf_siglip")
    with pytest.raises(ValueError, match="timm, which has none of width 32, 2 layers, patch 8, 32 px"):
        clipkit.load(folder)


@pytest.fixture
def tiny_siglip_in_timm(monkeypatch):
    """Give timm a tower of the golden model's sizes, as it has for the real SigLIP models."""

    def vit_tiny_patch8_siglip_32(pretrained=False, **kwargs):
        sizes = {
            "patch_size": 8,
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 4,
            "mlp_ratio": 2.0,
            "img_size": 32,
        }
        settings = {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"}
        given = {key: kwargs[key] for key in ("num_classes", "global_pool") if key in kwargs}
        return timm.models.VisionTransformer(**{**sizes, **settings, **given})

    name = vit_tiny_patch8_siglip_32.__name__
    registry = timm.models._registry
    monkeypatch.setitem(registry._model_entrypoints, name, vit_tiny_patch8_siglip_32)
    monkeypatch.setitem(hf_conversion.SIGLIP_SIZES, (32, 2), "tiny")
    return name


def test_transformers_siglip_directory(tiny_siglip_in_timm, tmp_path):
    folder, io = golden("hf_siglip")
    shutil.copytree(folder, tmp_path / "siglip")
    model = clipkit.load(tmp_path / "siglip")
    assert model.config["vision_cfg"]["timm_model_name"] == tiny_siglip_in_timm
    inputs = io["pixel_values"], io["input_ids"]
    assert_agrees(model, *inputs, io["image_embeds"], io["text_embeds"], normalize=True)
    output = model(*inputs)
    logits = output["logit_scale"] * output["image_features"] @ output["text_features"].T
    torch.testing.assert_close(logits + output["logit_bias"], io["logits_per_image"], atol=1e-4, rtol=0)


def test_a_model_that_open_clip_cannot_express_is_refused():
    """The Fashion-MNIST encoder: grey images, heads of width 3, a masked bidirectional text tower."""
    path = shared_data("tiny_clip_fashion") / "caohuythinh2005.safetensors"
    with pytest.raises(ValueError, match="no OpenAI CLIP state dict: it has no visual"):
        clipkit.load(path, model_name="openai")
    with pytest.raises(ValueError, match=r"another architecture .* missing .* unexpected"):
        clipkit.load(path, model_name="test-vit")
