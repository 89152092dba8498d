"""95 % intervals of means over regions, drawn image by image: those of one image belong together."""

from __future__ import annotations

import torch
from torch import Tensor

from ..metric_intervals import ratio_interval


def interval_over_images(values: Tensor, image: Tensor) -> tuple[float, float]:
    """Interval of the mean of (R,) values of regions of images (R,) int64."""
    counts = torch.bincount(image)
    sums = torch.bincount(image, weights=values.double())
    is_there = counts > 0
    return ratio_interval(sums[is_there], counts[is_there])
