import dataclasses

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pil_transforms

from clipkit.augment import AugmentConfig
from clipkit.preprocess import (
    PreprocessConfig,
    TrainTransform,
    eval_transform,
    normalize_pixels,
    resized_crop,
    train_transform,
)
from clipkit.windows import eval_window


def picture(width=91, height=57, mode="RGB", seed=0):
    """Smooth colours with a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x / 9 + k) * np.cos(y / (7 + k)) for k in range(3)]
    noise = np.random.default_rng(seed).normal(0, 4, (height, width, 3))
    array = np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(array).convert(mode)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_evaluation_is_open_clips(resize_mode, interpolation, size, mode):
    config = PreprocessConfig(size=size, resize_mode=resize_mode, interpolation=interpolation, fill_color=7)
    oracle = image_transform_v2(PreprocessCfg(**dataclasses.asdict(config)), is_train=False)
    image = picture(mode=mode)
    found = eval_transform(config)(image)
    assert torch.equal(found, oracle(image))
    assert found.shape == (3, *size)
    pixels = eval_transform(config, torch.uint8)(image)
    assert pixels.dtype == torch.uint8
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    assert torch.equal(normalize_pixels(pixels, mean, std), found)


def test_normalize_pixels_by_hand():
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1)
    found = normalize_pixels(pixels, torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.25, 0.1]))
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 2.0, 2.0]))


def test_config_reads_what_open_clip_writes():
    config = PreprocessConfig.from_dict(
        {"size": 64, "mean": 0.5, "std": [0.5, 0.5, 0.5], "interpolation": None, "url": "ignored"}
    )
    assert config.size == (64, 64)
    assert config.mean == (0.5, 0.5, 0.5)
    assert config.interpolation == "bicubic"
    assert PreprocessConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize_mode": "stretch"}, "shortest, longest, squash, got 'stretch'"),
        ({"interpolation": "lanczos"}, "bicubic, bilinear, random, got 'lanczos'"),
        ({"std": (0.0, 1.0, 1.0)}, "std > 0"),
        ({"mode": "L"}, "must be RGB, got 'L'"),
    ],
)
def test_config_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        PreprocessConfig(**settings)


def test_a_crop_is_as_with_pil():
    """Same box: within rounding of open_clip's PIL resize (peak signal-to-noise ratio over 45 dB)."""
    image = picture(200, 150)
    top, left, height, width = 10, 20, 120, 130
    method = InterpolationMode.BICUBIC
    oracle = pil_transforms.resized_crop(image, top, left, height, width, [64, 64], method)
    pixels = pil_transforms.pil_to_tensor(image)
    found = resized_crop(pixels, (top, left, height, width), (64, 64))
    difference = found.float() - pil_transforms.pil_to_tensor(oracle).float()
    assert 10 * torch.log10(255**2 / difference.square().mean()) > 45
    assert difference.abs().max() <= 2


def test_training_is_a_function_of_the_generator():
    config = PreprocessConfig(size=(32, 48))
    transform = TrainTransform(config, AugmentConfig(scale=(0.3, 1.0), horizontal_flip=0.5))
    pixels = pil_transforms.pil_to_tensor(picture())
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(transform(pixels))
    assert results[0].dtype == torch.uint8
    assert results[0].shape == (3, 32, 48)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_sure_flip_mirrors():
    config, pixels = PreprocessConfig(size=(32, 32)), pil_transforms.pil_to_tensor(picture(64, 64))
    torch.manual_seed(3)
    plain = TrainTransform(config)(pixels)
    torch.manual_seed(3)
    flipped = TrainTransform(config, AugmentConfig(horizontal_flip=1.0))(pixels)
    assert torch.equal(flipped, plain.flip(-1))


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_without_crop_training_shows_what_evaluation_shows(resize_mode, size):
    config = PreprocessConfig(size=size, resize_mode=resize_mode, fill_color=90)
    transform = TrainTransform(config, AugmentConfig(random_crop=False))
    for side_lengths in ((201, 150), (150, 201), (97, 97), (300, 40), (20, 31), (700, 2), (1, 500)):
        image = picture(*side_lengths)
        result, window = transform.with_window(pil_transforms.pil_to_tensor(image))
        expected = eval_transform(config, torch.uint8)(image)
        assert result.shape == expected.shape
        assert (result.float() - expected.float()).abs().max() <= 2
        assert window == eval_window(config, (image.height, image.width))


def test_training_transform_of_pil_images_of_any_mode():
    config = PreprocessConfig(size=(32, 32))
    for mode in ("RGB", "L", "P", "RGBA", "CMYK", "I;16"):
        image = picture(mode="L").convert("I").convert("I;16") if mode == "I;16" else picture(mode=mode)
        torch.manual_seed(0)
        values = train_transform(config)(image)
        torch.manual_seed(0)
        pixels = train_transform(config, dtype=torch.uint8)(image)
        assert pixels.shape == (3, 32, 32)
        mean, std = torch.tensor(config.mean), torch.tensor(config.std)
        assert torch.equal(values, normalize_pixels(pixels, mean, std))


@pytest.mark.parametrize("settings", [{"scale": (0.0, 1.0)}, {"ratio": (2.0, 1.0)}, {"horizontal_flip": 1.5}])
def test_augmentation_refuses(settings):
    with pytest.raises(ValueError, match=f"augment.{next(iter(settings))} must"):
        AugmentConfig(**settings)


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"torch\.float32 or torch\.uint8, not torch\.float16"):
        eval_transform(PreprocessConfig(), torch.float16)
