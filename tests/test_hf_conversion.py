import json
from pathlib import Path

import open_clip
import pytest
import torch
from small_models import CAPTIONS, images_for

import clipkit
from clipkit.hf_conversion import convert_config


def transformers_clip(folder):
    """A tiny CLIP with open_clip's vocabulary, as transformers saves it, and its config."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 49408, "max_position_embeddings": 16, "eos_token_id": 49407},
        vision_config={**sizes, "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu"},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def test_a_transformers_clip_becomes_a_model_directory(tmp_path):
    theirs = transformers_clip(tmp_path / "hf")
    ours = clipkit.load(tmp_path / "hf")
    images, text = images_for(ours), ours.tokenizer(CAPTIONS)
    output = theirs(input_ids=text, pixel_values=images)
    identity = ours.save(tmp_path / "model")
    for model in (ours, clipkit.load(tmp_path / "model")):
        found = model.encode_image(images, normalize=True), model.encode_text(text, normalize=True)
        torch.testing.assert_close(found[0], output.image_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(found[1], output.text_embeds, atol=1e-5, rtol=0)
        assert model.model_id == identity


def test_other_transformers_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="of type 'bert'; clipkit reads clip and siglip"):
        clipkit.load(tmp_path)
    transformers_clip(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="one QuickGELU switch for both towers"):
        clipkit.load(tmp_path)


def test_a_hub_repository_of_transformers(tmp_path, monkeypatch):
    transformers_clip(tmp_path / "hf")
    fetched = []

    def from_hub(repo, filename=None):
        path = tmp_path / "hf" / (filename or "open_clip_pytorch_model.bin")
        if not path.is_file():
            raise FileNotFoundError(f"no {filename} in {repo}")
        fetched.append(filename)
        return str(path)

    monkeypatch.setattr("open_clip.pretrained.download_pretrained_from_hf", from_hub)
    remote, local = clipkit.load("hf-hub:org/clip"), clipkit.load(tmp_path / "hf")
    assert remote.model_id == local.model_id
    assert remote.provenance == {"source": "hf-hub:org/clip"}
    assert fetched == ["config.json", "model.safetensors"]
    (tmp_path / "hf" / "config.json").unlink()
    with pytest.raises(OSError, match=r"cannot fetch open_clip_config\.json of hf-hub:org/clip"):
        clipkit.load("hf-hub:org/clip")


def test_siglip_with_another_activation_in_timm_says_so(caplog):
    sizes = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    }
    tower = {**sizes, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    content = {
        "model_type": "siglip",
        "vision_config": {**tower, "image_size": 224, "patch_size": 16},
        "text_config": {**tower, "vocab_size": 32000, "max_position_embeddings": 64},
    }
    model_cfg, preprocess_cfg = convert_config(content, Path("nowhere"))
    assert "has GELU where the config says gelu_pytorch_tanh" in caplog.text
    theirs = open_clip.get_model_config("ViT-B-16-SigLIP")
    assert model_cfg["vision_cfg"] == theirs["vision_cfg"]
    assert model_cfg["text_cfg"]["norm_kwargs"] == theirs["text_cfg"]["norm_kwargs"]
    assert preprocess_cfg == {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
