"""Boxes: xyxy as fractions of width and height; whatever else comes is converted, or counted.

The origin is the top left corner, x goes right and y goes down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from clipkit.windows import Window

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
"""Corners; a corner with width and height, as COCO has it; the centre with width and height."""

_NUMBERS: Mapping[BoxFormat, str] = {
    "xyxy": "x0, y0, x1, y1",
    "xywh": "x, y, width, height",
    "cxcywh": "centre x, centre y, width, height",
}

NOT_NUMBERS = "box_not_four_finite_numbers"
WRONG_ORDER = "box_with_corners_in_wrong_order"
NO_AREA = "box_without_area"
OUTSIDE = "box_outside_the_image"
CUT_OFF = "box_cut_off_by_the_crop"
PROBLEMS = (NOT_NUMBERS, WRONG_ORDER, NO_AREA, OUTSIDE, CUT_OFF)
"""Why a box is left out."""

MAX_FRACTION = 1.5
"""A larger number is no fraction of a side, however badly it was rounded or far a box sticks out."""

MIN_VISIBLE = 0.5
"""Share of a box that must lie inside the image, or inside a crop of it, for its phrase to stay true."""


@dataclass(frozen=True)
class CleanBoxes:
    """The boxes that can be used."""

    boxes: Tensor
    """(K, 4) fp32, xyxy in [0, 1], of positive area."""
    kept: Tensor
    """(K,) int64, rising: their places among those that came."""
    problems: dict[str, int]
    """How many of the others had which problem, by `PROBLEMS`."""


def to_fractions(boxes: Tensor, box_format: BoxFormat, image_size: tuple[int, int] | None = None) -> Tensor:
    """Boxes of any format as xyxy fractions.

    Args:
        boxes: (R, 4).
        box_format: what the four numbers are.
        image_size: (height, width), for boxes in pixels; None for boxes that are fractions already.

    Returns:
        (R, 4), not clipped.
    """
    _check_format(box_format)
    corners = _corners(boxes, box_format)
    return corners if image_size is None else corners / _sides(image_size, corners)


def from_fractions(boxes: Tensor, box_format: BoxFormat, image_size: tuple[int, int] | None = None) -> Tensor:
    """The inverse of `to_fractions`."""
    _check_format(box_format)
    corners = boxes if image_size is None else boxes * _sides(image_size, boxes)
    first, second = corners[..., :2], corners[..., 2:]
    if box_format == "xyxy":
        return corners
    return torch.cat([first if box_format == "xywh" else (first + second) / 2, second - first], dim=-1)


def clean(
    boxes: Any, box_format: BoxFormat = "xyxy", image_size: tuple[int, int] | None = None
) -> CleanBoxes:
    """Boxes as files have them: converted, clipped to the image, the unusable ones left out and counted.

    A box stays if its four numbers are finite, its corners are in order, it has an area, and at least half of
    that is inside the image. What the boxes of a whole data set show is for `conventions.wrong_convention`.

    Args:
        boxes: a list of boxes, or (R, 4).
        box_format: what the four numbers are.
        image_size: (height, width), for boxes in pixels.

    Raises:
        ValueError: most boxes are in another convention; it says which, as far as that can be told.
    """
    rows = as_rows(boxes)
    corners = to_fractions(rows, box_format, image_size)
    _check_convention(rows.float(), corners, box_format, image_size)
    return usable(corners)


def usable(corners: Tensor) -> CleanBoxes:
    """As `clean`, for boxes whose convention is known.

    Args:
        corners: (R, 4) xyxy fractions.
    """
    problem = _problems(corners)
    kept = torch.tensor([row for row, name in enumerate(problem) if name is None], dtype=torch.int64)
    counts = Counter(name for name in problem if name is not None)
    return CleanBoxes(corners[kept].clamp(0, 1).float(), kept, dict(sorted(counts.items())))


def as_rows(boxes: Iterable[Any]) -> Tensor:
    """(R, 4) fp64 of boxes as files have them; NaN in the place of what has not four numbers."""
    return torch.tensor([_four_numbers(box) for box in boxes], dtype=torch.float64).reshape(-1, 4)


def looks_like_pixels(boxes: Tensor) -> bool:
    """Whether most of the boxes, (R, 4) in any format, have a number that is no fraction."""
    finite = boxes[boxes.isfinite().all(dim=1)]
    return 2 * int((finite > MAX_FRACTION).any(dim=1).sum()) > len(finite)


def described(box_format: BoxFormat, *, in_pixels: bool) -> str:
    """What the four numbers are, for messages."""
    return f"{_NUMBERS[box_format]} in {'pixels' if in_pixels else 'fractions of the image'}"


def as_text(box: Tensor) -> str:
    """(4,) -> `[0.1, 0.2, 0.5, 0.9]`, for messages."""
    return str([round(number, 3) for number in box.tolist()])


def area(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy -> (...,): width times height, 0 where the corners are in the wrong order."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides.prod(dim=-1)


def visible_share(boxes: Tensor) -> Tensor:
    """(R, 4) xyxy fractions -> (R,): the share of each box that lies in the unit square."""
    return area(boxes.clamp(0, 1)) / area(boxes).clamp(min=torch.finfo(boxes.dtype).tiny)


def shown(boxes: Tensor, window: Window) -> CleanBoxes:
    """The boxes of an image of which at least half is in a window, as boxes of it; the others are counted.

    Args:
        boxes: (R, 4) xyxy fractions of the image.
        window: what a transform shows.
    """
    moved = window.apply(boxes)
    kept = (visible_share(moved) >= MIN_VISIBLE).nonzero()[:, 0]
    num_lost = len(boxes) - len(kept)
    return CleanBoxes(moved[kept].clamp(0, 1), kept, {CUT_OFF: num_lost} if num_lost else {})


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """(A, 4) and (B, 4) xyxy -> (A, B): intersection over union."""
    from torchvision.ops import box_iou

    iou: Tensor = box_iou(first, second)
    return iou


def _problems(corners: Tensor) -> list[str | None]:
    """Of each box, what keeps it from being used."""
    sides = corners[:, 2:] - corners[:, :2]
    kept = corners.clamp(0, 1).float()
    checks = [
        (NOT_NUMBERS, corners.isfinite().all(dim=1)),
        (WRONG_ORDER, (sides >= 0).all(dim=1)),
        (NO_AREA, (sides > 0).all(dim=1)),
        (OUTSIDE, visible_share(corners) >= MIN_VISIBLE),
        # A sliver has an area in fp64 that the numbers that are kept no longer have.
        (NO_AREA, (kept[:, 2:] > kept[:, :2]).all(dim=1)),
    ]
    found: list[str | None] = [None] * len(corners)
    for name, is_fine in reversed(checks):
        for row in (~is_fine).nonzero()[:, 0].tolist():
            found[row] = name
    return found


def _four_numbers(box: Any) -> list[float]:
    """The numbers of a box, NaN where it has not four."""
    try:
        numbers = [float(number) for number in box]
    except (TypeError, ValueError, OverflowError):  # the last: an integer beyond fp64
        numbers = []
    return numbers if len(numbers) == 4 else [float("nan")] * 4


def _check_convention(
    given: Tensor, corners: Tensor, box_format: BoxFormat, image_size: tuple[int, int] | None
) -> None:
    """Refuse boxes that make sense in another convention only, when most of several do."""
    finite = given[given.isfinite().all(dim=1)]
    if image_size is None and looks_like_pixels(finite):
        raise ValueError(
            f"boxes must be fractions in [0, 1], got {as_text(finite[0])}: they look like pixels"
        )
    is_fine = [problem is None for problem in _problems(corners)]
    if len(is_fine) < 2 or 2 * sum(is_fine) >= len(is_fine):
        return
    in_pixels = image_size is not None
    for other in get_args(BoxFormat):
        fits = [problem is None for problem in _problems(to_fractions(given.double(), other, image_size))]
        if all(fits):
            raise ValueError(
                f"boxes must be {described(box_format, in_pixels=in_pixels)}, but "
                f"{len(is_fine) - sum(is_fine)} of {len(is_fine)} are impossible as such, for example "
                f"{as_text(given[is_fine.index(False)])}; all are possible as "
                f"{described(other, in_pixels=in_pixels)}"
            )


def _corners(boxes: Tensor, box_format: BoxFormat) -> Tensor:
    if box_format == "xyxy":
        return boxes
    place, sides = boxes[..., :2], boxes[..., 2:]
    first = place if box_format == "xywh" else place - sides / 2
    return torch.cat([first, first + sides], dim=-1)


def _sides(image_size: Sequence[int], like: Tensor) -> Tensor:
    height, width = image_size
    return like.new_tensor([width, height, width, height])


def _check_format(box_format: str) -> None:
    if box_format not in get_args(BoxFormat):
        raise ValueError(f"box_format must be one of {', '.join(get_args(BoxFormat))}, got {box_format!r}")
