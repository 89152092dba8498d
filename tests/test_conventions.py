"""Conventions that only the boxes of a whole data set tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clipkit.regions import boxes
from clipkit.regions.boxes import BoxFormat
from clipkit.regions.conventions import wrong_convention

FORMATS: tuple[BoxFormat, ...] = ("xyxy", "xywh", "cxcywh")
BAD = ((0.9, 0.9, 1.3, 1.2), (0.5, 0.5, 0.2, 0.3), (0.4, 0.4, 0.4, 0.6), (-0.5, 0.1, 0.1, 0.3), (0, 0, 0, 0))


def _corners(num_boxes: int, *, seed: int = 0) -> Tensor:
    """(R, 4) fp64 xyxy fractions, some of which touch the border."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.rand(num_boxes, 2, generator=generator, dtype=torch.float64) * 0.6 + 0.02
    place = torch.rand(num_boxes, 2, generator=generator, dtype=torch.float64) * 1.2 - 0.1
    first = place.clamp(0, 1) * (1 - sides)
    return torch.cat([first, first + sides], dim=1)


def _sides(num_boxes: int) -> Tensor:
    """(R, 4) of two sizes of images."""
    return (
        torch.tensor([[320, 240, 320, 240], [200, 300, 200, 300]]).double().repeat(num_boxes, 1)[:num_boxes]
    )


@pytest.mark.parametrize("said", FORMATS)
@pytest.mark.parametrize("given", FORMATS)
@pytest.mark.parametrize("in_pixels", [True, False])
def test_formats(given: BoxFormat, said: BoxFormat, in_pixels: bool) -> None:
    corners = _corners(300)
    sides = _sides(300) if in_pixels else None
    found = wrong_convention(
        boxes.from_fractions(corners if sides is None else corners * sides, given), said, sides
    )
    if given == said:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(f"boxes must be {boxes.described(said, in_pixels=in_pixels)}, but ")
        assert f"they look like {boxes.described(given, in_pixels=in_pixels)}, as which 300 are" in found


@pytest.mark.parametrize("said", FORMATS)
def test_units(said: BoxFormat) -> None:
    fractions, sides = boxes.from_fractions(_corners(40), said), _sides(40)
    rounded = fractions.clone()
    rounded[0, 2] = 1 + 1e-7
    for given, of, unit in (
        (rounded, sides, "fractions of the image"),
        (fractions * sides, None, "pixels"),
        (fractions[:1], sides[:1], "fractions of the image"),
        (rounded, torch.full_like(sides, float("nan")), "fractions of the image"),
    ):
        found = wrong_convention(given, said, of)
        assert found is not None
        assert found.endswith(f"they look like {unit}")


@pytest.mark.parametrize("said", FORMATS)
@pytest.mark.parametrize("in_pixels", [True, False])
def test_bad_boxes_of_good_data_are_not_refused(said: BoxFormat, in_pixels: bool) -> None:
    """A fifth of the boxes are bad: outside, in the wrong order, without area, no numbers."""
    bad = torch.tensor([BAD[number % len(BAD)] for number in range(60)], dtype=torch.float64)
    corners, sides = torch.cat([_corners(240), bad]), _sides(300)
    given = boxes.from_fractions(corners * sides if in_pixels else corners, said)
    given[7] = float("nan")
    assert wrong_convention(given, said, sides if in_pixels else None) is None


def test_a_few_boxes_tell_nothing() -> None:
    given = torch.tensor([[0.6, 0.6, 0.2, 0.2]] * 4, dtype=torch.float64)
    assert wrong_convention(given, "xyxy") is None
    assert wrong_convention(torch.cat([given, given]), "xyxy") is not None
    centre = torch.tensor([[0.4, 0.4, 0.5, 0.5]], dtype=torch.float64)  # possible in all formats
    assert wrong_convention(torch.cat([given, given[:3], centre.repeat(343, 1)]), "xyxy") is None
    assert wrong_convention(torch.cat([given, given, centre.repeat(342, 1)]), "xyxy") is not None
    assert wrong_convention(torch.zeros(0, 4, dtype=torch.float64), "xyxy") is None


def test_boxes_that_stick_out_a_little_are_possible() -> None:
    """Each by 1 pixel and 0.9 % of the side, which as a centre would lie inside."""
    sides = _sides(60)
    given = torch.tensor([[0.7, 0.7, 0.309, 0.309]], dtype=torch.float64).repeat(60, 1) * sides
    given[:, 2:] += 0.9
    assert wrong_convention(given, "xywh", sides) is None
    assert wrong_convention(given + 2, "xywh", sides) is not None


def test_images_of_unknown_size_tell_nothing_of_the_format() -> None:
    given, sides = _corners(60) * _sides(60), torch.full((60, 4), float("nan"), dtype=torch.float64)
    assert wrong_convention(given, "xywh", sides) is None
    assert wrong_convention(given, "xywh", torch.zeros_like(sides)) is None
