"""Metrics by how much of the picture a box covers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

EDGES = (0.01, 0.1)
"""Shares of the picture between small, medium and large; COCO's 32 and 96 pixels squared are 0.3 and 3 % of a
photo of 640 x 480."""
_NAMES = ("small, under 1 % of the picture", "medium, 1 to 10 %", "large, over 10 %")


def rows_by_size(
    areas: Tensor, columns: Sequence[Tensor], shown: Callable[[float], str]
) -> tuple[tuple[str, ...], ...]:
    """A row for each size that occurs: its name, how many items it has, and the mean of each column.

    Args:
        areas: (R,) shares of the picture.
        columns: (R,) values each.
        shown: how a mean is printed.
    """
    size = torch.bucketize(areas, torch.tensor(EDGES, dtype=areas.dtype))
    rows = []
    for number, name in enumerate(_NAMES):
        own = size == number
        if bool(own.any()):
            means = (shown(float(values[own].mean())) for values in columns)
            rows.append((name, f"{int(own.sum()):,}", *means))
    return tuple(rows)
