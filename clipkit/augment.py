"""Settings of the random changes to a training image; free of torch, so that a command line can hold them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random resized crop and mirror image."""

    random_crop: bool = True
    """Else images are resized as at evaluation, by the model's resize_mode; scale and ratio play no part."""
    scale: tuple[float, float] = (0.9, 1.0)
    """Range of the crop's share of the image area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width over height, before it is resized."""
    horizontal_flip: float = 0.0
    """Probability of a mirror image; captions with left and right become wrong by it."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"augment.scale must rise within (0, 1], got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"augment.ratio must rise from above 0, got {self.ratio}")
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"augment.horizontal_flip must be in [0, 1], got {self.horizontal_flip}")
