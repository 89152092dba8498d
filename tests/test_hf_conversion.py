import json

import pytest
import torch
from small_models import CAPTIONS, images_for

import clipkit


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
