"""The window of an image that a transform shows, by which boxes stay true.

Every transform of this library shows a window of the image, perhaps mirrored: squashing shows all of it, a
centre crop or a random crop a part, padding more than there is. A box in fractions of the image becomes one
in fractions of the window by one linear map, whatever the sizes in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from clipkit.preprocess import PreprocessConfig


@dataclass(frozen=True)
class Window:
    """The part of an image that a transform shows, in fractions of the image's width and height."""

    left: float
    top: float
    right: float
    bottom: float
    is_mirrored: bool = False

    def apply(self, boxes: Tensor) -> Tensor:
        """(R, 4) boxes of the image -> boxes of what is shown, not clipped."""
        left, right = (boxes[:, place] for place in (0, 2))
        x0, x1 = ((x - self.left) / (self.right - self.left) for x in (left, right))
        y0, y1 = ((boxes[:, place] - self.top) / (self.bottom - self.top) for place in (1, 3))
        if self.is_mirrored:
            x0, x1 = 1 - x1, 1 - x0
        return torch.stack([x0, y0, x1, y1], dim=1)

    def invert(self, boxes: Tensor) -> Tensor:
        """(R, 4) boxes of what is shown -> boxes of the image; the inverse of `apply`."""
        x0, x1 = boxes[:, 0], boxes[:, 2]
        if self.is_mirrored:
            x0, x1 = 1 - x1, 1 - x0
        width, height = self.right - self.left, self.bottom - self.top
        columns = [self.left + x0 * width, self.top + boxes[:, 1] * height]
        columns += [self.left + x1 * width, self.top + boxes[:, 3] * height]
        return torch.stack(columns, dim=1)


@dataclass(frozen=True)
class Placement:
    """How an evaluation transform lays an image, resized, on its target; all in pixels."""

    height: int
    """Of the resized image."""
    width: int
    top: int
    """First row of the target in the resized image; negative where it is padded."""
    left: int


def placement(config: PreprocessConfig, image_size: tuple[int, int]) -> Placement:
    """Where `preprocess.eval_transform` puts an image.

    Args:
        config: of the model.
        image_size: (height, width) of the image in pixels.
    """
    target_height, target_width = config.size
    height, width = image_size
    if config.resize_mode == "squash":
        return Placement(target_height, target_width, 0, 0)
    if config.resize_mode == "longest":
        scale = max(height / target_height, width / target_width)
        shown_height, shown_width = max(1, round(height / scale)), max(1, round(width / scale))
        # Of an odd number of padded pixels the smaller half is at the top and at the left.
        top, left = -((target_height - shown_height) // 2), -((target_width - shown_width) // 2)
        return Placement(shown_height, shown_width, top, left)
    if target_height == target_width:
        # torchvision makes the long side an integer, downwards.
        short = min(height, width)
        shown_height = target_height if height <= width else int(target_height * height / short)
        shown_width = target_width if width <= height else int(target_width * width / short)
    else:
        scale = min(height / target_height, width / target_width)
        shown_height, shown_width = round(height / scale), round(width / scale)
    top, left = round((shown_height - target_height) / 2), round((shown_width - target_width) / 2)
    return Placement(shown_height, shown_width, top, left)


def eval_window(config: PreprocessConfig, image_size: tuple[int, int]) -> Window:
    """What `preprocess.eval_transform` shows of an image; arguments as of `placement`."""
    place, (height, width) = placement(config, image_size), config.size
    return Window(
        left=place.left / place.width,
        top=place.top / place.height,
        right=(place.left + width) / place.width,
        bottom=(place.top + height) / place.height,
    )
