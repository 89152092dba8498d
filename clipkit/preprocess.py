"""From an image to the tensor a tower takes: open_clip's evaluation transform, and a fast training one.

Decoding belongs to `clipkit.images`. A transform that yields uint8 leaves the normalisation to
`DualEncoder.encode_image`, which does it on the device: a quarter of the bytes go through the loader.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as transforms

from clipkit.augment import AugmentConfig
from clipkit.windows import Window, eval_window, placement

ImageTransform = Callable[[Image.Image], Tensor]

_RESIZE_MODES = ("shortest", "longest", "squash")
_INTERPOLATIONS = ("bicubic", "bilinear", "random")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How images are prepared for a model; the fields of open_clip's `PreprocessCfg`."""

    size: tuple[int, int] = (224, 224)
    """(height, width) in pixels."""
    mode: str = "RGB"
    """Colour mode; only RGB exists."""
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    """Per channel, subtracted from pixels in [0, 1]."""
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    """Per channel, the divisor after the mean is subtracted."""
    interpolation: str = "bicubic"
    """bicubic or bilinear (random: bicubic at evaluation)."""
    resize_mode: str = "shortest"
    """shortest (then centre crop), longest (then pad), squash."""
    fill_color: int = 0
    """Padding value of resize_mode longest, 0 to 255."""

    def __post_init__(self) -> None:
        if self.mode != "RGB":
            raise ValueError(f"preprocess mode must be RGB, got {self.mode!r}")
        if self.resize_mode not in _RESIZE_MODES:
            raise ValueError(
                f"resize_mode must be one of {', '.join(_RESIZE_MODES)}, got {self.resize_mode!r}"
            )
        if self.interpolation not in _INTERPOLATIONS:
            choices = ", ".join(_INTERPOLATIONS)
            raise ValueError(f"interpolation must be one of {choices}, got {self.interpolation!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std must be 3 numbers, std > 0, got {self.mean} and {self.std}")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> PreprocessConfig:
        """From an open_clip `preprocess_cfg`: unknown keys and None are ignored, as open_clip does."""
        known = {field.name for field in dataclasses.fields(cls)}
        given = {key: value for key, value in settings.items() if key in known and value is not None}
        if "size" in given:
            given["size"] = _pair(given["size"])
        for key in ("mean", "std"):
            if key in given:
                value = given[key]
                given[key] = (
                    (float(value),) * 3 if isinstance(value, int | float) else tuple(map(float, value))
                )
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, lists for tuples."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }


def eval_transform(config: PreprocessConfig, dtype: torch.dtype = torch.float32) -> ImageTransform:
    """The transform of `open_clip.image_transform_v2(is_train=False)`, bit for bit.

    Args:
        config: size, resizing and normalisation.
        dtype: torch.float32 gives normalised values; torch.uint8 gives the pixels before normalisation,
            from which `normalize_pixels` makes exactly the float result.

    Returns:
        PIL image of any mode -> (3, height, width).
    """
    _check_dtype(dtype)
    from open_clip.transform import PreprocessCfg, image_transform_v2

    steps = image_transform_v2(PreprocessCfg(**dataclasses.asdict(config)), is_train=False).transforms
    if config.resize_mode == "longest":
        steps = [_Thickened(config.size), *steps]
    if dtype == torch.float32:
        return _Pipeline(steps)
    # open_clip ends with ToTensor and Normalize; what is before them works on the PIL image.
    return _Pipeline([*steps[:-2], transforms.pil_to_tensor])


def train_transform(
    config: PreprocessConfig, augment: AugmentConfig | None = None, dtype: torch.dtype = torch.float32
) -> ImageTransform:
    """`TrainTransform` for PIL images of any mode; normalised when `dtype` is float32.

    Returns:
        PIL image -> (3, height, width).
    """
    _check_dtype(dtype)
    steps: list[Callable[[Any], Any]] = [_to_rgb, transforms.pil_to_tensor, TrainTransform(config, augment)]
    if dtype == torch.float32:
        steps.append(_Normalize(config))
    return _Pipeline(steps)


