"""A small dual encoder that somebody trained on Fashion-MNIST with code of their own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from shared_data import shared_data
from torch.nn.functional import normalize

from clipkit.evaluation import class_features
from clipkit.foreign_files import load_foreign
from clipkit.metrics import topk_accuracy

NAMES = [
    "t-shirt/top",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]


def blocks(tower, stored):
    ours, theirs = f"{tower}.blocks.{{layer}}", f"{stored}.encoder.{{layer}}"
    heads = [f"{theirs}.mha.heads.{{head}}.{part}" for part in ("query", "key", "value")]
    return {
        f"{ours}.self_attn.in_proj_weight": [f"{name}.weight" for name in heads],
        f"{ours}.self_attn.in_proj_bias": [f"{name}.bias" for name in heads],
        f"{ours}.self_attn.out_proj": f"{theirs}.mha.W_o",
        f"{ours}.linear1": f"{theirs}.mlp.0",
        f"{ours}.linear2": f"{theirs}.mlp.2",
        f"{ours}.norm1": f"{theirs}.ln1",
        f"{ours}.norm2": f"{theirs}.ln2",
        f"{tower}.positions": f"{stored}.positional_embedding.pe",
        f"{tower}.projection.weight": {"name": f"{stored}.projection", "transpose": True},
    }


DESCRIPTION = {
    "embed_dim": 32,
    "image": {
        "image_size": 28,
        "patch_size": 14,
        "channels": 1,
        "width": 9,
        "layers": 3,
        "heads": 3,
        "mlp_width": 36,
    },
    "text": {
        "vocab_size": 256,
        "context_length": 32,
        "width": 32,
        "layers": 4,
        "heads": 8,
        "mlp_width": 128,
        "pad": 0,
        "end": 3,
    },
    "bytes": {"start": 2},
    "preprocess": {"mean": 0, "std": 1},
    "names": {
        **blocks("image", "image_encoder"),
        **blocks("text", "text_encoder"),
        "image.patch": "image_encoder.linear_project",
        "image.class_token": "image_encoder.cls_token",
        "text.embedding.weight": "text_encoder.encoder_embedding.weight",
        "logit_scale": "temperature",
    },
}


def load(tmp_path, **changes):
    path = tmp_path / "fashion.json"
    weights = shared_data("tiny_clip_fashion") / "caohuythinh2005.safetensors"
    path.write_text(json.dumps({**DESCRIPTION, "weights": str(weights), **changes}))
    return load_foreign(path)


@pytest.fixture(scope="module")
def images():
    stored = np.load(shared_data("tiny_clip_fashion") / "fashion900.npz")
    return [Image.fromarray(image) for image in stored["images"]], torch.from_numpy(stored["labels"]).long()


def accuracy(model, images, template):
    transform = model.preprocess()
    with torch.inference_mode():
        features = model.encode_image(torch.stack([transform(image) for image in images[0]]), normalize=True)
    classes = class_features(model, NAMES, [template], device=torch.device("cpu"))
    return topk_accuracy(features @ classes.T, images[1])


@pytest.mark.parametrize(("template", "expected"), [("An image of a {c}", 0.8522), ("{c}", 0.5689)])
def test_the_published_accuracies(tmp_path, images, template, expected):
    assert accuracy(load(tmp_path), images, template) == pytest.approx(expected, abs=5e-5)


def test_its_positions_are_the_formula(tmp_path, images):
    """With computed positions the stored ones are left over; without them nothing changes."""
    stored = load(tmp_path)
    for tower in ("image", "text"):
        computed = {**DESCRIPTION[tower], "positions": "sincos"}
        names = {key: value for key, value in DESCRIPTION["names"].items() if key != f"{tower}.positions"}
        with pytest.raises(ValueError, match=rf"1 unexpected \({tower}_encoder.positional_embedding.pe\)"):
            load(tmp_path, **{tower: computed, "names": names})
        other = load(tmp_path, **{tower: computed, "names": names, "ignored": ["*.pe"]})
        with torch.inference_mode():
            for model in (stored, other):
                model.result = (
                    normalize(model.encode_image(model.preprocess()(images[0][0])[None]), dim=-1)
                    if tower == "image"
                    else model.encode_text(model.tokenizer(["An image of a bag"]), normalize=True)
                )
        torch.testing.assert_close(other.result, stored.result, atol=1e-5, rtol=0)


def test_the_inverse_temperature(tmp_path):
    assert float(load(tmp_path).logit_scale.detach().exp()) == pytest.approx(np.exp(2.7706), rel=1e-4)
