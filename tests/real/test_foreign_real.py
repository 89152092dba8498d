"""A small dual encoder that somebody trained on Fashion-MNIST with code of their own."""

import numpy as np
import pytest
import torch
from fashion_model import DESCRIPTION, NAMES, images_and_labels, load
from torch.nn.functional import normalize

from clipkit.evaluation import class_features
from clipkit.metrics import topk_accuracy


@pytest.fixture(scope="module")
def images():
    return images_and_labels()


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
