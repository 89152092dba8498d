"""Preprocessing against recorded tensors of open_clip, clip-retrieval and onnx-clip, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image
from shared_data import shared_data

from clipkit.preprocess import PreprocessConfig, eval_transform, normalize_pixels

IMAGES = {
    "123_456": "clipret_123_456.jpg",
    "456_123": "clipret_456_123.jpg",
    "CLIP_png": "numpyclip_CLIP.png",
}


# Recorded with a Pillow that resized rows before columns. Pillow 13 does columns first where that is cheaper,
# which it is for this tall image alone: the two roundings to uint8 then differ by one level at some pixels.
TALL = "123_456"


def picture(name):
    with Image.open(shared_data("golden_real") / name) as image:
        return image.copy()


def recorded_transforms():
    stored = np.load(shared_data("golden_generated") / "preprocess_openclip.npz")
    assert len(stored.files) == 18
    for name in stored.files:
        image, resize_mode, interpolation, size = name.split("|")
        config = PreprocessConfig(
            size=(int(size), int(size)), resize_mode=resize_mode, interpolation=interpolation
        )
        yield image, config, picture(IMAGES[image]), stored[name]


def test_open_clip_transforms():
    num_exact = 0
    for name, config, image, expected in recorded_transforms():
        found = eval_transform(config)(image).numpy()
        levels = np.abs(found - expected) * np.array(config.std)[:, None, None] * 255
        assert levels.max() < (1.001 if name == TALL else 1e-9)
        num_exact += bool(levels.max() == 0)
    assert num_exact >= 12


def test_the_tall_image_is_exact_with_rows_before_columns():
    tall = [
        (c, i, e) for name, c, i, e in recorded_transforms() if name == TALL and c.resize_mode == "squash"
    ]
    assert len(tall) == 2
    for config, image, expected in tall:
        method = Image.Resampling[config.interpolation.upper()]
        rows_first = image.resize((64, image.height), method).resize((64, 64), method)
        assert np.array_equal(eval_transform(config)(rows_first).numpy(), expected)


def clip_images():
    return ["123_456", "208_495", "416_264", "456_123", "321_421", "389_535", "524_316"]


@pytest.mark.parametrize("name", clip_images())
def test_clip_preprocessing_of_odd_shapes(name):
    stored = np.load(shared_data("golden_real") / "clipret_vitb32.npz")
    image = picture(f"clipret_{name}.jpg")
    expected = stored[f"{name}|pix"]
    assert np.array_equal(eval_transform(PreprocessConfig())(image).numpy(), expected)
    config = PreprocessConfig()
    pixels = eval_transform(config, torch.uint8)(image)
    found = normalize_pixels(pixels, torch.tensor(config.mean), torch.tensor(config.std))
    assert np.array_equal(found.numpy(), expected)


def test_clip_preprocessing_of_onnx_clip():
    expected = np.load(shared_data("golden_real") / "onnxclip_expected_preprocessed_image.npy")[0]
    image = picture("onnxclip_franz-kafka.jpg")
    np.testing.assert_allclose(eval_transform(PreprocessConfig())(image).numpy(), expected, atol=1e-6, rtol=0)
