"""How far predicted boxes are from true ones, and which predicted box belongs to which true one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.distributed import Group, all_reduce_sum, world_size
from clipkit.losses.inputs import at_least_fp32

L1_COST = 5.0
GIOU_COST = 2.0
"""Of the matching, as in DETR (arXiv:2005.12872, section A.4) and GRAIN's code."""


_NO_FIT = 1e6


def corner_loss(predicted: Tensor, boxes: Tensor, *, group: Group = None) -> Tensor:
    """Mean squared error of corners (CLOC, arXiv:2410.02746, Equation 3).

    Args:
        predicted: (R, 4) xyxy fractions.
        boxes: (R, 4), the true ones.
        group: ranks over whose boxes the mean is taken; None is the world.

    Returns:
        Scalar; its mean over ranks is the mean over all boxes of the group. 0 where there are none.
    """
    total = F.mse_loss(at_least_fp32(predicted), at_least_fp32(boxes), reduction="sum")
    return _mean_over_boxes(total / 4, len(boxes), group)


def box_loss(predicted: Tensor, boxes: Tensor, *, group: Group = None) -> Tensor:
    """L1 distance of boxes plus 1 - GIoU (GRAIN, arXiv:2412.04429; GIoU: arXiv:1902.09630).

    The L1 distance is of (centre, width, height), as in DETR.

    Args:
        predicted: (R, 4) xyxy fractions.
        boxes: (R, 4), the true ones, row by row.
        group: see `corner_loss`.

    Returns:
        See `corner_loss`.
    """
    predicted, boxes = at_least_fp32(predicted), at_least_fp32(boxes)
    distances = F.l1_loss(as_centres(predicted), as_centres(boxes), reduction="sum")
    return _mean_over_boxes(distances + (1 - paired_giou(predicted, boxes)).sum(), len(boxes), group)


def _mean_over_boxes(total: Tensor, num_own: int, group: Group) -> Tensor:
    """A sum over own boxes such that its mean over ranks is the mean over all."""
    num_all = all_reduce_sum(torch.tensor(float(num_own), device=total.device), group)
    return total * world_size(group) / num_all.clamp(min=1)


def as_centres(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy -> (centre x, centre y, width, height)."""
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(first + second) / 2, second - first], dim=-1)


def as_corners(boxes: Tensor) -> Tensor:
    """The inverse of `as_centres`."""
    centre, sides = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - sides / 2, centre + sides / 2], dim=-1)


def paired_giou(first: Tensor, second: Tensor) -> Tensor:
    """(..., 4) and (..., 4) xyxy -> (...): generalised IoU of each pair, in (-1, 1]."""
    from torchvision.ops import generalized_box_iou_loss

    giou: Tensor = 1 - generalized_box_iou_loss(first, second)
    return giou


@dataclass(frozen=True)
class Matching:
    """Which prediction belongs to which box, of all images together."""

    image: Tensor
    """(K,) int64."""
    query: Tensor
    """(K,) int64, the prediction of that image."""
    box: Tensor
    """(K,) int64, row of the boxes."""


@torch.no_grad()
def match(predicted: Tensor, boxes: Tensor, box_index: Tensor) -> Matching:
    """Match predictions to boxes, image by image, at the least total cost (DETR, arXiv:2005.12872).

    The cost of a pair is 5 times the L1 distance of (centre, width, height) less 2 times the GIoU. Where an
    image has more boxes than predictions, the costliest boxes stay unmatched.

    Args:
        predicted: (B, Q, 4) xyxy fractions.
        boxes: (R, 4).
        box_index: (R,) int64 in [0, B), the image of each.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ImportError("matching boxes needs scipy: pip install 'clipkit[regions]'") from None
    from torchvision.ops import generalized_box_iou

    found: list[tuple[int, int, int]] = []
    for image in torch.unique(box_index).tolist():
        rows = (box_index == image).nonzero()[:, 0]
        own, true = at_least_fp32(predicted[image]), at_least_fp32(boxes[rows])
        distance = torch.cdist(as_centres(own), as_centres(true), p=1)
        cost = L1_COST * distance - GIOU_COST * generalized_box_iou(own, true)
        # Predictions that are not finite fit nothing; their loss, which is not finite, tells of them.
        queries, columns = linear_sum_assignment(cost.nan_to_num(_NO_FIT, _NO_FIT, _NO_FIT).cpu().numpy())
        places = rows.tolist()
        found += [(image, int(q), places[int(c)]) for q, c in zip(queries, columns, strict=True)]
    table = torch.tensor(found, dtype=torch.int64, device=predicted.device).reshape(-1, 3)
    return Matching(image=table[:, 0], query=table[:, 1], box=table[:, 2])
