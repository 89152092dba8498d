"""In which convention the boxes of a whole data set are: many show it, a few bad ones do not."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from clipkit.regions.boxes import MAX_FRACTION, BoxFormat, as_text, described, looks_like_pixels, to_fractions

MIN_IMPOSSIBLE = 5
MIN_IMPOSSIBLE_SHARE = 0.02
"""Fewer boxes, or no larger share, that are impossible as they should be are bad boxes of good data."""
MIN_POSSIBLE_SHARE = 0.99
"""Share of all boxes that must be possible in another convention for that to be it."""
MARGIN = 0.01
"""Share of a side by which a box may stick out of the image and still be possible; in pixels one more."""


def wrong_convention(given: Tensor, box_format: BoxFormat, sides: Tensor | None = None) -> str | None:
    """What the boxes of a data set look like, where that is not what they should be.

    No single box is judged: data with some bad boxes are fine, since those are rarely possible in another
    format, and the good ones hardly ever all are.

    Args:
        given: (R, 4) fp64, boxes of all images together; rows with NaN, as of `boxes.as_rows`, tell nothing.
        box_format: what the four numbers should be.
        sides: (R, 4) fp64, width, height, width, height of the image of each box, for boxes in pixels; of
            rows with NaN nothing but the unit is judged. None for boxes in fractions.

    Returns:
        What was expected and what came, in one line without the cure; None where they seem to be right.
    """
    is_finite = given.isfinite().all(dim=1)
    finite = given[is_finite & (given != 0).any(dim=1)]  # zeros stand for no box in some files
    in_pixels = sides is not None
    expected = described(box_format, in_pixels=in_pixels)
    if _looks_like_fractions(finite) if in_pixels else looks_like_pixels(finite):
        unit = "fractions of the image" if in_pixels else "pixels"
        return f"boxes must be {expected}, got {as_text(finite[0])}: they look like {unit}"
    is_known = (
        torch.ones_like(is_finite) if sides is None else sides.isfinite().all(dim=1) & (sides > 0).all(dim=1)
    )
    rows = given[is_finite & is_known]
    limits = torch.ones_like(rows) if sides is None else sides[is_finite & is_known]
    possible = {name: _is_possible(rows, name, limits, in_pixels) for name in get_args(BoxFormat)}
    num_possible = {name: int(fits.sum()) for name, fits in possible.items()}
    num_impossible = len(rows) - num_possible[box_format]
    likely = max(num_possible, key=lambda name: num_possible[name])
    if num_impossible < MIN_IMPOSSIBLE or num_impossible <= MIN_IMPOSSIBLE_SHARE * len(rows):
        return None
    if num_possible[likely] < MIN_POSSIBLE_SHARE * len(rows):
        return None
    return (
        f"boxes must be {expected}, but {num_impossible:,} of {len(rows):,} are impossible as such, for "
        f"example {as_text(rows[~possible[box_format]][0])}; they look like "
        f"{described(likely, in_pixels=in_pixels)}, as which {num_possible[likely]:,} are possible"
    )


def _looks_like_fractions(boxes: Tensor) -> bool:
    """Whether practically no box, of (R, 4) in pixels, would be larger than a pixel."""
    num_small = int((boxes.abs() <= MAX_FRACTION).all(dim=1).sum())
    return num_small > 0 and num_small >= MIN_POSSIBLE_SHARE * len(boxes)


def _is_possible(rows: Tensor, box_format: BoxFormat, sides: Tensor, in_pixels: bool) -> Tensor:
    """(R,) bool: the corners are in order and inside the image, but for the margin."""
    corners = to_fractions(rows, box_format)
    margin = MARGIN * sides + in_pixels
    is_inside = ((corners >= -margin) & (corners <= sides + margin)).all(dim=1)
    return is_inside & (corners[:, 2:] > corners[:, :2]).all(dim=1)