class TrainTransform:
    """Random resized crop, or the resizing of evaluation, and flip of uint8 pixels.

    The crop box is drawn as torchvision's `RandomResizedCrop` draws it, from torch's global generator, so
    the result is a function of that generator's state. Resizing is antialiased bicubic, as in open_clip.
    """

    def __init__(self, config: PreprocessConfig, augment: AugmentConfig | None = None) -> None:
        self.config = config
        self.augment = augment or AugmentConfig()

    def __call__(self, pixels: Tensor) -> Tensor:
        """(3, H, W) uint8 of any size -> (3, height, width) uint8 of the config's size."""
        return self.with_window(pixels)[0]

    def with_window(self, pixels: Tensor) -> tuple[Tensor, Window]:
        """The same, and what it shows of the image."""
        if self.augment.random_crop:
            result, window = self._crop(pixels)
        else:
            image_height, image_width = pixels.shape[-2:]
            result, window = (
                placed(pixels, self.config),
                eval_window(self.config, (image_height, image_width)),
            )
        flip = self.augment.horizontal_flip
        if flip > 0 and torch.rand(()).item() < flip:
            return result.flip(-1), dataclasses.replace(window, is_mirrored=True)
        return result, window

    def _crop(self, pixels: Tensor) -> tuple[Tensor, Window]:
        image_height, image_width = pixels.shape[-2:]
        scale, ratio = list(self.augment.scale), list(self.augment.ratio)
        top, left, height, width = RandomResizedCrop.get_params(pixels, scale, ratio)
        window = Window(
            left=left / image_width,
            top=top / image_height,
            right=(left + width) / image_width,
            bottom=(top + height) / image_height,
        )
        return resized_crop(pixels, (top, left, height, width), self.config.size), window


def resized_crop(pixels: Tensor, box: tuple[int, int, int, int], size: Sequence[int]) -> Tensor:
    """Cut `box` = (top, left, height, width) out of (3, H, W) and resize it, antialiased bicubic."""
    resized: Tensor = transforms.resized_crop(
        pixels, *box, size=list(size), interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return resized


def placed(pixels: Tensor, config: PreprocessConfig) -> Tensor:
    """Resize (3, H, W) uint8 as `eval_transform` does, but always bicubic, and cut or pad it to the size."""
    from open_clip.transform import center_crop_or_pad

    image_height, image_width = pixels.shape[-2:]
    place = placement(config, (image_height, image_width))
    resized = resized_crop(pixels, (0, 0, image_height, image_width), (place.height, place.width))
    result: Tensor = center_crop_or_pad(resized, list(config.size), fill=config.fill_color)
    return result


def normalize_pixels(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise as open_clip's evaluation transform does, in the same order of operations.

    Args:
        pixels: (..., 3, H, W), uint8 in [0, 255], or float already in [0, 1].
        mean: (3,) in the unit of [0, 1].
        std: (3,).

    Returns:
        The shape of `pixels`, float32 for uint8 input.
    """
    scaled = pixels.float().div(255) if pixels.dtype == torch.uint8 else pixels
    return (scaled - mean.view(3, 1, 1)) / std.view(3, 1, 1)


class _Pipeline:
    """Steps in order; a class so that loader workers can be sent it."""

    def __init__(self, steps: Sequence[Callable[[Any], Any]]) -> None:
        self.steps = list(steps)

    def __call__(self, image: Image.Image) -> Tensor:
        result: Any = image
        for step in self.steps:
            result = step(result)
        assert isinstance(result, Tensor)
        return result


class _Thickened:
    """Makes very elongated images thick enough that a row of pixels is left of them.

    open_clip's resizing by the longest side would round their short side to 0, and fail.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        scale = max(image.height / self.size[0], image.width / self.size[1])
        if round(min(image.height, image.width) / scale) > 0:
            return image
        least = math.ceil(scale)
        return image.resize((max(image.width, least), max(image.height, least)))


class _Normalize:
    """`normalize_pixels` with the statistics of a config."""

    def __init__(self, config: PreprocessConfig) -> None:
        self.mean, self.std = torch.tensor(config.mean), torch.tensor(config.std)

    def __call__(self, pixels: Tensor) -> Tensor:
        return normalize_pixels(pixels, self.mean, self.std)


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.uint8):
        raise ValueError(f"a transform gives torch.float32 or torch.uint8, not {dtype}")


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
