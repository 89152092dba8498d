"""95 % intervals of means over regions, drawn image by image: those of one image belong together."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.paired_metrics import mean_of_groups

from ..intervals import bootstrap_interval
from ..metric_intervals import ratio_interval


def interval_over_images(values: Tensor, image: Tensor) -> tuple[float, float]:
    """Interval of the mean of (R,) values of regions of images (R,) int64."""
    counts = torch.bincount(image)
    sums = torch.bincount(image, weights=values.double())
    is_there = counts > 0
    return ratio_interval(sums[is_there], counts[is_there])


def class_mean_interval_over_images(values: Tensor, labels: Tensor, image: Tensor) -> tuple[float, float]:
    """Interval of the mean over classes of the means of (R,) values, by (R,) int64 labels and images.

    Of the linearised mean: in samples drawn again a class of one region is missing as often as not, and the
    mean over the others is another.
    """
    _, row = torch.unique(image, return_inverse=True)
    groups = [(row[labels == label], values[labels == label].double()) for label in torch.unique(labels)]
    return bootstrap_interval(mean_of_groups(groups, int(row.max()) + 1))
